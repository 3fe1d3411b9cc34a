"""`doit why`: the keyed lines that changed, before the rebuild and after it."""

from __future__ import annotations

import shutil

import pytest

from tests.space import SPEC, Space

ENGINE = "engine:m_int8_wo_isl256_osl64_bs8"
BUILD = "build:m_int8_wo_isl256_osl64_bs8"
CHANGED = SPEC + "build = { max_num_tokens = 512 }\n"


def _why(space: Space, *targets: str) -> list[str]:
    return [line.strip() for line in space.build("why", *targets).splitlines()]


def test_before_anything_was_made_it_says_so(workspace: Space) -> None:
    assert _why(workspace, "source:m") == ["source:m", "it was never made here"]
    assert _why(workspace, ENGINE) == [ENGINE, _stale("checkpoint:m_int8_wo")]


def _stale(name: str) -> str:
    return f"its input {name} is not up to date (doit why {name})"


def test_what_is_up_to_date_says_so_and_how_it_came(built: Space) -> None:
    assert _why(built, ENGINE)[:2] == [ENGINE, "it is up to date"]
    assert _why(built, ENGINE)[2].startswith("its command ran, in ")


def test_the_changed_line_is_shown_old_and_new_before_the_rebuild(built: Space) -> None:
    built.write("models.toml", CHANGED)
    assert _why(built, ENGINE) == [ENGINE, "- arg --max-num-tokens=2048", "+ arg --max-num-tokens=512"]


def test_the_changed_line_is_shown_after_the_rebuild_too(built: Space) -> None:
    built.write("models.toml", CHANGED)
    built.build()
    name, fresh, came, *lines = _why(built, ENGINE)
    assert (name, fresh) == (ENGINE, "it is up to date")
    assert came.startswith("its command ran last time, in ")
    assert lines == ["- arg --max-num-tokens=2048", "+ arg --max-num-tokens=512"]


def test_an_input_that_is_not_up_to_date_is_named(built: Space) -> None:
    built.write("models.toml", CHANGED)
    assert _why(built, BUILD) == [BUILD, _stale(ENGINE)]


def test_a_changed_input_is_shown_by_its_digest(built: Space) -> None:
    built.write("models.toml", CHANGED)
    built.build(ENGINE)
    _, old, new = _why(built, BUILD)
    assert old.startswith("- input engine ")
    assert new.startswith("+ input engine ")


def test_a_harmed_output_is_no_change_of_a_key(built: Space) -> None:
    shutil.rmtree(built.root / "artifacts" / ENGINE.replace(":", "/"))
    assert _why(built, ENGINE) == [ENGINE, "nothing keyed changed; its outputs are missing or were modified"]


def test_what_came_from_the_store_says_so(built: Space) -> None:
    built.write("models.toml", CHANGED)
    built.build()
    built.write("models.toml", SPEC)
    built.build()
    assert _why(built, ENGINE)[2].startswith("it came from the store last time, in ")


def test_a_group_and_a_stage_explain_each_member_once(built: Space) -> None:
    assert [line for line in _why(built, "checkpoint", "checkpoint:m") if ":" in line] == ["checkpoint:m_int8_wo"]


def test_why_runs_nothing_and_writes_nothing(built: Space) -> None:
    built.ran()
    built.poison()
    built.write("models.toml", CHANGED)
    before = {path: path.stat().st_mtime_ns for path in (built.root / "artifacts").rglob("*") if path.is_file()}
    built.build("why", "build", "smoke")
    assert built.ran() == []
    after = {path: path.stat().st_mtime_ns for path in (built.root / "artifacts").rglob("*") if path.is_file()}
    assert {path: at for path, at in after.items() if "roots" not in path.parts} == {
        path: at for path, at in before.items() if "roots" not in path.parts
    }


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ([], "why needs a TARGET"),
        (["build:mm"], "did you mean"),
        (["biuld:m"], "did you mean 'build'?"),
        (["zzz"], "'zzz' is not a stage"),
    ],
)
def test_a_target_that_there_is_not_is_an_error_with_a_hint(workspace: Space, targets: list[str], said: str) -> None:
    result = workspace.run("why", *targets)
    assert result.rc == 3
    assert said in result.err
    assert "Traceback" not in result.err
