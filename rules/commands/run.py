"""`doit TARGET...`: doit's own `run`, which is given only tasks that may have something to do."""

from __future__ import annotations

from typing import Any

from doit.cmd_base import TaskLoader2
from doit.cmd_run import Run as PlainRun
from doit.loader import generate_tasks

from rules import tasks
from rules.report import Reporter

__all__ = ["Run"]


class Run(PlainRun):
    """The command. What is asked of doit and not of us, such as `--always` or a task of the user's, is left to doit."""

    name = "run"
    loader: Any

    def execute(self, params: Any, args: list[str]) -> int:
        """As doit's, with a loader that leaves fresh actions out."""
        self.loader = _Loader(self.loader, params)
        return int(super().execute(params, args) or 0)


class _Loader(TaskLoader2):
    """The tasks that another loader would load, or those of stale actions where that comes to the same."""

    def __init__(self, every: TaskLoader2, params: Any) -> None:
        super().__init__()
        self._every, self._params = every, params

    def setup(self, opt_values: Any) -> None:
        self._every.setup(opt_values)

    def load_doit_config(self) -> Any:
        return self._every.load_doit_config()

    def load_tasks(self, cmd: Any, pos_args: list[str]) -> Any:
        """Task objects."""
        found = tasks.stale(cmd.sel_tasks) if self._ours(cmd) else None
        if found is None:
            return self._every.load_tasks(cmd, pos_args)
        return generate_tasks("engines", (task for task in found))

    def _ours(self, cmd: Any) -> bool:
        """Whether all is asked in our words: our tasks as they are, told by our reporter, and no option of doit's
        that takes a task for another.
        """
        dodo = getattr(self._every, "namespace", None) or {}
        changed = self._params["always"] or self._params["single"] or self._params["reporter"] is not Reporter
        return dodo.get("task_engines") is tasks.task_engines and bool(cmd.sel_tasks) and not changed
