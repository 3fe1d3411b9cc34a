"""What this machine cannot hold is told before it is tried, with numbers and a way out."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rules import gpu
from rules.gpu import Card
from rules.host import GIB, RULES, Machine, Needs, Visit, available, left, look
from rules.rule import Rule, findings
from tests.standins import triton

CARD = Card(device="0", sm=90, total=80 * GIB, free=79 * GIB, name="H100")
MACHINE = Machine(
    arch="x86_64",
    memory=64 * GIB,
    disk=500 * GIB,
    shm=32 * GIB,
    devices=2,
    cards=(CARD, replace(CARD, device="1")),
    driver="550.54.15",
    programs=frozenset({"docker", "mpirun"}),
    token=True,
    torch="2.13.0",
)
NEEDS = Needs(
    runners=frozenset({"local", "docker"}),
    gpus=2,
    sms=frozenset({90}),
    gpu_memory=80 * GIB,
    memory=30 * GIB,
    worker=20 * GIB,
    workers=2,
    disk=100 * GIB,
    embedded=True,
    ranks=2,
    measures=True,
    serve=True,
    gated=("hf:o/n",),
)
# rule -> what is needed or there instead, and what is said
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "architecture-served": ({"arch": "aarch64"}, "this machine is aarch64"),
    "runner-installed": ({"runners": frozenset({"podman"})}, "podman is not installed here\n    hint: docker is"),
    "gpus-present": ({"gpus": 4}, "this machine has not enough GPUs\n    needed  4\n    here    2"),
    "gpu-of-the-platform": ({"sms": frozenset({80})}, "GPU 0 is of another architecture\n    asked for  SM 80"),
    "gpu-free": ({"cards": (CARD, replace(CARD, device="1", free=10 * GIB))}, "GPUs are in use\n    GPU 1  10.0 GiB"),
    "gpu-memory-as-said": ({"gpu_memory": 96 * GIB}, "GPUs have less memory than the platform says\n    said  96.0"),
    "driver-carried-forward": ({"driver": "510.108.03"}, "driver 510.108.03 is of a branch"),
    "scales-on-the-gpu": ({"torch": "2.13.0+cpu"}, "PyTorch 2.13.0+cpu is a CPU build: scales will be measured on"),
    "memory-for-build": ({"memory": 65 * GIB}, "host memory does not hold the largest step\n    needed     about 65.0"),
    "workers-fit-memory": ({"workers": 8}, "3 of 8 workers fit host memory\n    a worker   about 20.0 GiB"),
    "disk-for-build": ({"disk_needed": 501 * GIB}, "the disk does not hold what will be made\n    needed  about 501.0"),
    "shm-large-enough": ({"shm": 64 << 20}, "/dev/shm is too small\n    needed  2.0 GiB\n    free    0.1 GiB"),
    "shm-regions-left": ({"regions": 64 * GIB}, "/dev/shm has 64.0 GiB in regions"),
    "ports-free": ({"taken": (8000, 8002)}, "ports in use: 8000, 8002"),
    "sources-pinned": (
        {"unpinned": (("m", "hf:o/n@main"),)},
        "hf:o/n@main is not in models.lock\n    hint: doit lock m",
    ),
    "gated-models-readable": ({"token": False}, "hf:o/n is gated, and HF_TOKEN is not set"),
    "mpi-installed": ({"programs": frozenset({"docker"})}, "mpirun is not installed here"),
}


def visit(changed: dict[str, Any]) -> Visit:
    """A good visit with these changes, whichever of the two they are of."""
    needs = {key.removesuffix("_needed"): value for key, value in changed.items() if key in _NEEDS}
    machine = {key: value for key, value in changed.items() if key not in _NEEDS}
    return Visit(needs=replace(NEEDS, **needs), machine=replace(MACHINE, **machine))


_NEEDS = {"disk_needed", "gpu_memory", "gpus", "memory", "runners", "sms", "unpinned", "worker", "workers"}


def told(of: Visit) -> dict[str, str]:
    return {finding.id: str(finding.problem) for finding in findings(RULES, of)}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_every_rule_about_this_machine_is_shown(rule: Rule[Visit]) -> None:
    assert rule.id in BAD


def test_a_good_machine_is_left_alone() -> None:
    assert told(visit({})) == {}


@pytest.mark.parametrize("rule", BAD)
def test_what_is_missing_is_told_alone_with_numbers(rule: str) -> None:
    changed, what = BAD[rule]
    said = told(visit(changed))
    assert list(said) == [rule]
    assert said[rule].startswith(what)


def test_an_action_that_needs_no_gpu_asks_for_none() -> None:
    bare = Machine(arch="x86_64", memory=GIB, disk=GIB, shm=GIB)
    assert told(Visit(needs=Needs(embedded=True, ranks=1), machine=bare)) == {}


def test_memory_is_what_the_cgroup_leaves(tmp_path: Path) -> None:
    """A container of 8 GiB on a host with 64 free: 5 used, of which 1 is cache that can be dropped."""
    (tmp_path / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable:   {64 << 20} kB\n")
    assert available(tmp_path, tmp_path / "none") == 64 * GIB
    for name, value in (("max", 8 * GIB), ("current", 5 * GIB)):
        (tmp_path / f"memory.{name}").write_text(f"{value}\n")
    assert available(tmp_path, tmp_path) == 3 * GIB
    (tmp_path / "memory.stat").write_text(f"anon 1\ninactive_file {GIB}\n")
    assert available(tmp_path, tmp_path) == 4 * GIB
    (tmp_path / "memory.max").write_text("max\n")
    assert available(tmp_path, tmp_path) == 64 * GIB


def test_the_older_cgroups_are_read_too(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text(f"MemAvailable: {64 << 20} kB\n")
    (tmp_path / "memory").mkdir()
    for name, value in (("limit", 8 * GIB), ("usage", 5 * GIB)):
        (tmp_path / "memory" / f"memory.{name}_in_bytes").write_text(f"{value}\n")
    assert available(tmp_path, tmp_path) == 3 * GIB


def test_a_region_that_a_server_has_mapped_is_not_left_over(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"triton_python_backend_shm_region_{name}").write_bytes(bytes(100))
    (tmp_path / "123").mkdir()
    region = f"7f00-7f01 rw-s 0 00:01 9 {tmp_path}/triton_python_backend_shm_region_two\n"
    (tmp_path / "123" / "maps").write_bytes(
        region.encode() + "7f02-7f03 r--p 0 00:01 8 /models/模型\n".encode() + b"\xe9"
    )
    assert left(tmp_path, tmp_path) == 100


def test_this_machine_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two GPUs and MPI by stand-ins, a region that was left, and a port that a server has."""
    triton.install(tmp_path / "standins", tmp_path / "path", 2)
    (tmp_path / "docker").touch(mode=0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'path'}:{tmp_path}:/bin:/usr/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("rules.host.SHM", str(tmp_path))
    (tmp_path / "triton_python_backend_shm_region_1").write_bytes(bytes(100))
    gpu.machine.cache_clear()
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        monkeypatch.setattr("rules.host.PORTS", (server.getsockname()[1],))
        found = look(tmp_path)
    gpu.machine.cache_clear()
    assert (found.devices, found.driver, [card.sm for card in found.cards]) == (2, "550.54.15", [90, 90])
    assert {"mpirun", "docker"} <= found.programs
    assert (found.regions, len(found.taken)) == (100, 1)
    assert min(found.memory, found.disk, found.shm) > 0
