"""The command line that starts Triton for a TensorRT-LLM engine, as the release's launch_triton_server.py composes it.

Leader mode: one server process per rank under mpirun; rank 0 answers requests and the others wait inside the engine.
Orchestrator mode: one server process, whose engines spawn their ranks by themselves. Unlike in upstream's script, the
prefix of the shared-memory regions can be given: two servers of one machine with the same prefix break each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from rules.release import Release, having

__all__ = ["ENGINE", "PORTS", "UNBOUND", "Launch", "Mode", "argv", "environment", "orchestrating"]

Mode = Literal["leader", "orchestrator"]
PORTS = (8000, 8001, 8002)  # HTTP, gRPC, metrics: Triton's own
ENGINE = "tensorrt_llm"
# OpenMPI binds each of one or two ranks to one core (seen with 4.1.6: nproc is 1 of 16), and with it Triton, which
# tokenizes and answers there too. The second name is that of OpenMPI 5.
UNBOUND = {"OMPI_MCA_hwloc_base_binding_policy": "none", "PRTE_MCA_hwloc_default_binding_policy": "none"}
_MULTI, _SPAWN, _NO_MPI = "multi-model", "disable-spawn-processes", "no-mpi"


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One server. `world_size` is the engine's, `gpus` how many the server sees, `ports` HTTP, gRPC and metrics, or
    words that stand for them.

    With a `log`, Triton writes verbosely into that file; without, what it says is on its standard error. `across` are
    mpirun's own words for the machines, when the ranks are on several.
    """

    world_size: int
    repository: str
    ports: tuple[int | str, int | str, int | str] = PORTS
    mode: Mode = "leader"
    gpus: int = 0
    log: str = ""
    prefix: str = "prefix"
    across: tuple[str, ...] = ()


def argv(release: Release, launch: Launch) -> list[str]:
    """One mpirun with a block of arguments per rank. In orchestrator mode there is one block, whatever the ranks."""
    ranks = launch.world_size if launch.mode == "leader" else 1
    blocks = [word for rank in range(ranks) for word in _block(release, launch, rank)]
    return ["mpirun", "--allow-run-as-root", *launch.across, *blocks]


def environment(release: Release, launch: Launch) -> dict[str, str]:
    """What upstream's script sets beside the arguments, and that ranks may use every core, which it forgets."""
    if launch.mode == "leader":
        return dict(UNBOUND)
    spawn = {"TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES": "1"} if _SPAWN in release.flags("launch") else {}
    return {**UNBOUND, "TRTLLM_ORCHESTRATOR": "1", **spawn}


def orchestrating() -> tuple[str, ...]:
    """The releases that have orchestrator mode."""
    return having(lambda release: _MULTI in release.flags("launch"))


def _block(release: Release, launch: Launch, rank: int) -> Iterator[str]:
    """The arguments of one rank. From 0.19 on the ports are written twice, as upstream does."""
    flags = release.flags("launch")
    yield from ("-n", "1", str(flags["tritonserver"].default), f"--model-repository={launch.repository}")
    if _NO_MPI in flags:
        yield from _ports(launch)
    if launch.log and rank == 0:
        yield from ("--log-verbose=3", f"--log-file={launch.log}")
    if rank:
        yield from ("--model-control-mode=explicit", f"--load-model={ENGINE}")
    if launch.mode == "orchestrator" and _SPAWN in flags:  # or this process would take memory of every GPU
        yield from ("--pinned-memory-pool-byte-size=0", "--enable-peer-access=false")
        yield from (f"--cuda-memory-pool-byte-size={gpu}:0" for gpu in range(launch.gpus))
    yield from _ports(launch)
    yield "--disable-auto-complete-config"
    yield from (f"--backend-config=python,shm-region-prefix-name={launch.prefix}{rank}_", ":")


def _ports(launch: Launch) -> Iterator[str]:
    http, grpc, metrics = launch.ports
    yield from (f"--grpc-port={grpc}", f"--http-port={http}", f"--metrics-port={metrics}")
