"""What a remote store of bytes under names can do (being written: connect follows)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

__all__ = ["Remote", "RemoteError"]


class RemoteError(Exception):
    """Anything that went wrong with the remote, with one clear message."""


class Remote(Protocol):
    """A remote."""

    url: str

    def size(self, name: str) -> int | None:
        """Bytes."""

    def read(self, name: str) -> bytes | None:
        """Small object."""

    def write(self, name: str, data: bytes) -> None:
        """Small object."""

    def fetch(self, name: str, target: Path, heard: Callable[[int], None]) -> str | None:
        """Streams."""

    def send(self, name: str, path: Path, heard: Callable[[int], None]) -> None:
        """Streams."""

    def writable(self) -> bool:
        """Probed once."""


def connect(url: str) -> Remote:
    """Not yet."""
    raise RemoteError(url)
