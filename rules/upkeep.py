"""The store's upkeep: counting, verifying and repairing it, and removing what nobody needs.

A checkout that uses the store leaves its name in `roots/`, so that collecting in one spares what the others have. What
a person wants to keep in any case has a file in `pins/`: the target's name, then a key per line.

Other processes write to the store and collect in it meanwhile: what is listed here may be gone a moment later.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rules import digest, sign, tree
from rules.action import Receipt
from rules.artifacts import Record
from rules.cache import Cache
from rules.store import Store

__all__ = [
    "Limits",
    "Totals",
    "collect",
    "cool",
    "enroll",
    "needed",
    "pin",
    "pinned",
    "sweep_work",
    "totals",
    "unpin",
    "unsigned",
    "verify",
    "warm",
]

_GRACE_SECONDS = 3600.0  # a blob may be this old without a result: its build is still writing
_Heard = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Counts, and bytes; `loose` are the bytes of blobs that no result names."""

    results: int
    blobs: int
    size: int
    loose: int


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What `collect` keeps: results used in the last `age_s` seconds, the newest up to `size` bytes. None: any."""

    size: int | None = None
    age_s: float | None = None
    grace_s: float = _GRACE_SECONDS


def totals(store: Store) -> Totals:
    """What is in the store."""
    sizes = _sizes(store)
    results = list(_results(store))
    named = {entry.digest for _, receipt in results for entry in receipt.entries}
    loose = sum(size for content, size in sizes.items() if content not in named)
    return Totals(results=len(results), blobs=len(sizes), size=sum(sizes.values()), loose=loose)


def verify(cache: Cache, heard: _Heard) -> tuple[list[str], list[str]]:
    """Reads every blob again. (repaired, removed): results that came back from the remote, and those that did not.

    A result that was used without its bytes has none that could be damaged, and does not bring them now.
    """
    store = cache.store
    contents = list(store.digests())
    damaged = set()
    with ThreadPoolExecutor() as pool:
        for count, (content, good) in enumerate(
            zip(contents, pool.map(partial(_good, store), contents), strict=True), 1
        ):
            heard(f"read {count} of {len(contents)} blobs")
            if not good and _look(store.blob(content)):
                store.blob(content).unlink(missing_ok=True)
                damaged.add(content)
    repaired, removed = [], []
    for key, receipt in list(_results(store)):
        if damaged.isdisjoint(entry.digest for entry in receipt.entries):
            continue
        if cache.fetch(receipt, heard):
            repaired.append(key)
        else:
            store.forget(key)
            removed.append(key)
    return repaired, removed


def unsigned(cache: Cache) -> list[str]:
    """The keys of results that no trusted key has signed."""
    store = cache.store
    return [
        key
        for key, receipt in _results(store)
        if not sign.believed(store.note("signatures", key), key, receipt, cache.trusted)
    ]


def enroll(store: Store, artifacts: Path) -> None:
    """Notes that the checkout with this artifacts folder uses the store."""
    path = store.root / "roots" / digest.of_text(str(artifacts))[:16]
    if not path.exists():
        with contextlib.suppress(OSError):
            tree.write(path, f"{artifacts}\n")


def needed(store: Store) -> set[str]:
    """The keys that some checkout's artifacts were made with. A checkout that is gone needs nothing."""
    keys = set()
    for root in (store.root / "roots").glob("[0-9a-f]*"):
        artifacts = Path(root.read_text(encoding="utf-8").strip())
        if not artifacts.is_dir():
            root.unlink(missing_ok=True)
            continue
        for path in artifacts.glob("*/*.record.json"):
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
                keys.add(Record.parse(path.read_text(encoding="utf-8")).key)
    return keys


def pin(store: Store, target: str, keys: Iterable[str]) -> None:
    """Keeps the results of `keys`, besides those that `target` is pinned to already, until it is unpinned."""
    every = sorted({*keys, *pinned(store).get(target, ())})
    tree.write(_pin(store, target), "\n".join([target, *every, ""]))


def unpin(store: Store, target: str) -> bool:
    """Lets the results of `target` go, whoever pinned it. False when nobody had."""
    there = target in pinned(store)
    _pin(store, target).unlink(missing_ok=True)
    return there


def pinned(store: Store) -> dict[str, frozenset[str]]:
    """Target -> keys."""
    texts = [path.read_text(encoding="utf-8").splitlines() for path in (store.root / "pins").glob("[0-9a-f]*")]
    return {lines[0]: frozenset(lines[1:]) for lines in texts}


def collect(store: Store, keep: set[str], limits: Limits) -> int:
    """Removes results beyond `limits`, least recently used first and never one of `keep`, then what no result needs.

    What counts are the bytes that lie here, those that several results share once. Returns the bytes that were freed.
    """
    sizes = _sizes(store)
    before, now = sum(sizes.values()), time.time()
    looks = ((_look(store.result_path(key)), key, receipt) for key, receipt in _results(store))
    results = [(found.st_mtime, key, receipt) for found, key, receipt in looks if found]
    held = 0
    for used, key, receipt in sorted(results, key=lambda row: -row[0]):
        own = {entry.digest for entry in receipt.entries} & sizes.keys()
        size = sum(sizes[content] for content in own)
        too_old = limits.age_s is not None and now - used > limits.age_s
        too_much = limits.size is not None and held + size > limits.size
        if key not in keep and (too_old or too_much):
            store.forget(key)
            continue
        held += size
        for content in own:
            del sizes[content]  # counted
    _sweep(store, now - limits.grace_s)
    return before - sum(_sizes(store).values())


def warm(store: Store) -> dict[str, int]:
    """Folder name -> bytes of what commands left there to save time, such as timing caches of TensorRT."""
    return {folder.name: _folder_size(folder) for folder in sorted((store.root / "warm").glob("*"))}


def cool(store: Store, age_s: float) -> int:
    """Removes those folders that no command has written to for `age_s` seconds. Returns the bytes that were freed.

    One in use may go: what its command would leave there is then lost, and nothing else.
    """
    before, now = sum(warm(store).values()), time.time()
    for folder in (store.root / "warm").glob("*"):
        written = (found.st_mtime for path in folder.iterdir() if (found := _look(path)))
        if now - max(written, default=0.0) >= age_s:
            _remove(folder)
    return before - sum(warm(store).values())


def sweep_work(artifacts: Path, wanted: set[Path], grace_s: float) -> None:
    """Removes work folders and half-made files of builds that ended, and outputs of actions that are no more."""
    old = time.time() - grace_s
    for path in (*artifacts.glob("work/*"), *artifacts.glob("*/.*")):
        if _older(path, old):
            _remove(path)
    for record in artifacts.glob("*/*.record.json"):
        folder = record.with_name(record.name.removesuffix(".record.json"))
        if folder not in wanted:
            for path in (folder, record, folder.with_name(f"{folder.name}.receipt.json")):
                _remove(path)


def _sweep(store: Store, old: float) -> None:
    """Removes blobs that no result names, and half-written files. Locks stay: removing one in use is a race."""
    named = {entry.digest for _, receipt in _results(store) for entry in receipt.entries}
    for content in list(store.digests()):
        path = store.blob(content)
        if content not in named and _older(path, old):
            path.unlink(missing_ok=True)
    for path in store.root.glob("sha256/*/[!.]*"):
        noted = store.note("sha256", path.parent.name + path.name)
        if noted and not store.blob(noted).exists():
            path.unlink(missing_ok=True)
    for path in store.root.glob("*/*/.*"):
        if _older(path, old):
            _remove(path)


def _pin(store: Store, target: str) -> Path:
    return store.root / "pins" / digest.of_text(target)[:16]


def _results(store: Store) -> Iterator[tuple[str, Receipt]]:
    for key in store.keys():  # noqa: SIM118 - a method of ours
        receipt = store.receipt(key)
        if receipt:
            yield key, receipt


def _good(store: Store, content: str) -> bool:
    """Whether the blob can be read and is what its name says."""
    try:
        return digest.of_file(store.blob(content)) == content
    except OSError:
        return False


def _look(path: Path) -> os.stat_result | None:
    """What there is at `path` itself, be it a link; None when it is gone by now."""
    try:
        return path.lstat()
    except FileNotFoundError:
        return None


def _older(path: Path, moment: float) -> bool:
    """Whether it is there, and has not changed since `moment` (seconds since 1970)."""
    found = _look(path)
    return found is not None and found.st_ctime < moment


def _sizes(store: Store) -> dict[str, int]:
    """Digest -> bytes of the blobs that are here."""
    return {content: found.st_size for content in store.digests() if (found := _look(store.blob(content)))}


def _folder_size(folder: Path) -> int:
    return sum(found.st_size for path in folder.rglob("*") if (found := _look(path)) and stat.S_ISREG(found.st_mode))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
