"""`doit serve [NAME...]`: the built repositories behind one real Triton server.

In the foreground doit becomes rules/tools/serve.py, so that Ctrl-C, SIGTERM and the exit code are that program's.
With --detach it runs in a session of its own; `artifacts/server/<id>.json` says what runs, for `doit stop`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from doit.doit_cmd import DoitMain
from doit.exceptions import InvalidCommand

from rules.commands import EngineCommand
from rules.errors import BuildError, Misconfigured, Problem
from rules.tasks import here
from rules.workspace import Workspace

__all__ = ["Serve", "build", "detach", "foreground", "repositories", "tool_argv"]

_TOOL = Path(__file__).parents[1] / "tools" / "serve.py"
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
    )

    def execute(self, opt_values: dict[str, Any], pos_args: list[str]) -> int:
        """Serves until a signal, or returns when the detached server is ready."""
        try:
            variants = [variant.name for variant in here().chosen(pos_args)]
            failed = build(variants)
            if failed:
                return failed
            space = here()
            chosen = repositories(space, pos_args)
        except BuildError as error:
            raise InvalidCommand(str(error)) from error
        ports = {name: int(opt_values[f"{name}_port"]) for name, _ in _PORTS}
        folder = space.executor.artifacts.root / "server"
        argv = tool_argv(chosen, ports, str(opt_values["host"]), folder / str(os.getpid()))
        return detach(argv, folder / str(os.getpid())) if opt_values["detach"] else foreground(argv)


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


def tool_argv(chosen: Mapping[str, Path], ports: Mapping[str, int], host: str, base: Path) -> list[str]:
    """The command line of rules/tools/serve.py; state and log are `base` with .json and .log."""
    named = [f"--repository={name}={folder}" for name, folder in chosen.items()]
    listening = [f"--{name}-port={port}" for name, port in ports.items()]
    files = [f"--log={base}.log", f"--state={base}.json"]
    return [sys.executable, "-I", str(_TOOL), *named, f"--host={host}", *listening, *files]


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
