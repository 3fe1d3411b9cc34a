"""The content-addressed store: blobs by digest, and what each key made.

    blobs/ab/cdef...       one file's content, read-only, sealed
    results/ab/cdef...     the receipt of the action with key abcdef...
    signatures/ab/cdef...  who vouches for that result (sign.py)
    records/ab/cdef...     how it came to be, for people: never needed to use it
    sha256/ab/cdef...      the digest of the blob with SHA-256 abcdef..., where that was verified

A result is a hit only if every blob it names is there and is what its name says; otherwise it is a miss. Blobs are
written first and the result last, each to a temporary name in its own folder, so a crash leaves a miss, never half a
hit.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from rules import digest, tree
from rules.action import Entry, Receipt

__all__ = ["Note", "Store"]

Note = Literal["signatures", "records", "sha256"]


class Store:
    """A store in the folder `root`, made when first written to. Several checkouts and processes may share it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def get(self, key: str) -> Receipt | None:
        """What the action with this key made, or None for a miss. Entries that cannot be true are removed."""
        receipt = self.receipt(key)
        if receipt is None or self.missing(receipt):
            return None
        with contextlib.suppress(OSError):  # a store that others own
            os.utime(self._named("results", key))  # used just now: gc removes what was not used for longest
        return receipt

    def receipt(self, key: str) -> Receipt | None:
        """The result of `key`, whether or not its blobs are here."""
        path = self._named("results", key)
        try:
            return Receipt.parse(path.read_text(encoding="utf-8"))
        except OSError:
            return None
        except ValueError:
            _drop(path)
            return None

    def missing(self, receipt: Receipt) -> tuple[Entry, ...]:
        """The entries whose blobs are not here and whole; a blob that is not what its name says is removed."""
        return tuple(entry for entry in receipt.entries if not self._holds(entry))

    def put(self, key: str, folder: Path, known: Mapping[tuple[int, int], str]) -> Receipt:
        """Takes over the files below `folder` as the result of `key`; they are moved out of it where possible.

        `known` are digests by (device, inode) of files that are in the store already, such as hard-linked inputs.
        """
        receipt = tree.read(folder, known)
        self.add(key, folder, receipt)
        return receipt

    def add(self, key: str, folder: Path, receipt: Receipt) -> None:
        """Takes over the files of `receipt`, which lie below `folder`, as the result of `key`. Raises OSError."""
        for entry in receipt.entries:
            self.adopt(folder / entry.path, entry)
        self.keep(key, receipt)

    def keep(self, key: str, receipt: Receipt) -> None:
        """Writes the result of `key`; its blobs must be there already."""
        tree.write(self._named("results", key), receipt.text())

    def adopt(self, path: Path, entry: Entry) -> None:
        """Makes the file at `path`, whose digest has been computed, a blob; moves it where possible."""
        blob = self.blob(entry.digest)
        if self._holds(entry):
            return
        blob.parent.mkdir(parents=True, exist_ok=True)
        temporary = tree.aside(blob, "tmp")
        _move(path, temporary)
        tree.protect(temporary, entry)
        temporary.replace(blob)

    def lay_out(self, receipt: Receipt, target: Path) -> None:
        """Makes `target` a folder with exactly the files of `receipt`. Every blob must be there."""
        made = tree.aside(target, "new")
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        for entry in receipt.entries:
            tree.place(self.blob(entry.digest), made / entry.path, entry)
        tree.replace(target, made)

    def note(self, kind: Note, key: str) -> str | None:
        """What is written about the result of `key`, or None."""
        try:
            return self._named(kind, key).read_text(encoding="utf-8")
        except OSError:
            return None

    def write_note(self, kind: Note, key: str, text: str) -> None:
        """Writes something about the result of `key`."""
        tree.write(self._named(kind, key), text)

    def forget(self, key: str) -> None:
        """Removes a result and what is written about it; its blobs stay until `gc`."""
        for kind in ("results", "signatures", "records"):
            self._named(kind, key).unlink(missing_ok=True)

    def keys(self) -> Iterator[str]:
        """The keys that have a result here."""
        return self._all("results")

    def digests(self) -> Iterator[str]:
        """The digests of the blobs that are here."""
        return self._all("blobs")

    def blob(self, content: str) -> Path:
        """Where the blob of this digest lies, if it is here."""
        return self._named("blobs", content)

    def warm(self, name: str) -> Path:
        """The folder of that name that outlives the commands which fill it; nothing in it is a result."""
        return self.root / "warm" / name

    def result_path(self, key: str) -> Path:
        """Where the result of `key` lies; its modification time is when it was last used."""
        return self._named("results", key)

    def _holds(self, entry: Entry) -> bool:
        path = self.blob(entry.digest)
        if not path.exists():
            return False  # and not dropped: another process may put it there right now
        if tree.intact(path, entry):
            return True
        if not _good(path, entry):
            _drop(path)
        return False

    def _named(self, kind: str, name: str) -> Path:
        return self.root / kind / name[:2] / name[2:]

    def _all(self, kind: str) -> Iterator[str]:
        for folder in sorted((self.root / kind).glob("[0-9a-f][0-9a-f]")):
            yield from sorted(folder.name + path.name for path in folder.iterdir() if not path.name.startswith("."))


def _good(path: Path, entry: Entry) -> bool:
    """Whether a blob that is not `entry` is what its name says, and the receipt is what lies about its size."""
    try:
        return path.stat().st_size != entry.size and digest.of_file(path) == entry.digest
    except OSError:
        return False


def _drop(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _move(path: Path, target: Path) -> None:
    """Moves the content, through links and across filesystems, and makes it durable."""
    if path.is_symlink() or path.stat().st_dev != target.parent.stat().st_dev or path.stat().st_nlink > 1:
        _copy(path, target)
    else:
        path.rename(target)
    with target.open("rb") as file:
        os.fsync(file.fileno())


def _copy(path: Path, target: Path) -> None:
    try:
        shutil.copyfile(path, target)
    except OSError:  # a full disk should not be left fuller
        target.unlink(missing_ok=True)
        raise
