"""The launcher's command lines are those of upstream's script, release by release."""

from __future__ import annotations

import json
import re

import pytest

from rules.launcher import UNBOUND, Launch, Mode, argv, environment, orchestrating
from rules.release import load, versions
from tests.fakes import PROJECT

# What get_cmd() of each release's launch_triton_server.py composes for two GPUs, run under stub modules.
UPSTREAM = json.loads((PROJECT / "tests/golden/launch.json").read_text("utf-8"))
CASES: dict[str, tuple[int, Mode, str]] = {
    "single_rank": (1, "leader", ""),
    "single_rank_log": (1, "leader", "triton_log.txt"),
    "leader_world_size_2": (2, "leader", ""),
    "leader_world_size_2_log": (2, "leader", "triton_log.txt"),
    "multi_model_spawn": (1, "orchestrator", ""),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("version", UPSTREAM)
def test_a_command_line_is_that_of_the_releases_own_launcher(version: str, case: str) -> None:
    ranks, mode, log = CASES[case]
    if case not in UPSTREAM[version]:
        assert version not in orchestrating()
        return
    made = argv(load(version), Launch(world_size=ranks, repository="REPO", mode=mode, gpus=2, log=log))
    server = "/opt/tritonserver/bin/tritonserver"
    assert " ".join("TRITONSERVER" if word == server else word for word in made) == UPSTREAM[version][case]


def test_a_release_after_the_last_tag_that_was_run_starts_as_that_one() -> None:
    launch = Launch(world_size=4, repository="REPO")
    newer = [version for version in versions() if version not in UPSTREAM]
    assert newer[0] == "0.20.0"
    assert {tuple(argv(load(version), launch)) for version in newer} == {tuple(argv(load("0.19.0"), launch))}


def test_an_engines_ranks_are_spawned_by_the_orchestrator_and_not_by_mpirun() -> None:
    launch = Launch(world_size=8, repository="REPO", mode="orchestrator", gpus=8)
    assert argv(load("0.11.0"), launch).count("-n") == 1
    assert environment(load("0.11.0"), launch) == {"TRTLLM_ORCHESTRATOR": "1", **UNBOUND}
    assert environment(load("0.13.0"), launch)["TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES"] == "1"


def test_a_server_may_use_every_core_of_the_machine() -> None:
    """By default OpenMPI binds one rank or two to a core each; upstream's line says nothing about it."""
    assert environment(load("0.13.0"), Launch(world_size=2, repository="REPO")) == UNBOUND
    assert UNBOUND["OMPI_MCA_hwloc_base_binding_policy"] == "none"


def test_every_rank_has_a_region_prefix_of_its_own_and_the_others_load_the_engine_alone() -> None:
    made = " ".join(argv(load("0.17.0"), Launch(world_size=3, repository="/repository", prefix="doit_7_")))
    assert re.findall(r"prefix-name=(\S+)", made) == ["doit_7_0_", "doit_7_1_", "doit_7_2_"]
    assert made.count("--load-model=tensorrt_llm") == 2
