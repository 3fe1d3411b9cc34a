"""Runs an action's command on this machine, in an environment of its own, and ends all of it when we end."""

from __future__ import annotations

import contextlib
import functools
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

__all__ = ["Command", "end_all", "end_on_signals", "ending", "mismatches", "python", "run"]

_TERM_SECONDS = 10.0
_SYSTEM = "/usr/local/bin:/usr/bin:/bin"
_LEASH = str(Path(__file__).with_name("leash.py"))
_running: dict[subprocess.Popen[str], float | None] = {}  # with its grace
_lock = threading.RLock()  # the signal handler may interrupt the thread that holds it
_ending = threading.Event()


@dataclass(frozen=True, kw_only=True)
class Command:
    """`log` receives all output; `scratch` is a folder the command may fill; `timeout_s` None is no limit.

    As root it obeys the modes of files unless it has `powers`, which a container's program needs to pass on. `inherit`
    are file descriptors that stay open until it has ended, such as the locks of its GPUs, even if we end. A variable of
    `env` that is None is not there, though it would be by default. Asked to end, it has `grace_s` seconds, or ten.
    """

    argv: Sequence[str]
    env: Mapping[str, str | None]
    log: Path
    scratch: Path
    timeout_s: float | None = None
    inherit: tuple[int, ...] = ()
    powers: bool = False
    grace_s: float | None = None


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
            hint="./doitw installs the locked versions into .venv; what an image holds is found inside that image",
        )
        for name, declared, installed in wrong
        if declared != installed
    ]


def run(command: Command, heard: Callable[[str], None]) -> int:
    """Runs to the end and returns the exit code (negative: the signal). `heard` gets each line of output at once.

    Raises TimeoutError when the time is over, after ending the whole process group.
    """
    command.log.parent.mkdir(parents=True, exist_ok=True)
    with command.log.open("w", encoding="utf-8", errors="replace") as log:
        process, leash = _start(command)
        watch = _Watch(process, command.timeout_s)
        try:
            for line in process.stdout or ():
                log.write(line)
                log.flush()
                heard(line.rstrip("\n"))
            code = process.wait()
        finally:
            _end(process)
            os.close(leash)
            if process.stdout:
                process.stdout.close()
    watch.join()
    if watch.late:
        raise TimeoutError
    return code


def end_all(grace_s: float | None = None) -> None:
    """Ends every command that runs and starts no other: for the signal handler of the whole program."""
    _ending.set()
    with _lock:
        running = tuple(_running)
    for process in running:
        _end(process, grace_s)


def ending() -> bool:
    """Whether a signal has ended what ran."""
    return _ending.is_set()


def end_on_signals() -> None:
    """From now on Ctrl-C, SIGTERM and a closed terminal end what runs, then this program, with 128 + the signal."""

    def end(number: int, _frame: FrameType | None) -> None:
        end_all(0.0 if ending() else None)  # asked a second time: at once
        raise SystemExit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)


class _Watch(threading.Thread):
    """Ends the group once its leader has ended or its time is over: what it left running would hold the pipe open."""

    def __init__(self, process: subprocess.Popen[str], timeout_s: float | None) -> None:
        super().__init__(daemon=True)
        self.late = False
        self._process = process
        self._timeout_s = timeout_s
        self.start()

    def run(self) -> None:
        try:
            self._process.wait(self._timeout_s)
        except subprocess.TimeoutExpired:
            self.late = True
        _end(self._process)


def _start(command: Command) -> tuple[subprocess.Popen[str], int]:
    """The process, and the end of its leash that is ours: it ends when that is closed, also by our own end."""
    with _lock:
        if ending():
            raise StepFailed(Problem(what="not started: the build was ended"))
        theirs, ours = os.pipe()
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", _LEASH, *(["--powers"] * command.powers), str(theirs), *command.argv],
            env={k: v for k, v in {**_base_env(command.scratch), **command.env}.items() if v is not None},
            cwd=command.scratch,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            pass_fds=(theirs, *command.inherit),
            start_new_session=True,  # one process group, so that ending it leaves no orphan
        )
        os.close(theirs)
        _running[process] = command.grace_s
    return process, ours


def _base_env(scratch: Path) -> dict[str, str]:
    """The same few variables for every action: nothing of the user's shell, and no secret, reaches a tool."""
    return {
        "PATH": f"{Path(sys.executable).parent}:{_SYSTEM}",
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _end(process: subprocess.Popen[str], grace_s: float | None = None) -> None:
    """Ends the process group: gently, then surely. What the leader left running ends too."""
    try:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
            given = _running.get(process) if grace_s is None else grace_s
            until = time.monotonic() + (_TERM_SECONDS if given is None else given)
            while process.poll() is None and time.monotonic() < until:
                time.sleep(0.02)
    finally:  # also when a second signal interrupts the wait
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        with _lock:
            _running.pop(process, None)


def _installed(name: str) -> str | None:
    """The version here or, in a container, that of its own Python: our environment does not see what is in there."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return _in_system(name)


@functools.cache
def _in_system(name: str) -> str | None:
    ask = "import sys; from importlib.metadata import version; print(version(sys.argv[1]))"
    command = ["python3", "-c", ask, name]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": _SYSTEM}, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() or None
