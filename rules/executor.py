"""Brings one action's outputs to artifacts/: they are there, or come from the store, or its command runs.

    artifacts/<stage>/<name>/              the outputs
    artifacts/<stage>/<name>.receipt.json  what they are: the action's only doit target
    artifacts/<stage>/<name>.record.json   how they came: key, manifest, seconds, host, log (volatile, never keyed)
    artifacts/logs/<stage>/<name>.log      what the command printed

Knows nothing of models, precisions or Triton.
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import json
import platform
import re
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rules import action as actions
from rules import digest, tree
from rules.action import Action, Files, Local, Output, Receipt
from rules.errors import Problem, StepFailed
from rules.runners import local
from rules.store import Store

__all__ = ["Executor", "Record", "Unknown", "changes"]

_TAIL_LINES = 15
_HINT = "the log has everything it printed"
_HINTS = {"failed with signal 9": "killed from outside: out of host memory?"}


class Unknown(Exception):
    """The digest of an input is not known yet: its action has not been run."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """How outputs came to be. `changed` are the manifest's lines that differ from those of the time before."""

    key: str
    manifest: str
    how: Literal["ran", "local"]
    seconds: float
    host: str
    log: str
    changed: tuple[str, ...]


class Executor:
    """Runs actions below the folder `artifacts`, with results in `store`."""

    def __init__(self, artifacts: Path, store: Store) -> None:
        self.artifacts = artifacts
        self.store = store
        self._prefix = f"{artifacts}/"
        self._receipts: dict[str, Receipt] = {}

    def receipt_path(self, name: str) -> str:
        """Where the receipt of the action of this name lies. Text: a graph of 10,000 asks this often."""
        return f"{self._prefix}{name.replace(':', '/', 1)}.receipt.json"

    def folder(self, name: str) -> Path:
        """Where the outputs of the action of this name lie."""
        return Path(f"{self._prefix}{name.replace(':', '/', 1)}")

    def log_path(self, name: str) -> Path:
        """Where the output of the action's command is kept."""
        return self.artifacts / "logs" / f"{name.replace(':', '/', 1)}.log"

    def manifest(self, action: Action) -> str:
        """The text that the key is the digest of. Raises Unknown when an input has not been made yet."""
        digests = {name: self._digest(source) for name, source in action.inputs if not isinstance(source, Files)}
        return actions.manifest(action, digests)

    def record(self, name: str) -> Record | None:
        """The record of the action of this name, or None when it was never made here."""
        try:
            data = json.loads(self._record_path(name).read_text(encoding="utf-8"))
            return Record(**{**data, "changed": tuple(data["changed"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def fresh(self, action: Action) -> bool:
        """Whether the outputs are there, are what the receipt says, and were made from what is there now."""
        record = self.record(action.name)
        try:
            return (
                record is not None
                and record.manifest == self.manifest(action)
                and self._whole(self.folder(action.name), self._receipt(action.name))
            )
        except Unknown:
            return False

    def make(self, action: Action, heard: Callable[[str], None]) -> Record:
        """Makes the outputs of `action`, whose inputs are made. `heard` gets what there is to tell meanwhile.

        Raises StepFailed when the command fails; a failure is never stored.
        """
        text = self.manifest(action)
        key = actions.key(text)
        started = time.monotonic()
        with self._alone(key, heard):
            receipt = self.store.get(key)
            how: Literal["ran", "local"] = "local" if receipt else "ran"
            receipt = receipt or self._run(action, key, heard)
            self._lay_out(action.name, receipt)
        seconds = round(time.monotonic() - started, 3)
        return self._remember(action, receipt, text, how, seconds)

    def clean(self, name: str) -> None:
        """Removes the outputs, receipt and record of the action of this name; the store keeps its result."""
        shutil.rmtree(self.folder(name), ignore_errors=True)
        for path in (Path(self.receipt_path(name)), self._record_path(name)):
            path.unlink(missing_ok=True)
        self._receipts.pop(name, None)

    def _run(self, action: Action, key: str, heard: Callable[[str], None]) -> Receipt:
        problems = local.mismatches(action.toolchain)
        if problems:
            raise StepFailed(problems)
        work = self.artifacts / "work" / key[:16]
        shutil.rmtree(work, ignore_errors=True)
        try:
            places = {name: str(self._present(source, work / "in" / name)) for name, source in action.inputs}
            out, scratch = work / "out", work / "scratch"
            for folder in (out, scratch):
                folder.mkdir(parents=True)
            self._command(action, {**places, "out": str(out), "python": local.python()}, scratch, heard)
            _require(action, out)
            return self.store.put(key, out, self._known(action))
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _command(self, action: Action, places: Mapping[str, str], scratch: Path, heard: Callable[[str], None]) -> None:
        log = self.log_path(action.name)
        tail: deque[str] = deque(maxlen=_TAIL_LINES)

        def line(text: str) -> None:
            tail.append(text)
            heard(text)

        command = local.Command(
            argv=[_fill(word, places) for word in action.argv],
            env={name: _fill(value, places) for name, value in action.env},
            log=log,
            scratch=scratch,
            timeout_s=action.timeout_s,
        )
        try:
            code = local.run(command, line)
        except TimeoutError:
            ended = f"had no end after {action.timeout_s:g} s"
        else:
            if not code:
                return
            ended = f"failed with {f'signal {-code}' if code < 0 else f'exit code {code}'}"
        facts = (("log", str(log)), *(("", said) for said in tail))
        raise StepFailed(Problem(what=f"{action.name} {ended}", facts=facts, hint=_HINTS.get(ended, _HINT)))

    def _present(self, source: actions.Input, view: Path) -> Path:
        """The place of an input: as it lies there, or a folder of only the files that the action may see."""
        if isinstance(source, Files):
            return Path(source.root)
        if isinstance(source, Local):
            return Path(source.path)
        folder = self.folder(source.action)
        if not source.only:
            return folder
        view.mkdir(parents=True)
        for entry in self._receipt(source.action).only(source.only).entries:
            tree.place(folder / entry.path, view / entry.path, entry)
        return view

    def _known(self, action: Action) -> dict[tuple[int, int], str]:
        """Digests of the inputs' files by (device, inode): an output that is a hard link to one is not read again."""
        known = {}
        for name in action.needs():
            for entry in self._receipt(name).entries:
                found = (self.folder(name) / entry.path).stat()
                known[found.st_dev, found.st_ino] = entry.digest
        return known

    def _digest(self, source: actions.Input) -> str:
        if isinstance(source, Output):
            return self._receipt(source.action).only(source.only).digest()
        assert isinstance(source, Local)
        memo = tree.Memo(self.artifacts / "memo" / f"{digest.of_text(source.path)[:16]}.json")
        try:
            return memo.read(Path(source.path)).digest()
        except OSError as error:
            raise StepFailed(Problem(what=f"{source.path} cannot be read", facts=(("reason", str(error)),))) from error

    def _receipt(self, name: str) -> Receipt:
        if name not in self._receipts:
            try:
                self._receipts[name] = Receipt.parse(Path(self.receipt_path(name)).read_text(encoding="utf-8"))
            except (OSError, ValueError, TypeError) as error:
                raise Unknown(name) from error
        return self._receipts[name]

    def _whole(self, folder: Path, receipt: Receipt) -> bool:
        if not folder.is_dir() or {entry.path for entry in receipt.entries} != set(tree.names(folder)):
            return False
        return all(tree.intact(folder / entry.path, entry) for entry in receipt.entries)

    def _lay_out(self, name: str, receipt: Receipt) -> None:
        if not self._whole(self.folder(name), receipt):
            self.store.lay_out(receipt, self.folder(name))

    def _remember(
        self, action: Action, receipt: Receipt, text: str, how: Literal["ran", "local"], seconds: float
    ) -> Record:
        before = self.record(action.name)
        record = Record(
            key=actions.key(text),
            manifest=text,
            how=how,
            seconds=seconds,
            host=platform.node(),
            log=str(self.log_path(action.name)) if how == "ran" else "",
            changed=tuple(changes(before.manifest, text)) if before else (),
        )
        path = Path(self.receipt_path(action.name))
        if not path.exists() or path.read_text(encoding="utf-8") != receipt.text():
            tree.write(path, receipt.text())
        self._receipts[action.name] = receipt
        tree.write(self._record_path(action.name), json.dumps(asdict(record), indent=1) + "\n")
        return record

    @contextlib.contextmanager
    def _alone(self, key: str, heard: Callable[[str], None]) -> Iterator[None]:
        """Holds the lock of one key, so that two builds of it, here or in another process, are one."""
        path = self.store.root / "locks" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                heard("waiting for another build of the same key")
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _record_path(self, name: str) -> Path:
        return Path(f"{self._prefix}{name.replace(':', '/', 1)}.record.json")


def changes(before: str, after: str) -> list[str]:
    """The lines that differ between two manifests: `- old` and `+ new`, in the manifest's order."""
    lines = difflib.ndiff(before.split("\n"), after.split("\n"))  # splitlines would split at U+2028 too
    return [line for line in lines if line.startswith(("- ", "+ "))]


def _fill(word: str, places: Mapping[str, str]) -> str:
    """Replaces `{name}` by its place. Not str.format: other braces, as in JSON, stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda match: places.get(match[1], match[0]), word)


def _require(action: Action, out: Path) -> None:
    missing = [pattern for pattern in action.outputs if not any(out.glob(pattern))]
    if missing:
        facts = (("missing", ", ".join(missing)), ("found", ", ".join(sorted(tree.names(out))) or "nothing"))
        raise StepFailed(Problem(what=f"{action.name} did not make its outputs", facts=facts))
