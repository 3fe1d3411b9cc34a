"""doit is given the tasks that may have something to do, and everything where a command asks for more than that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rules.source import HUB
from tests.lane import toml
from tests.space import SPEC, Space

LATER = "import time\nreal = time.time_ns\ntime.time_ns = lambda: real() + 10**10\n"
OTHER = "def task_other():\n    return {'actions': ['echo other'], 'task_dep': ['build:m']}\n"
VARIANT = "m_int8_wo_isl256_osl64_bs8"


@pytest.fixture
def later(built: Space, tmp_path: Path) -> dict[str, str]:
    """The environment of a doit that runs ten seconds later than it is, so that nothing waits for files to settle."""
    (tmp_path / "later").mkdir()
    (tmp_path / "later/sitecustomize.py").write_text(LATER)
    return {"PYTHONPATH": f"{tmp_path / 'later'}:{built.site}"}


def test_a_build_with_nothing_to_do_loads_neither_plan_nor_executor(built: Space, later: dict[str, str]) -> None:
    assert built.run("smoke", **later).rc == 0
    built.write("dodo.py", built.read("dodo.py") + "import atexit, sys\natexit.register(lambda: print(*sys.modules))\n")
    first, _, modules = built.run("smoke", **later).out.partition("\n")
    assert first == "everything is up to date (6 actions)"
    assert "rules.sweep" in modules
    assert not {"rules.plan", "rules.executor", "pydantic"} & set(modules.split())


def test_a_harm_is_noticed_after_all_was_known_and_only_what_needs_it_is_looked_at(
    built: Space, later: dict[str, str]
) -> None:
    built.run("smoke", **later)
    file = built.root / f"artifacts/build/{VARIANT}/ensemble/config.pbtxt"
    file.chmod(0o644)
    file.write_text("harmed")
    built.poison()
    assert "0 made, 1 from the store, 5 up to date" in built.run("smoke", **later).out
    assert built.run("smoke", **later).out == "everything is up to date (6 actions)\n"


def test_another_tool_runs_again_after_all_was_known(built: Space, later: dict[str, str], own_site: Path) -> None:
    built.run("smoke", **later)
    with (own_site / "rules/tools/render.py").open("a") as tool:
        tool.write("# a comment\n")
    later["PYTHONPATH"] = later["PYTHONPATH"].replace(str(built.site), str(own_site))
    assert "made" in built.run("smoke", **later).out
    assert built.ran()[0] == "render"


@pytest.mark.parametrize("words", [["other"], ["build:m", "other"], ["oth*"]])
def test_a_task_of_the_users_may_need_ours(built: Space, words: list[str]) -> None:
    built.write("dodo.py", built.read("dodo.py") + OTHER)
    assert built.build(*words).startswith(".  other\nother\n")
    assert built.build("build:m") == "everything is up to date (5 actions)\n"


@pytest.mark.parametrize(
    "words", [["build:*"], ["-n", "2", "build"], ["build:m", f"engine:{VARIANT}"], ["run", "build"]]
)
def test_however_it_is_asked_the_answer_is_the_same(built: Space, words: list[str]) -> None:
    assert built.build(*words) == "everything is up to date (5 actions)\n"


def test_always_is_doits(built: Space) -> None:
    assert "everything is up to date (1 actions)" in built.build("--always", "source:m")


def test_another_reporter_hears_of_every_task(built: Space) -> None:
    assert len(built.build("--reporter=console", "build").splitlines()) == 5


def test_a_mistake_is_told_although_all_was_known(built: Space, later: dict[str, str]) -> None:
    built.run("smoke", **later)
    built.write("models.toml", SPEC.replace("int8_wo", "int9"))
    assert "int9" in built.run("smoke", **later).err


BIG = toml(parallelism='["tp8"]')


@pytest.mark.parametrize("target", ["build", "bench:m"])
def test_what_will_fail_is_told_before_anything_runs(workspace: Space, target: str) -> None:
    workspace.write("models.toml", BIG)
    result = workspace.run(target, CUDA_VISIBLE_DEVICES="0,1")
    assert result.rc == 3
    assert "nothing was run (--no-check runs it all the same)" in result.err
    assert "this machine has not enough GPUs" in result.err
    assert "rule: gpus-present" in result.err
    assert workspace.ran() == []


@pytest.mark.parametrize("words", [("--no-check", "source"), ("source", "--no-check")])
def test_the_check_can_be_left_out(workspace: Space, words: tuple[str, ...]) -> None:
    """A model with layers that no disk holds."""
    config = json.loads(HUB.read_text())["Qwen/Qwen2-72B-Instruct"]
    workspace.write("big/config.json", json.dumps({**config, "intermediate_size": 1 << 24}))
    workspace.write("models.toml", BIG.replace("hf:Qwen/Qwen2-72B-Instruct", "file:big"))
    assert "rule: disk-for-build" in workspace.run("source").err
    assert workspace.ran() == []
    assert "disk-for-build" not in workspace.run(*words).err
    assert workspace.ran() == ["fetch"]


def test_what_is_unwise_is_told_and_built(workspace: Space) -> None:
    workspace.write("models.toml", workspace.read("models.toml").replace("[models.m]", "[models.m_72b]"))
    result = workspace.run("source")
    assert result.rc == 0
    assert "warning: models.m_72b: says 72b\n" in result.err
    assert "    rule: name-says-size\n" in result.err
    assert "rule:" not in workspace.run("source").err  # nothing to do, nothing to tell


def test_what_doit_itself_is_asked_is_checked_too(workspace: Space) -> None:
    """All again, or with a task of the user's."""
    workspace.write("models.toml", BIG)
    workspace.write("dodo.py", workspace.read("dodo.py") + OTHER.replace("build:m", "source:m"))
    for words in (("--always", "build"), ("build", "other")):
        result = workspace.run(*words, CUDA_VISIBLE_DEVICES="0,1")
        assert result.rc == 3, words
        assert "rule: gpus-present" in result.err
    assert workspace.ran() == []
