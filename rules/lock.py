"""One builder per key, over all processes that share a store: the second waits and says for whom.

`flock` on a file that stays: the kernel frees it with the process, however that ends, so there is no stale lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["alone"]

_AGAIN_SECONDS = 0.5


@contextlib.contextmanager
def alone(path: Path, name: str, heard: Callable[[str], None]) -> Iterator[int]:
    """Holds the lock file `path` for the action `name`; while another process or thread holds it, `heard` is told.

    Gives the lock's descriptor: a command that has it holds the lock with us, until both have ended.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                heard(f"waiting for {_holder(path)}")
                time.sleep(_AGAIN_SECONDS)
        with contextlib.suppress(OSError):  # on a full disk it is a lock all the same
            os.truncate(file.fileno(), 0)
            os.write(file.fileno(), f"process {os.getpid()} on {platform.node()}, which makes {name}".encode())
        yield file.fileno()


def _holder(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8") or "another process"
    return "another process"
