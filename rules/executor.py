"""Brings one action's outputs here: they are there, or come from the cache, or its command runs.

Knows nothing of models, precisions or Triton.
"""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from rules import action as actions
from rules import digest, pinned, tree, workbench
from rules.action import Action, Files, Input, Local, Output, Pinned, Receipt
from rules.artifacts import Artifacts, Record, Unknown, changes
from rules.cache import Cache
from rules.errors import Problem, StepFailed, writing
from rules.gpu import Gpus
from rules.lock import alone

__all__ = ["Executor", "Made"]

Heard = Callable[[str], None]
How = Literal["ran", "local", "remote"]


@dataclass(frozen=True, kw_only=True)
class Made:
    """A result, how it was come by, and whether its bytes lie in artifacts/."""

    receipt: Receipt
    how: How
    here: bool


class Executor:
    """Makes the `graph`'s actions in `artifacts`, with results in `cache`; `revision` asks git, once something ran."""

    def __init__(
        self,
        artifacts: Artifacts,
        cache: Cache,
        graph: Mapping[str, Action],
        gpus: Callable[[], Gpus],
        revision: Callable[[], str] = str,
    ) -> None:
        self.artifacts = artifacts
        self.cache = cache
        self._graph = graph
        self.gpus = gpus
        self.revision = revision

    def manifest(self, action: Action, instead: Mapping[str, Receipt] | None = None) -> str:
        """The text that the key is the digest of. Raises Unknown when an input has not been made or pinned yet.

        `instead` are receipts, by action, to be taken instead of those in artifacts.
        """
        if loose := pinned.loose(action):
            raise Unknown(f"{loose[0]} in models.lock (doit lock)")
        known = {name: it for name, it in action.inputs if isinstance(it, Local | Output)}
        return actions.manifest(action, {name: self._digest(it, instead or {}) for name, it in known.items()})

    def fresh(self, action: Action, *, here: bool = True) -> bool:
        """Whether the outputs are what they would be if made now, and lie `here` if they are wanted here."""
        record = self.artifacts.record(action.name)
        try:
            if record is None or record.manifest != self.manifest(action):
                return False
            if not record.here:
                return not here
            return self.artifacts.whole(action.name, self.artifacts.receipt(action.name))
        except Unknown:
            return False

    def make(self, action: Action, heard: Heard, *, here: bool = True) -> Record:
        """Makes the outputs of `action`, whose inputs are made. `heard` gets what there is to tell meanwhile.

        With `here` false a remote hit is enough, without its bytes. Raises StepFailed when the command fails; a
        failure is never stored.
        """
        if loose := pinned.loose(action):
            hint = f"doit lock {action.name.partition(':')[2]}"
            raise StepFailed(Problem(what=f"{loose[0]} is not in models.lock", hint=hint))
        with writing(action.name):
            return self._make(action, heard, here=here)

    def _make(self, action: Action, heard: Heard, *, here: bool) -> Record:
        started, began = datetime.now(timezone.utc), time.monotonic()
        made, text = None, ""
        while made is None:
            text = self.manifest(action)
            with alone(self._lock_path(actions.key(text)), action.name, heard) as lock:
                made = self._find(action, text, heard, here=here) or self._run(action, text, lock, heard)
        record = self._record(action, text, made, started, time.monotonic() - began)
        self.artifacts.write(action.name, made.receipt, record)
        if made.how == "ran":
            self.artifacts.remember(action, record)
            self._share(action, record, made.receipt, heard)
        return record

    def observe(self, action: Action, heard: Heard, folder: Path) -> str:
        """Runs the command of `action`, whose inputs are made, and moves what it wrote below `folder`: its key.

        An observation of this machine and this moment: nothing is looked up and nothing is stored. Raises StepFailed.
        """
        with writing(action.name):
            for name in action.needs():
                self._bring(name, heard)
            key = actions.key(self.manifest(action))
            with (
                alone(self._lock_path(key), action.name, heard) as lock,
                self._at_work(action, key, lock, heard) as out,
            ):
                folder.mkdir(parents=True, exist_ok=True)
                for path in sorted(out.iterdir()):
                    shutil.move(path, folder / path.name)
        return key

    def cached(self, action: Action) -> bool:
        """Whether the result, as of now, is in the cache. Raises Unknown when an input has not been made yet."""
        return self.cache.find(actions.key(self.manifest(action))) is not None

    def command_line(self, action: Action, key: str | None) -> list[str]:
        """The exact command line that would run; where its inputs are not known yet, places stay as `{name}`."""
        try:
            warm = self.cache.store.warm(action.warm) if action.warm else None
            places = workbench.places(self._work_folder(key), self._sources(action), warm) if key else {}
        except Unknown:
            places = {}
        return workbench.argv(action, places)

    def _find(self, action: Action, text: str, heard: Heard, *, here: bool) -> Made | None:
        """The result from the cache, laid out when it is wanted here or costs nothing."""
        hit = self.cache.find(actions.key(text))
        if hit is None:
            return None
        if hit.where == "remote" and not here:
            return Made(receipt=hit.receipt, how="remote", here=False)
        if not self.cache.fetch(hit.receipt, heard):
            return None
        self._lay_out(action.name, hit.receipt, heard)
        return Made(receipt=hit.receipt, how=hit.where, here=True)

    def _run(self, action: Action, text: str, lock: int, heard: Heard) -> Made | None:
        """The result of the command; None when bringing its inputs here changed what they are."""
        for name in action.needs():
            self._bring(name, heard)
        if self.manifest(action) != text:
            return None
        key = actions.key(text)
        with self._at_work(action, key, lock, heard) as out:
            receipt = self._keep(key, out, action, heard)
        pinned.index(self.cache.store, action, receipt)
        return Made(receipt=receipt, how="ran", here=True)

    @contextmanager
    def _at_work(self, action: Action, key: str, lock: int, heard: Heard) -> Iterator[Path]:
        """Runs the command on GPUs of its own and gives its output folder, which is gone afterwards."""
        with self.gpus().lease(action.gpus, heard) as lease:
            folder, log = self._work_folder(key), self.artifacts.log_path(action.name)
            work = workbench.Work(action=action, folder=folder, lease=lease, lock=lock, warm=self._warm(action))
            with workbench.run(work, self._sources(action), log, heard) as out:
                self._untouched(action)
                yield out

    def _bring(self, name: str, heard: Heard) -> None:
        """Sees to it that the bytes of an input lie in artifacts: from the cache, or by making it once more."""
        receipt = self.artifacts.receipt(name)
        if self.artifacts.whole(name, receipt):
            return
        with alone(self._place_lock(name), name, heard):  # several commands may want it at once
            there = self.artifacts.whole(name, receipt) or self._restore(name, receipt, heard)
        if not there:
            self.make(self._graph[name], heard)

    def _restore(self, name: str, receipt: Receipt, heard: Heard) -> bool:
        record = self.artifacts.record(name)
        if record is None or not self.cache.fetch(receipt, heard):
            return False
        self.cache.store.lay_out(receipt, self.artifacts.folder(name))
        self.artifacts.write(name, receipt, replace(record, here=True))
        return True

    def _keep(self, key: str, out: Path, action: Action, heard: Heard) -> Receipt:
        """Stores what the command made; where the store cannot be written, what it made is used all the same."""
        known = self._known(action)
        for path, content in workbench.told(out).items():  # computed while it wrote: not read again
            found = (out / path).stat()
            known[found.st_dev, found.st_ino] = content
        receipt = tree.read(out, known)
        try:
            self.cache.store.add(key, out, receipt)
            self.cache.sign(key, receipt)
            self._lay_out(action.name, receipt, heard)
        except OSError as error:
            self.cache.tell(f"the store cannot be written, so results are not kept: {error.strerror}")
            self._keep_unstored(action.name, out, receipt)
        return receipt

    def _keep_unstored(self, name: str, out: Path, receipt: Receipt) -> None:
        for entry in receipt.entries:
            if (out / entry.path).exists():
                tree.protect(out / entry.path, entry)
            else:  # the store took it before it failed
                tree.place(self.cache.store.blob(entry.digest), out / entry.path, entry)
        with alone(self._place_lock(name), name, lambda _: None):
            tree.replace(self.artifacts.folder(name), out)

    def _share(self, action: Action, record: Record, receipt: Receipt, heard: Heard) -> None:
        """Sends a result to the team. Its record goes with it, without the log's place on this machine."""
        try:
            self.cache.store.write_note("records", record.key, record.text())
        except OSError:
            return  # a store that cannot be written has been told of already
        if action.sharing == "remote":
            self.cache.push(record.key, receipt, heard)

    def _untouched(self, action: Action) -> None:
        """Raises StepFailed when the command wrote into its inputs: what it made cannot be trusted then."""
        for name in action.needs():
            if not self.artifacts.whole(name, self.artifacts.receipt(name)):
                self.cache.store.missing(self.artifacts.receipt(name))  # drops blobs that were written through a link
                hint = "an action writes only below {out}; its inputs are made good by the next build"
                raise StepFailed(Problem(what=f"{action.name} changed its input {name}", hint=hint))

    def _sources(self, action: Action) -> dict[str, workbench.Source]:
        """Where each input lies and which of its files the action may see."""
        return {name: self._source(source) for name, source in action.inputs}

    def _source(self, source: Input) -> workbench.Source:
        if isinstance(source, Files):
            return workbench.Source(place=Path(source.root))
        if isinstance(source, Local):
            return workbench.Source(place=Path(source.path))
        if isinstance(source, Pinned):
            return workbench.Source(place=Path(), text=pinned.listing(self.cache.store, source))
        part = self.artifacts.receipt(source.action).only(source.only) if source.only else None
        return workbench.Source(place=self.artifacts.folder(source.action), part=part)

    def _known(self, action: Action) -> dict[tuple[int, int], str]:
        """Digests of the inputs' files by (device, inode): an output that is a hard link to one is not read again."""
        known = {}
        for name in action.needs():
            for entry in self.artifacts.receipt(name).entries:
                found = (self.artifacts.folder(name) / entry.path).stat()
                if found.st_size == entry.size and found.st_mtime == tree.seal(entry.digest):
                    known[found.st_dev, found.st_ino] = entry.digest
        return known

    def _digest(self, source: Input, instead: Mapping[str, Receipt]) -> str:
        if isinstance(source, Output):
            receipt = instead.get(source.action) or self.artifacts.receipt(source.action)
            return receipt.digest(source.only)
        assert isinstance(source, Local)
        memo = tree.Memo(self.artifacts.root / "memo" / f"{digest.of_text(source.path)[:16]}.json")
        try:
            return memo.read(Path(source.path)).digest()
        except OSError as error:
            raise StepFailed(Problem(what=f"{source.path} cannot be read", facts=(("reason", str(error)),))) from error

    def _lay_out(self, name: str, receipt: Receipt, heard: Heard) -> None:
        """Puts the files in their place, once: another process may be reading them there already."""
        if not self.artifacts.whole(name, receipt):
            with alone(self._place_lock(name), name, heard):
                if not self.artifacts.whole(name, receipt):
                    self.cache.store.lay_out(receipt, self.artifacts.folder(name))

    def _record(self, action: Action, text: str, made: Made, started: datetime, seconds: float) -> Record:
        before = self.artifacts.record(action.name)
        ran = made.how == "ran"
        return Record(
            key=actions.key(text),
            manifest=text,
            how=made.how,
            here=made.here,
            seconds=round(seconds, 3),
            size=made.receipt.size(),
            started=started.isoformat(timespec="seconds"),
            host=platform.node(),
            revision=self.revision() if ran else "",
            log=str(self.artifacts.log_path(action.name)) if ran else "",
            changed=tuple(changes(before.manifest, text)) if before else (),
        )

    def _work_folder(self, key: str) -> Path:
        return self.artifacts.root / "work" / key[:16]

    def _warm(self, action: Action) -> Path | None:
        """In the store, which other checkouts may share; where no folder can be made there, our own."""
        if not action.warm:
            return None
        shared, own = self.cache.store.warm(action.warm), self.artifacts.root / "warm" / action.warm
        folder = shared if tree.writable(shared / ".writable") else own
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _place_lock(self, name: str) -> Path:
        return self.artifacts.root / "locks" / digest.of_text(name)[:16]

    def _lock_path(self, key: str) -> Path:
        """In the store, which other checkouts may share; where no file can be made there, our own."""
        path = self.cache.store.root / "locks" / key
        return path if tree.writable(path) else self.artifacts.root / "locks" / key
