"""doit's memory of receipts, `artifacts/.doit.db`, so that no crash and no second doit can spoil it.

doit writes it in place: a kill in that moment, or two at once, would leave a file that it refuses to read. Nothing in
it is needed (whether an action is fresh is our own question), so an unreadable one is forgotten.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from doit.dependency import DatabaseException, JsonDB

from rules import tree

__all__ = ["WholeJson"]


class WholeJson(JsonDB):
    """doit's JSON backend with a file that is always whole, written only when there is something new."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._changed = False

    def set(self, task_id: str, dependency: str, value: Any) -> None:
        """As in JsonDB, where a tuple becomes a list."""
        if self.get(task_id, dependency) != (list(value) if isinstance(value, tuple) else value):
            self._changed = True
            super().set(task_id, dependency, value)

    def remove(self, task_id: str) -> None:
        """As in JsonDB."""
        self._changed = True
        super().remove(task_id)

    def remove_all(self) -> None:
        """As in JsonDB."""
        self._changed = True
        super().remove_all()

    def _load(self) -> Any:
        try:
            return super()._load()
        except DatabaseException:
            return {}

    def dump(self) -> None:
        """Writes it beside, then in place of, the old one. On a full disk the old one stays."""
        if not self._changed:
            return
        with suppress(OSError):
            tree.write(Path(self.name), self.codec.encode(self._db))
