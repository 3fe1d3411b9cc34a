"""`doit plan`: what would run, and that it then is what runs."""

from __future__ import annotations

import json

from tests.lane import toml
from tests.space import HEAD, SPEC, Space

FIELDS = {
    "name",
    "stage",
    "variant",
    "key",
    "status",
    "reasons",
    "argv",
    "env",
    "toolchain",
    "platform",
    "inputs",
    "outputs",
    "gpus",
    "expected_seconds",
    "expected_bytes",
}
VARIANT = "m_int8_wo_isl256_osl64_bs8"


def statuses(space: Space, *targets: str) -> dict[str, str]:
    rows = json.loads(space.run("plan", "--json", *targets).out)["actions"]
    return {row["name"]: row["status"] for row in rows}


def test_a_plan_runs_nothing_and_names_what_would(workspace: Space) -> None:
    found = statuses(workspace, "smoke")
    assert found == {
        "source:m": "run",
        "checkpoint:m_fp32": "blocked",
        "checkpoint:m_int8_wo": "blocked",
        f"engine:{VARIANT}": "blocked",
        f"build:{VARIANT}": "blocked",
        f"smoke:{VARIANT}": "blocked",
    }
    assert workspace.ran() == []


def test_to_measure_takes_what_a_build_makes(workspace: Space) -> None:
    assert statuses(workspace, "bench:m", "eval") == statuses(workspace, "build")


def test_each_row_has_every_field(workspace: Space) -> None:
    plan = json.loads(workspace.run("plan", "--json").out)
    assert plan["version"] == 1
    assert all(set(row) == FIELDS for row in plan["actions"])


def test_a_plan_is_in_an_order_that_can_be_run(workspace: Space) -> None:
    rows = json.loads(workspace.run("plan", "--json", "smoke").out)["actions"]
    seen: set[str] = set()
    for row in rows:
        needs = {source for source in row["inputs"].values() if isinstance(source, str) and ":" in source}
        assert needs <= seen
        seen.add(row["name"])


def test_the_command_line_is_the_one_that_ran(workspace: Space) -> None:
    workspace.write("control/openvino_compile.py", "import sys; print('argv', *sys.orig_argv)")
    workspace.build()
    workspace.write("models.toml", workspace.read("models.toml").replace("osl = 64", "osl = 32"))
    rows = json.loads(workspace.run("plan", "--json", "engine").out)["actions"]
    workspace.build()
    log = workspace.read("artifacts/logs/engine/m_int8_wo_isl256_osl32_bs8.log")
    assert f"argv {' '.join(rows[-1]['argv'])}" in log


def test_after_a_build_everything_is_fresh(workspace: Space) -> None:
    workspace.build()
    assert set(statuses(workspace).values()) == {"fresh"}
    assert "5 fresh" in workspace.run("plan").out


def test_a_change_is_planned_with_its_reason(workspace: Space) -> None:
    workspace.build()
    workspace.write("models.toml", workspace.read("models.toml") + "serving = { streaming = false }\n")
    result = workspace.run("plan", "smoke")
    assert "- arg --set=decoupled_mode=true" in result.out
    assert "+ arg --set=decoupled_mode=false" in result.out
    assert statuses(workspace, "build")[f"build:{VARIANT}"] == "run"


def test_an_unknown_target_ends_with_the_nearest_name(workspace: Space) -> None:
    result = workspace.run("plan", "build:m_int8")
    assert result.rc == 3
    assert "did you mean 'm_int8_wo'" in result.err
    assert "Traceback" not in result.err


def test_what_is_unwise_is_a_warning_beside_the_plan(workspace: Space) -> None:
    serving = "{ max_tokens_in_paged_kv_cache = 8560 }"
    workspace.write("models.toml", toml(serving=serving))
    result = workspace.run("plan", "--json", "engine")
    assert result.rc == 0
    assert json.loads(result.out)["actions"]
    assert result.err.startswith("warning: models.m.serving.max_tokens_in_paged_kv_cache: 2.8 of 8 full requests fit\n")


def test_without_a_target_the_plan_is_of_what_doit_alone_makes(workspace: Space) -> None:
    workspace.write(
        "models.toml", f'default = ["m_int8_wo"]\n{SPEC}{SPEC.replace(HEAD, "").replace("[models.m]", "[models.n]")}'
    )
    assert f"build:{VARIANT}" in statuses(workspace)
    assert not [name for name in statuses(workspace) if ":n" in name]
    assert [name for name in statuses(workspace, "build") if ":n" in name]
