"""An executor in a temporary folder, and actions whose commands are real processes of a few milliseconds."""

from __future__ import annotations

from pathlib import Path

from rules.action import Action, Input
from rules.artifacts import Artifacts, Record
from rules.cache import Cache
from rules.executor import Executor
from rules.gpu import Gpus
from rules.store import Store

__all__ = ["Lab"]

BEFORE = """
import os, sys, time
from pathlib import Path
out, *places = map(Path, sys.argv[1:])
with open(out.parents[3] / "trace", "a") as trace:
    trace.write({name!r} + "\\n")
"""


class Lab:
    """`root` is the folder; `heard` is what the running commands said, `warned` what a person was warned of."""

    def __init__(self, root: Path, **cache: object) -> None:
        self.root = root
        self.store = Store(root / "store")
        self.warned: list[str] = []
        self.cache = Cache(store=self.store, warn=self.warned.append, **cache)  # type: ignore[arg-type]
        self.heard: list[str] = []
        self.graph: dict[str, Action] = {}
        self.trace = root / "trace"

    @property
    def executor(self) -> Executor:
        """A new one each time, as in a new process: nothing is remembered but what lies in the folder."""
        gpus = Gpus((), self.root / "gpus")
        return Executor(Artifacts(self.root / "artifacts"), self.cache, self.graph, lambda: gpus)

    def action(self, name: str, code: str, *inputs: tuple[str, Input], **more: object) -> Action:
        """Python `code` with the folder `out` and, in order, the inputs' `places`; it leaves its name in the trace."""
        before = BEFORE.format(name=name)
        fields: dict[str, object] = {"outputs": ("*",), **more}
        made = self.graph[name] = Action(
            name=name,
            stage=name.partition(":")[0],
            argv=("{python}", "-c", before + code, "{out}", *(f"{{{at}}}" for at, _ in inputs)),
            inputs=inputs,
            **fields,  # type: ignore[arg-type]
        )
        return made

    def make(self, *actions: Action) -> list[str]:
        """Makes what is not fresh, in order; returns how: `fresh`, or the record's."""
        return [self.made(action).how if not self.executor.fresh(action) else "fresh" for action in actions]

    def made(self, action: Action) -> Record:
        """Makes one action."""
        return self.executor.make(action, self.heard.append)

    def ran(self) -> list[str]:
        """The actions whose commands ran since the last call."""
        names = self.trace.read_text().split() if self.trace.exists() else []
        self.trace.unlink(missing_ok=True)
        return names

    def file(self, path: str) -> Path:
        """A file below artifacts/."""
        return self.root / "artifacts" / path

    def files(self, name: str) -> dict[str, bytes]:
        """The outputs of an action: path -> content."""
        folder = self.executor.artifacts.folder(name)
        return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
