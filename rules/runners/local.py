"""Runs an action's command on this machine, in an environment of its own, and ends all of it when we end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import FrameType

from rules.errors import Problem, StepFailed

__all__ = ["Command", "end_all", "end_on_signals", "mismatches", "python", "run"]

_TERM_SECONDS = 10.0
_running: set[subprocess.Popen[str]] = set()
_lock = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Command:
    """`log` receives all output; `scratch` is a folder the command may fill; `timeout_s` None is no limit."""

    argv: Sequence[str]
    env: Mapping[str, str]
    log: Path
    scratch: Path
    timeout_s: float | None = None


def python() -> str:
    """What `{python}` stands for here: the interpreter we run in, which has the pinned packages."""
    return sys.executable


def mismatches(toolchain: Sequence[tuple[str, str]]) -> list[Problem]:
    """The packages of `toolchain` that are not installed in the declared version."""
    wrong = [(name, declared, _installed(name)) for name, declared in toolchain]
    return [
        Problem(
            what=f"{name} is not the version that the key declares",
            facts=(("declared", declared), ("installed", installed or "none"), ("python", sys.executable)),
            hint="./doitw installs the locked versions into .venv",
        )
        for name, declared, installed in wrong
        if declared != installed
    ]


def run(command: Command, heard: Callable[[str], None]) -> int:
    """Runs to the end and returns the exit code (negative: the signal). `heard` gets each line of output at once.

    Raises StepFailed when the time is over, after ending the whole process group.
    """
    command.log.parent.mkdir(parents=True, exist_ok=True)
    with command.log.open("w", encoding="utf-8", errors="replace") as log:
        process = _start(command)
        deadline = _Deadline(process, command.timeout_s)
        try:
            for line in process.stdout or ():
                log.write(line)
                log.flush()
                heard(line.rstrip("\n"))
            code = process.wait()
        finally:
            deadline.cancel()
            _end(process)
    if deadline.passed:
        raise StepFailed(Problem(what=f"no end after {command.timeout_s:.0f} s", facts=(("log", str(command.log)),)))
    return code


def end_all() -> None:
    """Ends every command that runs: for the signal handler of the whole program."""
    with _lock:
        running = tuple(_running)
    for process in running:
        _end(process)


def end_on_signals() -> None:
    """From now on Ctrl-C and SIGTERM end every command that runs, then this program, with 128 + the signal."""

    def end(number: int, _frame: FrameType | None) -> None:
        end_all()
        raise SystemExit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)


class _Deadline:
    def __init__(self, process: subprocess.Popen[str], seconds: float | None) -> None:
        self.passed = False
        self._process = process
        self._timer = threading.Timer(seconds, self._pass) if seconds else None
        if self._timer:
            self._timer.daemon = True
            self._timer.start()

    def _pass(self) -> None:
        self.passed = True
        _end(self._process)

    def cancel(self) -> None:
        if self._timer:
            self._timer.cancel()


def _start(command: Command) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        command.argv,
        env={**_base_env(command.scratch), **command.env},
        cwd=command.scratch,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # one process group, so that ending it leaves no orphan
    )
    with _lock:
        _running.add(process)
    return process


def _base_env(scratch: Path) -> dict[str, str]:
    """The same few variables for every action: nothing of the user's shell, and no secret, reaches a tool."""
    return {
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _end(process: subprocess.Popen[str]) -> None:
    """Ends the process group: gently, then surely. What the leader left running ends too."""
    with _lock:
        _running.discard(process)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        until = time.monotonic() + _TERM_SECONDS
        while process.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
