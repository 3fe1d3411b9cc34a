"""`doit serve [NAME...]`: the built repositories behind real Triton servers.

Variants of the embedded lane share one server (rules/tools/serve.py); those of the TensorRT-LLM lane have one each, or
an orchestrator, on GPUs of their own (rules/tools/launch). In the foreground doit becomes that program, so that
Ctrl-C, SIGTERM and the exit code are that program's. With --detach it runs in a session of its own;
`artifacts/server/<id>.json` says what runs, for `doit stop`.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from doit.doit_cmd import DoitMain

from rules.commands import EngineCommand
from rules.errors import Misconfigured, Problem
from rules.server import Server
from rules.serving import Wish, launch_argv, on_gpus, servers, tool_argv, unwise
from rules.tasks import here
from rules.variant import Variant
from rules.workspace import Workspace

__all__ = ["Serve", "build", "detach", "foreground", "repositories", "shown"]

_PORTS = (("http", 8000), ("grpc", 8001), ("metrics", 8002))


class Serve(EngineCommand):
    """The command."""

    name = "serve"
    doc_purpose = "serve built repositories with the real Triton server"
    doc_usage = "[NAME...]"
    doc_description = "NAME is a variant or a group of variants; without one, the default set of [serve]."
    cmd_options = (
        *(
            {"name": f"{name}_port", "long": f"{name}-port", "type": int, "default": port, "help": "0: a free one"}
            for name, port in _PORTS
        ),
        {"name": "host", "long": "host", "type": str, "default": "127.0.0.1", "help": "address to listen on"},
        {"name": "detach", "long": "detach", "type": bool, "default": False, "help": "return once it is ready"},
        {"name": "dry_run", "long": "dry-run", "type": bool, "default": False, "help": "show the command lines only"},
        {"name": "gpus", "long": "gpus", "type": str, "default": "", "help": "a list per server: 0,1;2,3"},
        {"name": "instances", "long": "instances", "type": int, "default": 1, "help": "servers per variant"},
        {"name": "orchestrator", "long": "orchestrator", "type": bool, "default": False, "help": "one server for all"},
        {"name": "verbose_log", "long": "verbose-log", "type": bool, "default": False, "help": "Triton's level 3"},
    )

    def execute(self, opt_values: dict[str, Any], pos_args: list[str]) -> int:
        """Serves until a signal, or returns when the detached servers are ready."""
        variants = here().chosen(pos_args)
        gpus = _same_lane(here(), variants)
        wish = _wish(opt_values, on_gpus=gpus)
        failed = build([variant.name for variant in variants]) if wish.real else 0
        if failed:
            return failed
        base = here().executor.artifacts.root / "server" / str(os.getpid())
        argv = _on_gpus(variants, wish, base) if gpus else _on_cpu(pos_args, wish, base)
        if not argv:
            return 0
        return detach(argv, base) if opt_values["detach"] else foreground(argv)


def _same_lane(space: Workspace, variants: list[Variant]) -> bool:
    """Whether they all run on GPUs; the two lanes have servers of different kinds."""
    kinds = {variant.name: on_gpus(space, variant) for variant in variants}
    if len(set(kinds.values())) > 1:
        facts = tuple((name, "gpu" if gpus else "cpu") for name, gpus in kinds.items())
        raise Misconfigured(Problem(what="one server cannot serve both", facts=facts, hint="call doit serve for each"))
    return next(iter(kinds.values()))


def _wish(options: Mapping[str, Any], *, on_gpus: bool) -> Wish:
    """What was typed. Raises Misconfigured when it is about GPUs and there are none, or is no list of them."""
    typed = [
        name for name in ("gpus", "instances", "orchestrator", "verbose_log") if options[name] not in ("", 1, False)
    ]
    if typed and not on_gpus:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in typed)
        raise Misconfigured(Problem(what=f"{flags}: these variants run on the CPU", hint="leave it out"))
    lists = [part.split(",") for part in str(options["gpus"]).split(";")] if options["gpus"] else []
    if int(options["instances"]) < 1 or any(not device.strip() for devices in lists for device in devices):
        hint = "as in --gpus '0,1;2,3' --instances 2"
        raise Misconfigured(Problem(what="--gpus or --instances cannot be read", hint=hint))
    http, grpc, metrics = (int(options[f"{name}_port"]) for name, _ in _PORTS)
    return Wish(
        ports=(http, grpc, metrics),
        host=str(options["host"]),
        gpus=tuple(tuple(device.strip() for device in devices) for devices in lists),
        instances=int(options["instances"]),
        mode="orchestrator" if options["orchestrator"] else "leader",
        verbose=bool(options["verbose_log"]),
        real=not options["dry_run"],
    )


def _on_cpu(names: list[str], wish: Wish, base: Path) -> list[str]:
    """The command line of the embedded lane's server; empty when it is only to be shown."""
    space = here()
    ports = dict(zip(("http", "grpc", "metrics"), wish.ports, strict=True))
    if wish.real:
        return tool_argv(repositories(space, names), ports, wish.host, base)
    folders = {one.name: space.executor.artifacts.folder(f"build:{one.name}") for one in space.chosen(names)}
    print(shlex.join(tool_argv(folders, ports, wish.host, base)))
    return []


def _on_gpus(variants: list[Variant], wish: Wish, base: Path) -> list[str]:
    """The command line of the TensorRT-LLM lane's servers; empty when they are only to be shown."""
    made = servers(here(), variants, wish, base)
    if not wish.real:
        print("\n\n".join(map(shown, made)))
        return []
    for problem in unwise(made):
        print(f"warning: {problem}", file=sys.stderr)
    return launch_argv(made, base, here().plan.spec.serve.load_timeout_s)


def shown(server: Server) -> str:
    """What a person could type: a line for what it is, then the variables and the command, an argument block a line."""
    text = server.text()
    words = [f"{name}={shlex.quote(value)}" for name, value in text["env"].items()]
    line = shlex.join(text["argv"]).replace(" : ", " : \\\n    ").replace(" mpirun ", " \\\n  mpirun ", 1)
    ports = ", ".join(f"{name} {port}" for name, port in text["ports"].items())
    head = f"# {text['name']}: GPUs {','.join(server.devices)}, {ports}"
    return "\n".join([head, " ".join([*words, line]).replace("{pid}", str(os.getpid()))])


def build(variants: list[str]) -> int:
    """Brings the repositories of these variants up to date, as `doit build:NAME...` does; doit's exit code."""
    return int(DoitMain().run(["run", *(f"build:{name}" for name in variants)]))


def repositories(space: Workspace, names: list[str]) -> dict[str, Path]:
    """The built model repository of each variant behind `names`. Raises Misconfigured when one is not up to date."""
    actions = {variant.name: space.plan.actions[f"build:{variant.name}"] for variant in space.chosen(names)}
    stale = [action.name for action in actions.values() if not space.executor.fresh(action)]
    if stale:
        hint = f"doit {' '.join(stale)}"
        raise Misconfigured([Problem(what=f"{name} is not up to date", hint=hint) for name in stale])
    return {name: space.executor.artifacts.folder(action.name) for name, action in actions.items()}


def foreground(argv: list[str]) -> int:
    """Becomes the tool. Does not return."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(argv[0], argv)  # noqa: S606


def detach(argv: list[str], base: Path) -> int:
    """Starts the tool in its own session and shows what it prints until it is ready. Returns 1 when it ends instead."""
    base.parent.mkdir(parents=True, exist_ok=True)
    output = base.with_suffix(".out")
    pid = _spawn(argv, output)
    shown, ended, ready = 0, False, False
    while not (ended or ready):
        ended = os.waitpid(pid, os.WNOHANG)[0] == pid
        text = output.read_text(encoding="utf-8", errors="replace")
        ready = "tritonserver: ready\n" in text and text.endswith("\n")
        sys.stdout.write(text[shown:])
        sys.stdout.flush()
        shown = len(text)
        _pause(pid, 0.0 if ended or ready else 0.1)
    output.unlink()
    print("  it runs in the background; doit stop ends it" if ready else "")
    return 1 if ended else 0


def _pause(pid: int, seconds: float) -> None:
    """Ctrl-C while waiting ends the server too."""
    try:
        time.sleep(seconds)
    except KeyboardInterrupt:
        os.kill(pid, 15)
        raise


def _spawn(argv: list[str], output: Path) -> int:
    """The pid of `argv` in a new session, deaf to our terminal, with its output in a file."""
    write = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    files = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(output), write, 0o644),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    return os.posix_spawn(argv[0], argv, os.environ, file_actions=files, setsid=True)
