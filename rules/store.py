"""The content-addressed store: blobs by digest, and what each key made.

    blobs/ab/cdef...      one file's content, read-only, sealed
    results/ab/cdef...    the receipt of the action with key abcdef...

A result is a hit only if every blob it names is there and is what its name says; otherwise it is a miss. Blobs are
written first and the result last, each to a temporary name in its own folder, so a crash leaves a miss, never half a
hit.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from rules import tree
from rules.action import Entry, Receipt

__all__ = ["Store"]


class Store:
    """A store in the folder `root`, made when first written to. Several checkouts and processes may share it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def get(self, key: str) -> Receipt | None:
        """What the action with this key made, or None for a miss. Entries that cannot be true are removed."""
        path = self._result(key)
        try:
            receipt = Receipt.parse(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            path.unlink(missing_ok=True)
            return None
        return receipt if all(self._holds(entry) for entry in receipt.entries) else None

    def put(self, key: str, folder: Path, known: Mapping[tuple[int, int], str]) -> Receipt:
        """Takes over the files below `folder` as the result of `key`; they are moved out of it where possible.

        `known` are digests by (device, inode) of files that are in the store already, such as hard-linked inputs.
        """
        receipt = tree.read(folder, known)
        for entry in receipt.entries:
            self._take(folder / entry.path, entry)
        tree.write(self._result(key), receipt.text())
        return receipt

    def lay_out(self, receipt: Receipt, target: Path) -> None:
        """Makes `target` a folder with exactly the files of `receipt`. Every blob must be there."""
        made = tree.aside(target, "new")
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        for entry in receipt.entries:
            tree.place(self._blob(entry.digest), made / entry.path, entry)
        tree.replace(target, made)

    def _holds(self, entry: Entry) -> bool:
        """Whether the blob is there and whole; a blob that is not what its name says is removed."""
        path = self._blob(entry.digest)
        if tree.intact(path, entry):
            return True
        path.unlink(missing_ok=True)
        return False

    def _take(self, path: Path, entry: Entry) -> None:
        blob = self._blob(entry.digest)
        if self._holds(entry):
            return
        blob.parent.mkdir(parents=True, exist_ok=True)
        temporary = tree.aside(blob, "tmp")
        _move(path, temporary)
        tree.protect(temporary, entry)
        temporary.replace(blob)

    def _blob(self, content: str) -> Path:
        return self.root / "blobs" / content[:2] / content[2:]

    def _result(self, key: str) -> Path:
        return self.root / "results" / key[:2] / key[2:]


def _move(path: Path, target: Path) -> None:
    """Moves the content, through links and across filesystems, and makes it durable."""
    if path.is_symlink() or path.stat().st_dev != target.parent.stat().st_dev or path.stat().st_nlink > 1:
        shutil.copyfile(path, target)
    else:
        path.rename(target)
    with target.open("rb") as file:
        os.fsync(file.fileno())
