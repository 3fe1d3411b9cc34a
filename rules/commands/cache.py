"""`doit cache status | verify | gc | pin | unpin | push | pull`: the store, and the team's cache behind it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from doit.exceptions import InvalidCommand

from rules import upkeep
from rules.artifacts import Unknown
from rules.commands import EngineCommand
from rules.errors import writing
from rules.report import progress
from rules.tasks import here
from rules.upkeep import Limits
from rules.workspace import Workspace

__all__ = ["CacheCommand"]

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_OPTIONS = (
    {"name": "signatures", "long": "signatures", "type": bool, "default": False, "help": "verify: who signed"},
    {"name": "size", "long": "size", "type": str, "default": "", "help": "gc: keep the newest up to this, as 200G"},
    {"name": "age", "long": "age", "type": str, "default": "", "help": "gc: remove what was not used for so many days"},
    {"name": "all", "long": "all", "type": bool, "default": False, "help": "gc: also what current variants need"},
)


class CacheCommand(EngineCommand):
    """The command."""

    name = "cache"
    doc_purpose = "look after the store: status, verify, gc, pin, unpin, push, pull"
    doc_usage = (
        "status | verify [--signatures] | gc [--size 200G] [--age DAYS] [--all] | "
        "pin TARGET... | unpin TARGET... | push TARGET... | pull TARGET..."
    )
    doc_description = (
        "gc never removes what a checkout's artifacts were made with, unless --all, nor what is pinned. With --age it "
        "also removes the timing caches (status calls them warm) that no build wrote to for so long. pin keeps what "
        "a target is now, with all that it is made from. push and pull take what plan "
        "takes; pull brings the bytes too, so that a machine without a network can build from them."
    )
    cmd_options = _OPTIONS

    def execute(self, opt_values: dict[str, Any], pos_args: list[str]) -> int:
        """Does one of them; exit 1 when something was wrong with the store, or it cannot be written to."""
        verbs: dict[str, Callable[[Workspace, dict[str, Any], list[str]], int]] = {
            "status": _status,
            "verify": _verify,
            "gc": _gc,
            "pin": _pin,
            "unpin": _unpin,
            "push": _push,
            "pull": _pull,
        }
        if not pos_args or pos_args[0] not in verbs:
            raise InvalidCommand(f"cache needs one of: {', '.join(verbs)}")
        with writing("the store"):
            return verbs[pos_args[0]](here(), opt_values, pos_args[1:])


def _status(space: Workspace, options: dict[str, Any], targets: list[str]) -> int:  # noqa: ARG001
    cache = space.executor.cache
    found = upkeep.totals(cache.store)
    print(f"store    {cache.store.root}")
    print(f"         {found.results} results, {found.blobs} blobs, {_size(found.size)}, {_size(found.loose)} loose")
    print(f"remote   {cache.remote.url if cache.remote else 'none'}{f', {cache.mode}' if cache.remote else ''}")
    for name, size in upkeep.warm(cache.store).items():
        print(f"warm     {name}, {_size(size)}")
    for target, keys in sorted(upkeep.pinned(cache.store).items()):
        print(f"pinned   {target}, {len(keys)} results")
    print(f"trusted  {', '.join(sorted(cache.trusted)) or 'anybody who can write to the remote'}")
    return 0


def _verify(space: Workspace, options: dict[str, Any], targets: list[str]) -> int:  # noqa: ARG001
    cache = space.executor.cache
    if options["signatures"]:
        keys = upkeep.unsigned(cache) if cache.trusted else []
        print("\n".join([f"not signed by a trusted key: {key}" for key in keys] or ["every result is believed"]))
        return 1 if keys else 0
    with progress.action("cache verify"):
        repaired, removed = upkeep.verify(cache, lambda line: progress.line("cache verify", line))
    found = upkeep.totals(cache.store)
    print(f"{found.blobs} blobs, {_size(found.size)} read; {len(repaired)} results repaired, {len(removed)} removed")
    return 1 if removed else 0


def _gc(space: Workspace, options: dict[str, Any], targets: list[str]) -> int:  # noqa: ARG001
    store, artifacts = space.executor.cache.store, space.executor.artifacts
    keep = set() if options["all"] else upkeep.needed(store)
    keep = keep.union(*upkeep.pinned(store).values())
    limits = Limits(size=_bytes(options["size"]), age_s=_days(options["age"]))
    wanted = {artifacts.folder(name) for name in space.plan.actions}
    upkeep.sweep_work(artifacts.root, wanted, limits.grace_s)
    freed = upkeep.collect(store, keep, limits)
    freed += 0 if limits.age_s is None else upkeep.cool(store, limits.age_s)
    left = upkeep.totals(store).size
    spared = (
        "pinned" if options["all"] else "pinned, or what a checkout's artifacts were made with (--all takes that too)"
    )
    why = f": {spared}" if limits.size is not None and left > limits.size else ""
    print(f"{_size(freed)} freed, {_size(left)} stay{why}")
    return 0


def _pin(space: Workspace, options: dict[str, Any], targets: list[str]) -> int:  # noqa: ARG001
    store, artifacts = space.executor.cache.store, space.executor.artifacts
    missing = 0
    for target in _at_least_one(targets, "pin"):
        wanted = space.closure(space.named([target]))
        records = [record for action in wanted if (record := artifacts.record(action.name))]
        keys = [record.key for record in records if store.get(record.key)]
        missing += len(wanted) - len(keys)
        upkeep.pin(store, target, keys)
        print(f"{target}: {len(keys)} results pinned, {len(wanted) - len(keys)} not here")
    return 1 if missing else 0


def _unpin(space: Workspace, options: dict[str, Any], targets: list[str]) -> int:  # noqa: ARG001
    """Also of a target that is no longer in models.toml."""
    store = space.executor.cache.store
    unknown = [target for target in _at_least_one(targets, "unpin") if not upkeep.unpin(store, target)]
    print("\n".join(f"{target} was not pinned" for target in unknown) or f"{len(targets)} unpinned")
    return 1 if unknown else 0


def _at_least_one(targets: list[str], verb: str) -> list[str]:
    if not targets:
        raise InvalidCommand(f"cache {verb} needs a TARGET, such as build:NAME")
    return targets


def _push(space: Workspace, options: dict[str, Any], targets: list[str]) -> int:  # noqa: ARG001
    cache, artifacts = space.executor.cache, space.executor.artifacts
    if cache.remote is None:
        raise InvalidCommand('there is no remote to push to: [cache] remote = "s3://..." in models.toml, docs/cache.md')
    sent = missing = 0
    for action in space.closure(space.named(targets or space.default)):
        record = artifacts.record(action.name)
        if record is None or cache.store.get(record.key) is None:
            missing += 1
            continue
        with progress.action(action.name):
            receipt = artifacts.receipt(action.name)
            sent += cache.push(record.key, receipt, _teller(action.name))
    print(f"{sent} results pushed, {missing} not made here")
    return 0 if cache.mode == "write" else 1


def _pull(space: Workspace, options: dict[str, Any], targets: list[str]) -> int:  # noqa: ARG001
    executor, pulled, missing = space.executor, 0, 0
    for action in space.closure(space.named(targets or space.default)):
        try:
            known = executor.cached(action)
        except Unknown:
            known = False
        if not known:
            missing += 1
            continue
        with progress.action(action.name):
            executor.make(action, _teller(action.name), here=True)
        pulled += 1
    print(f"{pulled} results are here, {missing} are in no cache")
    return 1 if missing else 0


def _teller(name: str) -> Callable[[str], None]:
    return lambda line: progress.line(name, line)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 10**9 else f"{count / 1e6:.1f} MB"


def _bytes(text: str) -> int | None:
    match = re.fullmatch(r"(\d+)([KMGT]?)B?", text, re.IGNORECASE)
    if text and not match:
        raise InvalidCommand(f"--size {text}: write a number with K, M, G or T, such as 200G")
    return int(match[1]) * _UNITS[match[2].upper()] if match else None


def _days(text: str) -> float | None:
    if text and not text.replace(".", "", 1).isdigit():
        raise InvalidCommand(f"--age {text}: write a number of days")
    return float(text) * 86400 if text else None
