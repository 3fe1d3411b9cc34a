"""Files that lie elsewhere and are known by their SHA-256: what a downloader is told, and what is remembered of it.

The store knows its blobs by BLAKE3, and hubs theirs by SHA-256. An index from the one to the other is why weights that
came once, from whatever hub and with whatever other files, are not downloaded again.
"""

from __future__ import annotations

import contextlib
import json

from rules.action import Action, Entry, Pinned, Receipt
from rules.store import Store

__all__ = ["index", "listing", "loose"]


def loose(action: Action) -> list[str]:
    """The places of inputs of which it is not known yet what lies there."""
    return [it.place for _, it in action.inputs if isinstance(it, Pinned) and not it.members]


def listing(store: Store, source: Pinned) -> str:
    """What the command is told: the files, and where those lie that the store has, from wherever they came before."""
    here = {}
    for path, size, sha256 in source.members:
        content = store.note("sha256", sha256)
        if content and not store.missing(Receipt((Entry(path, content, size),))):
            here[sha256] = [str(store.blob(content).absolute()), content]
    return json.dumps({"place": source.place, "files": source.members, "here": here}, indent=1)


def index(store: Store, action: Action, receipt: Receipt) -> None:
    """Remembers which blob has which SHA-256, of files that the command has verified to have it."""
    made = {entry.path: entry.digest for entry in receipt.entries}
    members = [row for _, it in action.inputs if isinstance(it, Pinned) for row in it.members]
    for path, _, sha256 in members:
        with contextlib.suppress(OSError):  # a store that cannot be written has been told of already
            store.write_note("sha256", sha256, made[path])
