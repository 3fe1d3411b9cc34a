"""Which servers a wish becomes: engines read and checked, GPUs chosen and held, ports given out.

`doit serve` runs what `launch_argv` and `tool_argv` say as it is; `bench:X` has the load tool run what `command` says.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rules import backend, built, gpu, launcher, placement, workbench
from rules.built import Built
from rules.errors import BuildError, Misconfigured, Problem
from rules.launcher import Mode
from rules.runners import docker, local
from rules.server import Engine, Server, container
from rules.variant import Variant
from rules.workspace import Workspace

__all__ = [
    "Wish",
    "command",
    "launch_argv",
    "on_gpus",
    "require_here",
    "servers",
    "surroundings",
    "tool_argv",
    "unwise",
]

_TOOLS = Path(__file__).parent / "tools"
_FRACTION = 0.9  # upstream's own for kv_cache_free_gpu_mem_fraction
_SHM, _SHM_PER_RANK = Path("/dev/shm"), 1 << 30  # noqa: S108


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the user asks for. `ports` are the first server's (HTTP, gRPC, metrics), 0 a free one; `gpus` one list per
    server, or none, which are `held` by this process already or not. `real` is False when it is only to be shown: then
    nothing is asked of the machine.
    """

    ports: tuple[int, int, int] = launcher.PORTS
    host: str = "127.0.0.1"
    gpus: tuple[tuple[str, ...], ...] = ()
    instances: int = 1
    mode: Mode = "leader"
    verbose: bool = False
    real: bool = True
    held: bool = False


def servers(space: Workspace, variants: Sequence[Variant], wish: Wish, base: Path) -> list[Server]:
    """One server per variant and instance; in orchestrator mode one for all. Files of theirs begin with `base`.

    Raises BuildError when engine, image and GPUs do not match. The GPUs are held by this process from now on.
    """
    engines = [_engine(space, variant, wish) for variant in variants]
    problems = [*_mismatches(space, engines, wish), *_unorchestrated(engines, wish)]
    if problems:
        raise Misconfigured(problems)
    named = [(engine, of) for engine in engines for of in _lists(engine, wish, space.plan.spec.serve.gpus)]
    several = [engine for engine, _ in named]
    places = _places(several, wish, wish.gpus or [of for _, of in named])
    groups = list(zip(([one] for one in several), ([place] for place in places), strict=True))
    if wish.mode == "orchestrator":
        groups = [(several, places)]
    return [
        Server(
            engines=group,
            places=placed,
            folder=Path(f"{base}.{index}"),
            host=wish.host,
            ports=_ports(wish, index),
            mode=wish.mode,
            verbose=wish.verbose,
            instance=[one[0].name for one, _ in groups[:index]].count(group[0].name),
        )
        for index, (group, placed) in enumerate(groups)
    ]


def on_gpus(space: Workspace, variant: Variant) -> bool:
    """Whether its server is one of the TensorRT-LLM lane."""
    return backend.find(space.plan.spec.toolchains[variant.toolchain].backend).device == "gpu"


def command(space: Workspace, variant: Variant, devices: tuple[str, ...], base: Path) -> list[str]:
    """The program that serves a built variant alone, on free ports and on `devices`, which are held, until a signal.

    When it is ready it prints `tritonserver: ready`, and `base` with .json says where. Raises BuildError as `servers`.
    """
    wish = Wish(ports=(0, 0, 0), gpus=(devices,), held=True)
    if on_gpus(space, variant):
        return launch_argv(servers(space, [variant], wish, base), base, space.plan.spec.serve.load_timeout_s)
    folder = space.executor.artifacts.folder(f"build:{variant.name}").absolute()
    return tool_argv({variant.name: folder}, dict.fromkeys(("http", "grpc", "metrics"), 0), wish.host, base)


def require_here(demands: Sequence[tuple[str, int]]) -> None:
    """(name, ranks) of servers that this machine has GPUs for. Raises Misconfigured for those of several machines."""
    there = len(gpu.machine().devices)
    problems = [
        Problem(
            what=f"{name}: {ranks} ranks are more than the {there} GPUs of this machine",
            hint=f"doit k8s:{name} writes what serves it on several nodes; then doit bench {name} --url http://HOST:PORT",
        )
        for name, ranks in demands
        if ranks > there > 0
    ]
    if problems:
        raise Misconfigured(problems)


def surroundings(space: Workspace, variant: Variant) -> dict[str, str | None]:
    """The variables of the user's that the server's command needs: an image's own here, the service's for docker."""
    action = space.plan.actions[f"engine:{variant.name}"]
    if not on_gpus(space, variant):
        return {}
    return workbench.passed(action.passes if action.runner == "local" else docker.THEIRS)


def launch_argv(made: Sequence[Server], base: Path, load_seconds: float) -> list[str]:
    """The command line of rules/tools/launch. Servers that share a GPU start one after the other."""
    wait = ["--one-by-one"] if placement.shared([place for server in made for place in server.places]) else []
    named = [f"--server={json.dumps(server.text())}" for server in made]
    return [
        sys.executable,
        "-I",
        str(_TOOLS / "launch" / "launch.py"),
        *named,
        *wait,
        f"--load-seconds={load_seconds:g}",
        f"--state={base}.json",
    ]


def tool_argv(chosen: Mapping[str, Path], ports: Mapping[str, int], host: str, base: Path) -> list[str]:
    """The command line of rules/tools/serve.py; state and log are `base` with .json and .log."""
    named = [f"--repository={name}={folder}" for name, folder in chosen.items()]
    listening = [f"--{name}-port={port}" for name, port in ports.items()]
    files = [f"--log={base}.log", f"--state={base}.json"]
    return [sys.executable, "-I", str(_TOOLS / "serve.py"), *named, f"--host={host}", *listening, *files]


def unwise(made: Sequence[Server]) -> list[Problem]:
    """A /dev/shm too small for the ranks that run on this machine itself."""
    ranks = sum(len(server.devices) for server in made if not server.engines[0].contained)
    free = shutil.disk_usage(_SHM).free if ranks and _SHM.exists() else None
    if free is None or free >= ranks * _SHM_PER_RANK:
        return []
    facts = (("free", f"{free / (1 << 30):.2f} GiB"), ("ranks", str(ranks)))
    hint = "NCCL and Triton's Python backend share it; a container gets more with --shm-size=32g"
    return [Problem(what=f"{_SHM} is small", facts=facts, hint=hint)]


def _engine(space: Workspace, variant: Variant, wish: Wish) -> Engine:
    """Only shown and not built yet, an engine is taken to be what models.toml says."""
    folder = space.executor.artifacts.folder(f"build:{variant.name}")
    try:
        found = built.read(folder / "tensorrt_llm" / "1" / "engine")
    except BuildError:
        if wish.real:
            raise
        found = Built(version="", ranks=(0,) * variant.parallelism.world_size, request=0, batch=variant.shape.batch)
    action = space.plan.actions[f"engine:{variant.name}"]
    return Engine(variant=variant, repository=folder, action=action, built=found)


def _mismatches(space: Workspace, engines: Iterable[Engine], wish: Wish) -> list[Problem]:
    """Engines of another version than their toolchain's, and images or installations of another than declared."""
    problems: list[Problem] = []
    for engine in engines if wish.real else ():
        declared = engine.toolchain["tensorrt_llm"]
        if engine.built.version.partition(".post")[0] != engine.release.version:
            facts = (("engine", engine.built.version), ("toolchain", declared))
            hint = "an engine runs only on the release that built it: build it again"
            problems.append(Problem(what=f"{engine.name}: the engine is of another release", facts=facts, hint=hint))
        if engine.contained:
            known = space.executor.artifacts.root / "images"
            problems += docker.mismatches(container(engine), engine.action.toolchain, known)
        else:
            problems += local.mismatches(engine.action.toolchain)
    return list({str(problem): problem for problem in problems}.values())


def _unorchestrated(engines: Sequence[Engine], wish: Wish) -> list[Problem]:
    if wish.mode == "leader":
        return []
    if wish.instances > 1:
        return [Problem(what="an orchestrator is one server", hint="leave --instances out")]
    if len({engine.action.toolchain for engine in engines}) > 1:
        facts = tuple((engine.name, engine.release.version) for engine in engines)
        return [Problem(what="one orchestrator serves engines of one toolchain", facts=facts)]
    having = launcher.orchestrating()
    return [
        Problem(what=f"release {version} has no orchestrator mode", hint=f"it came with {having[0]}; use leader mode")
        for version in sorted({engine.release.version for engine in engines} - set(having))
    ]


def _lists(engine: Engine, wish: Wish, declared: Mapping[str, Sequence[str]]) -> list[tuple[str, ...]]:
    """The GPUs named for each server of an engine: by [serve] gpus, where the command line says nothing; () is any."""
    names = (engine.name, *reversed(engine.variant.prefixes()))
    found = next((declared[name] for name in names if name in declared), None)
    if found is None or wish.gpus or wish.instances > 1:
        return [()] * wish.instances
    return [tuple(of.split(",")) for of in found]


def _places(engines: Sequence[Engine], wish: Wish, wanted: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The GPUs of each engine, held; only shown, those that nobody named are counted from 0."""
    demands = [_demand(engine) for engine in engines]
    placement.require_lists(demands, wanted)
    named = {device for one in wanted for device in one}
    if not wish.real:
        count = (str(number) for number in itertools.count() if str(number) not in named)
        return [one or tuple(next(count) for _ in of.built.ranks) for of, one in zip(engines, wanted, strict=True)]
    require_here([(demand.name, len(demand.ranks)) for demand in demands])
    machine = gpu.machine()
    usable = {*machine.idle(), *named}
    places = placement.place(demands, [card for card in gpu.cards() if card.device in usable], wanted)
    if not wish.held:
        machine.hold([device for place in places for device in place])
    return places


def _demand(engine: Engine) -> placement.Demand:
    fraction = engine.variant.entry.serving.get("kv_cache_free_gpu_mem_fraction", _FRACTION)
    return placement.Demand(
        name=engine.name,
        sm=int(engine.action.platform.removeprefix("sm")),
        ranks=engine.built.ranks,
        request=engine.built.request,
        fraction=float(fraction),
    )


def _ports(wish: Wish, index: int) -> tuple[int, int, int]:
    """Each server has the three ports after those of the one before; asked for 0, any that are free."""
    http, grpc, metrics = (port + 3 * index if port else 0 for port in wish.ports)
    return http, grpc, metrics
