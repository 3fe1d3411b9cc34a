"""The machine's GPUs as a finite resource: leases by file lock, all or none, shared by every process of the machine.

A lease is `flock`ed files, one per GPU, whose descriptors the leased command inherits: it ends when the last process
that could use the GPU has ended, also when we were killed. Whoever waits holds the one lock of the queue, so a request
for eight GPUs is not starved by many for one.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rules.errors import Problem, StepFailed

__all__ = ["Gpus", "Lease", "machine"]

_POLL_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class Lease:
    """`devices` are what CUDA_VISIBLE_DEVICES gets; `descriptors` are the locks, for the command to inherit."""

    devices: tuple[str, ...]
    descriptors: tuple[int, ...]


class Gpus:
    """`devices` by their names for CUDA, with lock files in the folder `locks`."""

    def __init__(self, devices: tuple[str, ...], locks: Path) -> None:
        self.devices = devices
        self._locks = locks

    @contextlib.contextmanager
    def lease(self, count: int, heard: Callable[[str], None]) -> Iterator[Lease]:
        """Holds `count` GPUs. Waits while others hold them; `heard` is told of it once.

        Raises StepFailed at once when the machine does not have as many.
        """
        if count > len(self.devices):
            facts = (("asked for", str(count)), ("this machine has", ", ".join(self.devices) or "none"))
            hint = "build it where there are enough, or with less tp x pp; CUDA_VISIBLE_DEVICES limits what is seen"
            raise StepFailed(Problem(what="not enough GPUs", facts=facts, hint=hint))
        with contextlib.ExitStack() as stack:
            held = self._wait(count, heard, stack) if count else {}
            yield Lease(devices=tuple(held), descriptors=tuple(file.fileno() for file in held.values()))

    def _wait(self, count: int, heard: Callable[[str], None], stack: contextlib.ExitStack) -> dict[str, IO[str]]:
        self._locks.mkdir(parents=True, exist_ok=True)
        with self._open("queue") as queue:
            fcntl.flock(queue, fcntl.LOCK_EX)
            told = False
            while True:
                held = self._try(count)
                if held:
                    for file in held.values():
                        stack.enter_context(file)
                    return held
                if not told:
                    heard(f"waiting for {count} of {len(self.devices)} GPUs")
                    told = True
                time.sleep(_POLL_SECONDS)

    def _try(self, count: int) -> dict[str, IO[str]]:
        """`count` locked files, or none at all."""
        held: dict[str, IO[str]] = {}
        for device in self.devices:
            file = self._open(f"gpu-{device.replace('/', '-')}")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                continue
            held[device] = file
            if len(held) == count:
                return held
        for file in held.values():
            file.close()
        return {}

    def _open(self, name: str) -> IO[str]:
        path = self._locks / name
        with contextlib.suppress(FileExistsError):
            path.touch(mode=0o666, exist_ok=False)
        return path.open("a", encoding="utf-8")


@functools.cache
def machine() -> Gpus:
    """The GPUs that this process may use; none where there is no driver."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = _asked_driver() if visible is None else tuple(part.strip() for part in visible.split(",") if part.strip())
    return Gpus(devices, Path(tempfile.gettempdir()) / "doit-engines-gpus")


def _asked_driver() -> tuple[str, ...]:
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in listed.stdout.splitlines() if line.strip())
