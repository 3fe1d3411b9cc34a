"""What a person sees while doit runs: one line per action that did something, and what is going on meanwhile.

On a terminal a live line per running action (rich); elsewhere, as in CI, a line every few seconds.
"""

from __future__ import annotations

import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TextIO

from doit.reporter import ConsoleReporter

from rules.runners import local

__all__ = ["Progress", "Reporter", "broke", "progress", "selected", "wanted"]

_QUIET_SECONDS = 4.0
# How an action ended, in the sum and in its own line; the sum names those of _ALWAYS even where there is none.
_WORDS = {
    "failed": "failed",
    "measured": "measured",
    "ran": "made",
    "local": "from the store",
    "remote": "from the team",
    "fresh": "up to date",
}
_ALWAYS = ("ran", "local", "fresh")
_VERBS = {"ran": "made", "local": "from the store", "remote": "from the team's cache", "measured": "measured"}


@dataclass
class _Running:
    started: float
    line: str = ""
    spoke: float = field(default_factory=time.monotonic)


class Progress:
    """Shows the running actions, their time and their last line, on `stream`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._running: dict[str, _Running] = {}
        self._lock = threading.Lock()
        self._live: Any = None
        self._stop = threading.Event()

    @contextmanager
    def action(self, name: str) -> Iterator[None]:
        """While it is open, `name` is shown as running."""
        with self._lock:
            self._running[name] = _Running(time.monotonic())
            if len(self._running) == 1:
                self._open()
        try:
            yield
        finally:
            with self._lock:
                del self._running[name]
                if not self._running:
                    self._close()

    def line(self, name: str, text: str) -> None:
        """The action `name` printed `text`."""
        running = self._running.get(name)
        if running and text.strip():
            running.line = text.strip()

    def _open(self) -> None:
        self._stop = threading.Event()
        if self._stream.isatty():
            from rich.console import Console
            from rich.live import Live

            console = Console(file=self._stream)
            self._live = Live(get_renderable=self._table, console=console, refresh_per_second=8, transient=True)
            self._live.start()
            return
        threading.Thread(target=self._speak, args=(self._stop,), name="progress", daemon=True).start()

    def _close(self) -> None:
        self._stop.set()
        if self._live:
            self._live.stop()
            self._live = None

    def _table(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2), expand=True)
        for name, running in list(self._running.items()):
            seconds = f"{time.monotonic() - running.started:.0f} s"
            table.add_row(Text("…"), Text(name), Text(seconds), Text(running.line, no_wrap=True, overflow="ellipsis"))
        return table

    def _speak(self, stop: threading.Event) -> None:
        while not stop.wait(0.25):
            now = time.monotonic()
            for name, running in list(self._running.items()):
                if now - running.spoke >= _QUIET_SECONDS:
                    running.spoke = now
                    print(f"   … {name}  {now - running.started:.0f} s  {running.line}", file=self._stream, flush=True)


progress = Progress(sys.stdout)
_selected: set[str] = set()
_FAILED = ("TaskFailed", "UnmetDependency")  # of doit's: a user's step that failed, and what needs it
_broken: list[str] = []


def wanted(name: str) -> bool:
    """Whether the user asked for the action of this name, or for a group with it, rather than for what needs it."""
    return name in _selected


def selected() -> frozenset[str]:
    """The actions that the user asked for, by themselves or by a group's name."""
    return frozenset(_selected)


def broke() -> bool:
    """Whether a task ended in something else than a failed step: doit's exit code does not tell it from one that was
    not tried.
    """
    return bool(_broken)


def _select(tasks: dict[str, Any], names: list[str]) -> None:
    pending = list(names)
    while pending:
        task = tasks[pending.pop()]
        if _is_action(task):
            _selected.add(task.meta["action"])
        elif not task.actions:
            pending += task.task_dep


class Reporter(ConsoleReporter):
    """doit's reporter for our actions. `task.values` holds `how` and `seconds` of an action that was made."""

    desc = "one line per action, and whether it ran or came from the store"

    def __init__(self, outstream: TextIO, options: dict[str, Any]) -> None:
        super().__init__(outstream, options)
        self._counts: dict[str, int] = {}
        self._started = time.monotonic()

    def initialize(self, tasks: dict[str, Any], selected_tasks: list[str]) -> None:
        """From now on a signal ends what runs. `_swept` says how many fresh actions have no task."""
        super().initialize(tasks, selected_tasks)
        local.end_on_signals()
        _select(tasks, selected_tasks)
        if "_swept" in tasks:
            self._counts["fresh"] = tasks["_swept"].meta["fresh"]

    def execute_task(self, task: Any) -> None:
        """Says only what is not an action of ours: those have a live line."""
        if not _is_action(task):
            super().execute_task(task)

    def skip_uptodate(self, task: Any) -> None:
        """Counts it: a build with a thousand fresh actions needs no thousand lines."""
        if _is_action(task):
            self._count("fresh")

    def add_success(self, task: Any) -> None:
        """One line, and what the tool wants the user to read."""
        if not _is_action(task):
            return
        values = task.values
        self._count(values["how"])
        if values["how"] != "fresh":
            verb = _VERBS[values["how"]]
            self.write(f"{task.name}  {verb} in {values['seconds']:.1f} s\n")
        if values.get("summary"):
            self.write(textwrap.indent(values["summary"].rstrip(), "    ") + "\n")

    def _write_failure(self, result: dict[str, Any], write_exception: bool = True) -> None:  # noqa: FBT001, FBT002
        fail, task = result["exception"], result["task"]
        if type(fail).__name__ not in _FAILED:
            _broken.append(task.name)
        if type(fail).__name__ == "UnmetDependency" and (_is_action(task) or not task.actions):
            if task.actions:  # a group has nothing to add to what its members said
                self.write(f"{task.name}  not tried: an action that it needs failed\n")
        elif not _is_action(task):
            super()._write_failure(result, write_exception)
        else:
            self._count("failed")
            self.write(f"\nERROR: {fail.get_msg().rstrip()}\n\n")

    def complete_run(self) -> None:
        """The sum of it."""
        others = [result for result in self.failures if not _is_action(result["task"])]
        self.failures: list[dict[str, Any]] = others  # ours have been told in full already
        super().complete_run()
        counts = {how: self._counts.get(how, 0) for how in _WORDS}
        ended = ("ended early",) if local.ending() else ()
        if counts["fresh"] == sum(counts.values()) and not ended:
            if counts["fresh"]:
                self.write(f"everything is up to date ({counts['fresh']} actions)\n")
            return
        parts = (f"{count} {_WORDS[how]}" for how, count in counts.items() if count or how in _ALWAYS)
        self.write(", ".join((*ended, *parts, f"{time.monotonic() - self._started:.0f} s")) + "\n")

    def _count(self, how: str) -> None:
        self._counts[how] = self._counts.get(how, 0) + 1


def _is_action(task: Any) -> bool:
    return bool(task.meta and "action" in task.meta)
