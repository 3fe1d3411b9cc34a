"""What a build would do, without doing it: each action's state, its key where that can be known, and why.

fresh     made, and still what it would be        local, remote   its result is in the cache
run       its command has to run                  blocked         its key depends on one that has to run
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from rules import action as actions
from rules.action import Action, Receipt
from rules.artifacts import Artifacts, Unknown, changes, like
from rules.executor import Executor

__all__ = ["Outlook", "Status", "look"]

Status = Literal["fresh", "local", "remote", "run", "blocked"]


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """`seconds` and `size` (bytes of output) are expected, from what ran before; None without any history."""

    action: Action
    status: Status
    key: str | None
    reasons: tuple[str, ...]
    seconds: float | None
    size: int | None


def look(executor: Executor, wanted: Iterable[Action]) -> list[Outlook]:
    """The outlook of `wanted`, which come after what they need."""
    history = _History(executor.artifacts)
    receipts: dict[str, Receipt] = {}
    found: dict[str, Outlook] = {}
    for action in wanted:
        needs = dict.fromkeys(action.needs())
        unsure = [name for name in needs if name in found and found[name].status in ("run", "blocked")]
        if unsure:
            reasons = tuple(f"waits for {name}" for name in dict.fromkeys(unsure))
            found[action.name] = history.outlook(action, "blocked", None, reasons)
        else:
            found[action.name] = _known(executor, action, receipts, history)
    return list(found.values())


def _known(executor: Executor, action: Action, receipts: dict[str, Receipt], history: _History) -> Outlook:
    """The outlook of an action whose key can be computed; adds the receipt of a cached result to `receipts`."""
    try:
        text = executor.manifest(action, receipts)
    except Unknown as error:
        return history.outlook(action, "blocked", None, (f"waits for {error}",))
    key = actions.key(text)
    if not any(name in receipts for name in action.needs()) and executor.fresh(action, here=False):
        return history.outlook(action, "fresh", key, ())
    reasons = _reasons(executor.artifacts, action, text)
    hit = executor.cache.find(key)
    if hit is None:
        return history.outlook(action, "run", key, reasons)
    receipts[action.name] = hit.receipt
    size = sum(entry.size for entry in executor.cache.store.missing(hit.receipt))
    return Outlook(action=action, status=hit.where, key=key, reasons=reasons, seconds=0.0, size=size)


def _reasons(artifacts: Artifacts, action: Action, text: str) -> tuple[str, ...]:
    record = artifacts.record(action.name)
    if record is None:
        return ("never made here",)
    changed = changes(record.manifest, text)
    return tuple(changed) or ("nothing keyed changed; its outputs are missing or were modified",)


class _History:
    """What runs cost before: the last run of this action, else the median of those like it."""

    def __init__(self, artifacts: Artifacts) -> None:
        self._last: dict[str, Mapping[str, float]] = {}
        self._alike: dict[str, list[Mapping[str, float]]] = {}
        for row in artifacts.history():
            self._last[row["name"]] = row
            self._alike.setdefault(row.get("like", ""), []).append(row)

    def outlook(self, action: Action, status: Status, key: str | None, reasons: tuple[str, ...]) -> Outlook:
        """An outlook with what this action is expected to cost; one that is fresh costs nothing."""
        costs = status != "fresh"
        seconds, size = self._of(action, "seconds"), self._of(action, "size")
        return Outlook(
            action=action,
            status=status,
            key=key,
            reasons=reasons,
            seconds=seconds if costs else 0.0,
            size=None if size is None or not costs else int(size),
        )

    def _of(self, action: Action, what: str) -> float | None:
        row = self._last.get(action.name)
        if row:
            return row[what]
        rows = self._alike.get(like(action))
        return statistics.median(row[what] for row in rows) if rows else None
