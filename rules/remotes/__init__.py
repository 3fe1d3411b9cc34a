"""Where a team shares blobs and results: one file per way of reaching them. They know names and bytes, nothing of
actions or keys.

    s3://bucket/prefix  gs://bucket/prefix  az://container/prefix  file:///folder     objects.py
    http://host/path  https://host/path     a WebDAV-style GET, HEAD and PUT          http.py

A name is a relative path with `/`. What is written appears whole or not at all, and may be written again with the
same content by anyone. Nothing here is trusted: the reader compares sizes and digests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast
from urllib.parse import SplitResult, urlsplit

from rules.errors import BuildError, Misconfigured, Problem, nearest

__all__ = ["Heard", "Patience", "Remote", "RemoteError", "connect"]

Heard = Callable[[int], None]  # bytes since the last call; negative when a transfer has to start over


class RemoteError(BuildError):
    """Something went wrong with a remote. Its text holds no credentials and no signed URL."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Seconds: to make a connection; without a byte on one that is made; of retrying without any progress."""

    connect_s: float = 3.0
    silence_s: float = 60.0
    retry_s: float = 30.0


class Remote(Protocol):
    """A place of named objects. Every method may be called from several threads at once and may raise RemoteError.

    A name is a relative path: parts joined by `/`, none of them empty, `.` or `..`, no control characters; any other
    is a ValueError. `url` is for messages. What `heard` raises ends a transfer, and is raised by it.
    """

    url: str

    def size(self, name: str) -> int | None:
        """Bytes of an object, None when it is not there."""

    def read(self, name: str) -> bytes | None:
        """A small object, None when it is not there."""

    def write(self, name: str, data: bytes) -> None:
        """Puts a small object."""

    def fetch(self, name: str, target: Path, heard: Heard) -> str | None:
        """Streams an object into the file `target` and returns the BLAKE3 of what arrived, hashed while it arrived.

        None when the object is not there. After any error `target` may hold a part; it is the caller's to remove.
        """

    def send(self, name: str, path: Path, heard: Heard) -> None:
        """Puts a file of any size, in parts where the remote has them, with memory that does not grow with it."""

    def writable(self) -> bool:
        """Whether this remote takes writes: found out once, by writing the small object `probe`."""


_MODULES = {"s3": "objects", "gs": "objects", "az": "objects", "file": "objects", "http": "http", "https": "http"}


def connect(url: str, patience: Patience | None = None) -> Remote:
    """The remote at `url`; talks to nobody yet. Raises Misconfigured for a URL that cannot be one, or a profile that
    holds no key; all else, a folder that cannot be made included, is a RemoteError of the first use.

    Credentials and endpoints come from the environment and the usual profiles, never from `url`. The modules behind
    are imported here: they cost 35 to 80 ms, which a build without a remote does not pay.
    """
    parts = _checked(url)
    module = import_module(f"rules.remotes.{_MODULES[parts.scheme]}")
    return cast("Remote", module.open_remote(parts, patience or Patience()))


def _checked(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise _misconfigured("is not a URL", "", f"the part that is wrong: {error}") from None
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    if parts.scheme not in _MODULES:
        hint = nearest(parts.scheme, list(_MODULES)) if parts.scheme else "s3://bucket/prefix, https://host/path, ..."
        raise _misconfigured("has an unknown scheme", shown, hint)
    if "@" in parts.netloc:
        raise _misconfigured("holds credentials", shown, "they belong in the environment, a profile or ~/.netrc")
    if parts.query or parts.fragment:
        raise _misconfigured("has more than a path", shown, "leave out everything from ? or # on; write %23 for a #")
    if parts.scheme == "file" and (parts.netloc or not parts.path.strip("/")):
        raise _misconfigured("is not the path of a folder", shown, "three slashes: file:///mnt/cache")
    if parts.scheme != "file" and not parts.hostname:
        raise _misconfigured("names no bucket or host", shown, f"{parts.scheme}://NAME/prefix")
    return parts


def _misconfigured(what: str, shown: str, hint: str) -> Misconfigured:
    facts = (("begins with", shown),) if shown else ()
    return Misconfigured(Problem(what=f"cache.remote {what}", facts=facts, hint=hint))
