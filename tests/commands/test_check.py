"""`doit check`: one look at a models.toml, for people and for programs."""

from __future__ import annotations

import json

from rules.commands.check import as_text
from rules.errors import Problem
from rules.rule import Finding
from tests.lane import toml
from tests.space import Space

UNWISE = toml(parallelism='["tp8"]', build="{ use_paged_context_fmha = true }")


def test_a_good_file_is_clean_and_nothing_has_run(workspace: Space) -> None:
    result = workspace.run("check")
    assert (result.rc, result.err) == (0, "")
    assert result.out.startswith("no errors, no warnings; ")
    assert workspace.ran() == []


def test_what_is_unwise_is_told_by_entry_with_its_id_and_exit_0(workspace: Space) -> None:
    workspace.write("models.toml", UNWISE)
    result = workspace.run("check")
    assert result.rc == 0
    assert result.out.startswith("models.m\n  warning [paged-context-used] build.use_paged_context_fmha: nothing that")
    assert "no errors, 1 warning; " in result.out
    assert "\033" not in result.out


def test_a_mistake_is_exit_3_and_hides_no_warning(workspace: Space) -> None:
    workspace.write("models.toml", UNWISE.replace('["fp16"]', '["fp61"]'))
    result = workspace.run("check")
    assert result.rc == 3
    assert result.out.index("error [precision-offered]") < result.out.index("warning [paged-context-used]")


def test_programs_get_ids_numbers_and_a_fix(workspace: Space) -> None:
    workspace.write("models.toml", toml(parallelism='["tp3"]'))
    result = workspace.run("check", "--json")
    assert result.rc == 3
    first = json.loads(result.out)["findings"][0]
    assert first == {
        "id": "tp-divides-heads",
        "severity": "error",
        "where": "models.m",
        "what": "models.m.parallelism: tp 3 does not divide the heads",
        "facts": {"attention heads": "64", "KV heads": "8"},
        "hint": "tp may be 1, 2, 4, 8, 16, 32, 64",
    }


def test_a_target_is_looked_at_alone(workspace: Space) -> None:
    other = UNWISE[UNWISE.index("[models.m]") :].replace("[models.m]", "[models.n]")
    workspace.write("models.toml", toml(parallelism='["tp8"]') + other)
    assert "paged-context-used" not in workspace.run("check", "m").out
    for target in ("n", "build:n", "engine:n_tp8_fp16", "n_tp8_fp16_isl2048_osl1024_bs8"):
        assert "paged-context-used" in workspace.run("check", target).out, target


def test_a_target_that_this_machine_cannot_make_is_exit_3(workspace: Space) -> None:
    workspace.write("models.toml", toml(parallelism='["tp8"]'))
    assert workspace.run("check").rc == 0
    result = workspace.run("check", "m", CUDA_VISIBLE_DEVICES="0,1")
    assert result.rc == 3
    assert (
        "this machine\n  error [gpus-present] this machine has not enough GPUs\n      needed  8\n      here    2"
        in result.out
    )


def test_a_target_that_there_is_not_names_the_nearest(workspace: Space) -> None:
    result = workspace.run("check", "m_int8")
    assert result.rc == 3
    assert "there is no 'build:m_int8'" in result.err
    assert "m_int8_wo" in result.err


def test_a_folder_without_a_models_toml_is_told(workspace: Space) -> None:
    (workspace.root / "models.toml").unlink()
    result = workspace.run("check")
    assert result.rc == 3
    assert "models.toml cannot be read" in result.err


def test_colours_are_for_a_terminal() -> None:
    problem = Problem(what="models.m.parallelism: tp 3", facts=(("heads", "16"),), hint="tp 4")
    found = [Finding(id="tp-divides-heads", severity="error", problem=problem)]
    assert as_text(found, colour=True).splitlines()[:3] == [
        "models.m",
        "  \033[31merror [tp-divides-heads]\033[0m parallelism: tp 3",
        "      heads  16",
    ]
