"""What lies under artifacts/: outputs, what they are, and how they came to be.

<stage>/<name>/              the outputs
<stage>/<name>.receipt.json  what they are: the action's only doit target
<stage>/<name>.record.json   how they came: key, manifest, seconds, host, log (volatile, never keyed)
logs/<stage>/<name>.log      what the command printed
history.jsonl                a line per command that ran, for estimates
"""

from __future__ import annotations

import difflib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rules import digest, tree
from rules.action import Action, Receipt

__all__ = ["Artifacts", "Record", "Unknown", "changes", "like"]


class Unknown(Exception):
    """The digest of an input is not known yet: its action has not been run."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """How outputs came to be.

    `here` is False for a remote hit whose bytes nobody needed yet; `changed` are the manifest's lines that differ from
    those of the time before; `seconds` and `size` (bytes) are of the run, or of the fetch; `revision` is git's.
    """

    key: str
    manifest: str
    how: Literal["ran", "local", "remote"]
    here: bool
    seconds: float
    size: int
    started: str
    host: str
    revision: str
    log: str
    changed: tuple[str, ...]

    def text(self) -> str:
        """The record file."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @staticmethod
    def parse(text: str) -> Record:
        """Reads `text()` back. Raises ValueError, TypeError or KeyError on anything else."""
        data: dict[str, Any] = json.loads(text)
        return Record(**{**data, "changed": tuple(data["changed"])})


class Artifacts:
    """The folder `root`, one per checkout."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._prefix = f"{root}/"
        self._receipts: dict[str, Receipt] = {}

    def receipt_path(self, name: str) -> str:
        """Where the receipt of the action of this name lies. Text: a graph of 10,000 asks this often."""
        return f"{self._place(name)}.receipt.json"

    def folder(self, name: str) -> Path:
        """Where the outputs of the action of this name lie."""
        return Path(self._place(name))

    def states(self, name: str) -> tuple[tree.State, list[tuple[str, tree.State]]]:
        """The state of the record and of each output of the action of this name. Raises OSError without either."""
        return tree.state(os.stat(self._record_path(name))), tree.states(self._place(name))  # noqa: PTH116 - as above

    def log_path(self, name: str) -> Path:
        """Where the output of the action's command is kept."""
        return Path(f"{self._prefix}logs/{name.replace(':', '/', 1)}.log")

    def receipt(self, name: str) -> Receipt:
        """What the action of this name made. Raises Unknown when it made nothing yet."""
        if name not in self._receipts:
            try:
                self._receipts[name] = Receipt.parse(tree.text(self.receipt_path(name)))
            except (OSError, ValueError, TypeError) as error:
                raise Unknown(name) from error
        return self._receipts[name]

    def record(self, name: str) -> Record | None:
        """How the outputs of the action of this name came to be, or None when it was never made here."""
        try:
            return Record.parse(tree.text(self._record_path(name)))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def whole(self, name: str, receipt: Receipt) -> bool:
        """Whether the folder of the action of this name has exactly the files of `receipt`."""
        return tree.whole(self._place(name), receipt)

    def write(self, name: str, receipt: Receipt, record: Record) -> None:
        """Writes receipt and record; an equal receipt stays as it is, which is what cuts a rebuild off early."""
        path = Path(self.receipt_path(name))
        if not path.exists() or path.read_bytes() != receipt.text().encode():
            tree.write(path, receipt.text())
        self._receipts[name] = receipt
        tree.write(Path(self._record_path(name)), record.text())

    def clean(self, name: str) -> None:
        """Removes outputs, receipt and record of the action of this name; the store keeps its result."""
        shutil.rmtree(self.folder(name), ignore_errors=True)
        for path in (self.receipt_path(name), self._record_path(name)):
            Path(path).unlink(missing_ok=True)
        self._receipts.pop(name, None)

    def remember(self, action: Action, record: Record) -> None:
        """Adds a run to the history; one short line, so that two processes do not mix theirs."""
        row = {"name": action.name, "like": like(action), "seconds": record.seconds, "size": record.size}
        line = json.dumps({**row, "key": record.key})
        with (self.root / "history.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def history(self) -> Iterator[dict[str, Any]]:
        """The runs so far, oldest first; lines that a crash has torn are left out."""
        try:
            lines = (self.root / "history.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return
        for line in lines:
            with suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict) and row.keys() >= {"name", "seconds", "size"}:
                    yield row

    def _place(self, name: str) -> str:
        return f"{self._prefix}{name.replace(':', '/', 1)}"

    def _record_path(self, name: str) -> str:
        return f"{self._place(name)}.record.json"


def like(action: Action) -> str:
    """Equal for actions that cost about the same: of one stage, toolchain and platform."""
    return digest.of_text(repr((action.stage, action.platform, sorted(action.toolchain))))[:16]


def changes(before: str, after: str) -> list[str]:
    """The lines that differ between two manifests: `- old` and `+ new`, in the manifest's order."""
    lines = difflib.ndiff(before.split("\n"), after.split("\n"))  # splitlines would split at U+2028 too
    return [line for line in lines if line.startswith(("- ", "+ "))]
