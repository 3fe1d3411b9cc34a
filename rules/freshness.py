"""What was found fresh the last time, so that the next time only asks whether anything was touched since.

A row says that an action, defined so, was fresh while its record, its outputs, its receipt and the receipts of what it
needs were in one state: (device, inode, size, modified, changed) of each file. The time of the last change is the
kernel's own, so an edit of the same size with its old time put back is another state. What has no row, another state,
or a change in the last two seconds is asked of the executor, as if there were no memo.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable

from rules import digest, tree
from rules.artifacts import Artifacts

__all__ = ["Freshness"]

_VERSION = 1  # bump when the meaning of a row changes
_SETTLED_NS = 2_000_000_000  # a file changed just now may change again within one tick of the file system's clock


class Freshness:
    """The memo of the checkout with these artifacts, memo/fresh.json below them."""

    def __init__(self, artifacts: Artifacts) -> None:
        self._artifacts = artifacts
        self._path = artifacts.root / "memo" / "fresh.json"
        self._rows = self._load()
        self._learnt: dict[str, str] = {}
        self._receipts: dict[str, tree.State] = {}
        self._settled = time.time_ns() - _SETTLED_NS

    def state(self, name: str, identity: str, needs: Iterable[str]) -> str:
        """What rows hold of the action of this name; "" where something is missing or was changed just now.

        To be asked for before the executor is asked: what changes in between is another state the next time.
        """
        try:
            receipts = [self._receipt(one) for one in (name, *needs)]
            record, outputs = self._artifacts.states(name)
        except OSError:
            return ""
        newest = max(changed for *_, changed in (record, *receipts, *(one for _, one in outputs)))
        return digest.of_text(f"{identity} {record} {receipts} {outputs}") if newest < self._settled else ""

    def known(self, name: str, state: str) -> bool:
        """Whether the action of this name was fresh in this state, with its outputs here."""
        return bool(state) and self._rows.get(name) == state

    def learn(self, name: str, state: str) -> None:
        """The action of this name is fresh in this state, with its outputs here."""
        if state:
            self._learnt[name] = state

    def save(self, names: Iterable[str]) -> None:
        """Keeps what is known of the actions of these names. On a full disk the old memo stays."""
        if self._learnt:
            rows = {**self._rows, **self._learnt}
            text = json.dumps({"version": _VERSION, "rows": {name: rows[name] for name in names if name in rows}})
            with contextlib.suppress(OSError):
                tree.write(self._path, text)

    def _receipt(self, name: str) -> tree.State:
        found = self._receipts.get(name)
        if found is None:
            found = self._receipts[name] = tree.state(os.stat(self._artifacts.receipt_path(name)))  # noqa: PTH116
        return found

    def _load(self) -> dict[str, str]:
        try:
            data = json.loads(tree.text(str(self._path)))
            return dict(data["rows"]) if data["version"] == _VERSION else {}
        except (OSError, ValueError, TypeError, KeyError):
            return {}
