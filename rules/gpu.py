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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rules.errors import Problem, StepFailed

__all__ = ["Card", "Gpus", "Lease", "cards", "driver", "machine"]

_POLL_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class Lease:
    """`devices` are what CUDA_VISIBLE_DEVICES gets; `descriptors` are the locks, for the command to inherit."""

    devices: tuple[str, ...]
    descriptors: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Card:
    """A GPU as the driver describes it: compute capability x 10, bytes of memory in all and free."""

    device: str
    sm: int
    total: int
    free: int
    name: str


class Gpus:
    """`devices` by their names for CUDA, with lock files in the folder `locks`."""

    def __init__(self, devices: tuple[str, ...], locks: Path) -> None:
        self.devices = devices
        self._locks = locks
        self._held = contextlib.ExitStack()

    @contextlib.contextmanager
    def lease(self, count: int, heard: Callable[[str], None]) -> Iterator[Lease]:
        """Holds `count` GPUs. Waits while others hold them; `heard` is told of it once.

        Raises StepFailed at once when the machine does not have as many.
        """
        if count > len(self.devices):
            names = f"{len(self.devices)}: {', '.join(self.devices)}" if self.devices else "none"
            facts = (("asked for", str(count)), ("this machine has", names))
            hint = "build it where there are enough, or with less tp x pp; CUDA_VISIBLE_DEVICES limits what is seen"
            raise StepFailed(Problem(what="not enough GPUs", facts=facts, hint=hint))
        with contextlib.ExitStack() as stack:
            held = self._wait(count, heard, stack) if count else {}
            yield Lease(devices=tuple(held), descriptors=tuple(file.fileno() for file in held.values()))

    def hold(self, devices: Sequence[str]) -> Lease:
        """Holds these GPUs until this process and what it starts have ended. Raises StepFailed when one is taken."""
        self._locks.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as opened:
            held = {device: opened.enter_context(self._open_lock(device)) for device in dict.fromkeys(devices)}
            for device, file in held.items():
                if not _locked(file):
                    hint = "wait for it, end it (doit stop), or name others with --gpus"
                    raise StepFailed(Problem(what=f"GPU {device} is in use by another doit", hint=hint))
                os.set_inheritable(file.fileno(), True)  # noqa: FBT003 - os.set_inheritable's own signature
            self._held.push(opened.pop_all())
        return Lease(devices=tuple(held), descriptors=tuple(file.fileno() for file in held.values()))

    def let_go(self) -> None:
        """Holds none any more; what was started goes on holding them."""
        self._held.close()

    def idle(self) -> tuple[str, ...]:
        """The GPUs that no other doit holds right now."""
        self._locks.mkdir(parents=True, exist_ok=True)
        return tuple(device for device in self.devices if self._is_idle(device))

    def _is_idle(self, device: str) -> bool:
        with self._open_lock(device) as file:
            return _locked(file)

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
            file = self._open_lock(device)
            if not _locked(file):
                file.close()
                continue
            held[device] = file
            if len(held) == count:
                return held
        for file in held.values():
            file.close()
        return {}

    def _open_lock(self, device: str) -> IO[str]:
        return self._open(f"gpu-{device.replace('/', '-')}")

    def _open(self, name: str) -> IO[str]:
        path = self._locks / name
        with contextlib.suppress(FileExistsError):
            path.touch(mode=0o666, exist_ok=False)
        return path.open("a", encoding="utf-8")


def _locked(file: IO[str]) -> bool:
    """Whether the lock could be had at once."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@functools.cache
def machine() -> Gpus:
    """The GPUs that this process may use; none where there is no driver."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = _asked_driver() if visible is None else tuple(part.strip() for part in visible.split(",") if part.strip())
    return Gpus(devices, Path(tempfile.gettempdir()) / "doit-engines-gpus")


def cards() -> tuple[Card, ...]:
    """The GPUs that this process may use as they are now, in the order in which CUDA sees them."""
    rows = _queried("index", "uuid", "compute_cap", "memory.total", "memory.free", "name")
    found = {key: row for row in rows for key in row[:2]}
    return tuple(_card(device, *found[device][2:]) for device in machine().devices if device in found)


def driver() -> str:
    """The driver's version, such as 550.54.15; empty where there is none."""
    return next((version for (version,) in _queried("driver_version")), "")


def _card(device: str, capability: str, total: str, free: str, name: str) -> Card:
    """nvidia-smi writes memory in MiB, and [N/A] for what it cannot tell: then it is 0."""
    sm, whole, left = (int(text) if text.isdigit() else 0 for text in (capability.replace(".", ""), total, free))
    return Card(device=device, sm=sm, total=whole << 20, free=left << 20, name=name)


def _asked_driver() -> tuple[str, ...]:
    return tuple(index for (index,) in _queried("index"))


def _queried(*fields: str) -> list[list[str]]:
    """A row per GPU; none where there is no driver."""
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = ([cell.strip() for cell in line.split(",")] for line in listed.stdout.splitlines() if line.strip())
    return [row for row in rows if len(row) == len(fields)]
