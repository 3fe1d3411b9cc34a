"""Whether this machine can run what is asked of it: rules about the host, told before a command runs into them.

What is needed is counted elsewhere: nothing here knows a model. Sizes are bytes.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from rules import gpu
from rules.errors import Problem
from rules.gpu import Card
from rules.rule import Rule, error, warning

__all__ = ["RULES", "Machine", "Needs", "Visit", "available", "left", "look"]

GIB = 1 << 30
PORTS = (8000, 8001, 8002)  # of a served Triton: HTTP, gRPC, metrics
PROGRAMS = ("docker", "podman", "mpirun")
SHM = "/dev/shm"  # noqa: S108 - nothing is written there
REGIONS = "triton_python_backend_shm_region_*"
_SHM_PER_RANK = GIB  # NVIDIA's containers advise 1 GiB and up; docker's own 64 MiB is what fills
_SHM_HERE = 64 << 20
# Branches that CUDA's compatibility package does not carry forward: Triton's release notes 24.07 and 25.08.
_STRANDED = (418, 440, 450, 460, 510, 520)


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What the actions that would run need. `sms` are compute capabilities x 10, `memory` is of one command.

    `measures` says that a checkpoint's scales are measured with PyTorch, on a GPU and outside a container.
    `workers` commands of `worker` bytes each may run at once. `ranks` of a server start here, outside a container, and
    `serve` says that it takes the usual ports. `unpinned` are (model, source) that models.lock does not have, `gated`
    the sources on Hugging Face's hub that have to be downloaded and want to know who asks.
    """

    runners: frozenset[str] = frozenset()
    gpus: int = 0
    sms: frozenset[int] = frozenset()
    gpu_memory: int = 0
    memory: int = 0
    worker: int = 0
    workers: int = 1
    disk: int = 0
    embedded: bool = False
    ranks: int = 0
    serve: bool = False
    measures: bool = False
    unpinned: tuple[tuple[str, str], ...] = ()
    gated: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What there is. `devices` are the GPUs that may be used, `cards` what the driver says of them; `token` says that
    there is one of Hugging Face's hub; `torch` is PyTorch's version.
    """

    arch: str
    memory: int
    disk: int
    shm: int
    regions: int = 0
    devices: int = 0
    cards: tuple[Card, ...] = ()
    driver: str = ""
    programs: frozenset[str] = frozenset()
    taken: tuple[int, ...] = ()
    token: bool = False
    torch: str = ""


@dataclass(frozen=True, kw_only=True)
class Visit:
    """What is needed, on the machine that there is."""

    needs: Needs
    machine: Machine


def look(folder: Path) -> Machine:
    """What there is here; `folder` is where results will lie."""
    shm = Path(SHM)
    return Machine(
        arch=platform.machine(),
        memory=available(Path("/proc"), Path("/sys/fs/cgroup")),
        disk=shutil.disk_usage(folder).free,
        shm=shutil.disk_usage(shm).free if shm.is_dir() else 0,
        regions=left(shm, Path("/proc")),
        devices=len(gpu.machine().devices),
        cards=gpu.cards(),
        driver=gpu.driver(),
        programs=frozenset(name for name in PROGRAMS if shutil.which(name)),
        taken=tuple(port for port in PORTS if _taken(port)),
        token=bool(os.environ.get("HF_TOKEN")) or _token_file().is_file(),
        torch=_torch(),
    )


def left(shm: Path, proc: Path) -> int:
    """Bytes of our regions of Triton's Python backend that no process has mapped any more."""
    ours: dict[str, int] = {}
    for path in shm.glob(REGIONS):
        with contextlib.suppress(FileNotFoundError):  # of a server that is just ending
            found = path.stat()
            ours |= {str(path): found.st_size} if found.st_uid == os.getuid() else {}
    for maps in proc.glob("[0-9]*/maps") if ours else ():
        text = _read(maps)
        ours = {path: size for path, size in ours.items() if path not in text}
    return sum(ours.values())


def available(proc: Path, cgroup: Path) -> int:
    """Bytes that a process can still get: what the kernel says, or the cgroup's limit where that is nearer."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _read(proc / "meminfo"), re.MULTILINE)
    whole = int(found[1]) * 1024 if found else 0
    for limit, used, stat, cache in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ):
        said, taken = _read(cgroup / limit).strip(), _read(cgroup / used).strip()
        if said.isdigit() and taken.isdigit():
            unused = re.search(rf"^{cache} (\d+)", _read(cgroup / stat), re.MULTILINE)
            return min(whole, int(said) - int(taken) + (int(unused[1]) if unused else 0))
    return whole


@error("run it on 64-bit x86 Linux", estimate=True)
def architecture_served(visit: Visit) -> Iterator[Problem]:
    """The embedded engine and its Triton are built for 64-bit x86 Linux."""
    if visit.needs.embedded and visit.machine.arch not in ("x86_64", "AMD64"):
        what = f"this machine is {visit.machine.arch}: the embedded lane is for x86_64"
        yield Problem(what=what, hint="build it on another machine, with a shared cache")


@error("install it, or write another runner", "backend#451", estimate=True)
def runner_installed(visit: Visit) -> Iterator[Problem]:
    """The program that runs containers is there."""
    for name in sorted(visit.needs.runners - {"local"} - visit.machine.programs):
        there = ", ".join(sorted(visit.machine.programs & {"docker", "podman"}))
        hint = f'{there} is: write runner = "{there}"' if there in ("docker", "podman") else "install it"
        yield Problem(what=f"{name} is not installed here", hint=hint)


@error("build it where there are enough GPUs", "TRT-LLM#2021", "backend#33", "backend#576", estimate=True)
def gpus_present(visit: Visit) -> Iterator[Problem]:
    """There is a GPU for each rank that is built or served at a time."""
    if visit.needs.gpus > visit.machine.devices:
        facts = (("needed", str(visit.needs.gpus)), ("here", str(visit.machine.devices)))
        hint = "`doit plan` works anywhere; CUDA_VISIBLE_DEVICES limits what is seen"
        yield Problem(what="this machine has not enough GPUs", facts=facts, hint=hint)


@error("build on the platform's own GPUs", "TRT-LLM#222", "TRT-LLM#3031", "llama_index#12318", estimate=True)
def gpu_of_the_platform(visit: Visit) -> Iterator[Problem]:
    """An engine is built on the architecture that it is for."""
    if not visit.needs.gpus:
        return
    for card in visit.machine.cards:
        wrong = [sm for sm in sorted(visit.needs.sms) if card.sm and sm != card.sm]
        if wrong:
            facts = (("asked for", ", ".join(f"SM {sm}" for sm in wrong)), ("here", f"{card.name}, SM {card.sm}"))
            hint = "change `platform`, or CUDA_VISIBLE_DEVICES where GPUs are mixed"
            yield Problem(what=f"GPU {card.device} is of another architecture", facts=facts, hint=hint)
            return


@warning("end what runs there, or wait", "backend#303", "TRT-LLM#1543", "backend#462")
def gpu_free(visit: Visit) -> Iterator[Problem]:
    """The GPUs are free: TensorRT measures kernels on them, and the KV cache is a fraction of what is free."""
    busy = [card for card in visit.machine.cards if card.total and card.free < 0.9 * card.total]
    if busy and len(visit.machine.cards) - len(busy) < visit.needs.gpus:
        facts = tuple((f"GPU {card.device}", f"{_gib(card.free)} of {_gib(card.total)} free") for card in busy)
        yield Problem(what="GPUs are in use", facts=facts, hint="nvidia-smi tells by whom")


@warning("write the platform's `memory_gib` as it is", "backend#625")
def gpu_memory_as_said(visit: Visit) -> Iterator[Problem]:
    """The GPUs have the memory that the platform says, with which the KV cache was reckoned."""
    small = [card for card in visit.machine.cards if 0 < card.total < 0.9 * visit.needs.gpu_memory]
    if visit.needs.gpus and small:
        facts = (("said", _gib(visit.needs.gpu_memory)), ("here", f"{small[0].name}, {_gib(small[0].total)}"))
        yield Problem(what="GPUs have less memory than the platform says", facts=facts, hint="change memory_gib")


@warning("update the driver", "server#6839", "TRT-LLM#1695")
def driver_carried_forward(visit: Visit) -> Iterator[Problem]:
    """The images' CUDA runs on the driver: a newer one, or one that CUDA's compatibility package knows."""
    branch = visit.machine.driver.partition(".")[0]
    if visit.needs.gpus and branch.isdigit() and int(branch) in _STRANDED:
        what = f"driver {visit.machine.driver} is of a branch that newer CUDA does not run on"
        yield Problem(what=what, hint="take a long-term branch: 535, 550 or later")


@warning("install PyTorch's CUDA build, as docs/trtllm.md says")
def scales_on_the_gpu(visit: Visit) -> Iterator[Problem]:
    """Scales are measured with PyTorch, whose CPU build takes hours for what a GPU does in minutes."""
    if visit.needs.measures and visit.machine.torch.endswith("+cpu"):
        what = f"PyTorch {visit.machine.torch} is a CPU build: scales will be measured on the CPU"
        yield Problem(what=what)


@error("more memory, a smaller tp's worth of model, or another machine", "TRT-LLM#102", "TRT-LLM#577", estimate=True)
def memory_for_build(visit: Visit) -> Iterator[Problem]:
    """The host has memory for the largest step, in this cgroup: a build that has none is killed without a word."""
    need, have = max(visit.needs.memory, visit.needs.worker), visit.machine.memory
    if have and need > have:
        facts = (("needed", f"about {_gib(need)}"), ("available", _gib(have)))
        yield Problem(what="host memory does not hold the largest step", facts=facts, hint="or --no-check, with swap")


@warning("nothing: fewer workers run at a time", "TRT-LLM#102", "TRT-LLM#743", "TRT-LLM#538", "TRT-LLM#236")
def workers_fit_memory(visit: Visit) -> Iterator[Problem]:
    """Each worker of a build holds a rank of its own: as many run at a time as the host's memory holds."""
    needs, have = visit.needs, visit.machine.memory
    fit = have // needs.worker if needs.worker and have else needs.workers
    if 0 < fit < needs.workers:
        facts = (("a worker", f"about {_gib(needs.worker)}"), ("available", _gib(have)))
        yield Problem(
            what=f"{fit} of {needs.workers} workers fit host memory", facts=facts, hint="the build takes that many"
        )


@error("free some space, or put `cache.dir` elsewhere", "TRT-LLM#976", estimate=True)
def disk_for_build(visit: Visit) -> Iterator[Problem]:
    """The disk holds what will be made."""
    if visit.needs.disk > visit.machine.disk:
        facts = (("needed", f"about {_gib(visit.needs.disk)}"), ("free", _gib(visit.machine.disk)))
        yield Problem(what="the disk does not hold what will be made", facts=facts, hint="doit cache gc frees space")


@warning("give the container --shm-size=1g and more", "TRT-LLM#1021", "backend#562", "backend#712")
def shm_large_enough(visit: Visit) -> Iterator[Problem]:
    """Triton's Python backend and NCCL talk through /dev/shm: when it is full they end with a bus error."""
    gpus = min(visit.needs.ranks, visit.needs.gpus)
    need = max(_SHM_HERE, _SHM_PER_RANK * gpus) if visit.needs.ranks else 0
    if visit.machine.shm < need:
        facts = (("needed", _gib(need)), ("free", _gib(visit.machine.shm)))
        yield Problem(what=f"{SHM} is too small", facts=facts, hint="docker run --shm-size=32g")


@warning("end old servers, then remove the files", "backend#562", "TRT-LLM#602")
def shm_regions_left(visit: Visit) -> Iterator[Problem]:
    """Regions of servers that were killed fill /dev/shm. Told when they take an eighth of it."""
    left, free = visit.machine.regions, visit.machine.shm
    if left * 8 > left + free and (visit.needs.ranks or visit.needs.serve):
        what = f"{SHM} has {_gib(left)} in regions of Triton's Python backend that no server uses"
        yield Problem(what=what, hint=f"if no server starts just now: rm {SHM}/{REGIONS}")


@warning("`doit stop`, or serve on other ports", "backend#243", "backend#524", "server#7211")
def ports_free(visit: Visit) -> Iterator[Problem]:
    """The ports that `doit serve` takes are free; another server there answers in its place."""
    if visit.needs.serve and visit.machine.taken:
        what = f"ports in use: {', '.join(map(str, visit.machine.taken))}"
        yield Problem(what=what, hint="doit serve has options for other ports")


@error("install OpenMPI, or run in the release's container", "TRT-LLM#2405", "TRT-LLM#1826", estimate=True)
def mpi_installed(visit: Visit) -> Iterator[Problem]:
    """Ranks that run without a container are started by mpirun."""
    if visit.needs.ranks > 1 and "mpirun" not in visit.machine.programs:
        yield Problem(what="mpirun is not installed here", hint='install OpenMPI, or write runner = "docker"')


@error("`doit lock`, and models.lock into git", "huggingface_hub#1903", "huggingface_hub#3007", estimate=True)
def sources_pinned(visit: Visit) -> Iterator[Problem]:
    """What is on a hub or in a bucket is built as models.lock has it, so that two machines build the same."""
    for model, place in visit.needs.unpinned:
        yield Problem(what=f"{place} is not in models.lock", hint=f"doit lock {model}")


@error("set HF_TOKEN to a token of an account with access", "TRT-LLM#2357", estimate=True)
def gated_models_readable(visit: Visit) -> Iterator[Problem]:
    """A gated model is downloaded with a token; without one the build would end there, however late that is."""
    if not visit.machine.token:
        hint = "ask for access on the model's page, then set HF_TOKEN to a token of that account"
        for place in visit.needs.gated:
            yield Problem(what=f"{place} is gated, and HF_TOKEN is not set", hint=hint)


RULES: tuple[Rule[Visit], ...] = (
    architecture_served,
    runner_installed,
    gpus_present,
    gpu_of_the_platform,
    gpu_free,
    gpu_memory_as_said,
    driver_carried_forward,
    scales_on_the_gpu,
    memory_for_build,
    workers_fit_memory,
    disk_for_build,
    shm_large_enough,
    shm_regions_left,
    ports_free,
    mpi_installed,
    sources_pinned,
    gated_models_readable,
)


def _token_file() -> Path:
    """Where `hf auth login` writes it: huggingface.co/docs/huggingface_hub/package_reference/environment_variables."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.environ.get("HF_TOKEN_PATH") or Path(home, "token")).expanduser()


def _torch() -> str:
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return ""


def _taken(port: int) -> bool:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")  # maps name files, in whatever encoding
    except OSError:
        return ""


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size * 20 > GIB else f"{size / (1 << 20):.1f} MiB"
