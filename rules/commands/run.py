"""`doit TARGET...`: doit's own `run`, given only tasks that may have something to do, and checking them first."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from doit.cmd_base import TaskLoader2
from doit.cmd_run import Run as PlainRun
from doit.exceptions import InvalidCommand
from doit.loader import generate_tasks

from rules import tasks
from rules.action import MEASURED
from rules.commands import HELP
from rules.errors import BuildError
from rules.report import Reporter, broke

__all__ = ["Run"]

_BROKEN = 2  # doit's exit code of our bugs, and of tasks that were not tried since another failed
_NO_CHECK: dict[str, Any] = {
    "name": "no_check",
    "long": "no-check",
    "type": bool,
    "default": False,
    "help": "build also what `doit check` says will fail",
}


class Run(PlainRun):
    """The command. What is asked of doit and not of us, such as `--always` or a task of the user's, is left to doit."""

    name = "run"
    cmd_options = (*PlainRun.cmd_options, _NO_CHECK)
    loader: Any

    def __init__(self, *args: Any, cmds: Iterable[str] = (), **others: Any) -> None:
        super().__init__(*args, cmds=cmds, **others)
        self._commands = tuple(cmds)

    def parse_execute(self, in_args: list[str]) -> int:
        """As doit's, but `--no-check` may follow the targets, as people type it, and so may `--help`."""
        if HELP.intersection(in_args):
            from rules.commands.help import told  # and with it the plan's modules: a build needs none of them

            print("\n\n".join(filter(None, (told(tasks.here(), word) for word in in_args))) or self.help())
            return 0
        flag = f"--{_NO_CHECK['long']}"
        rest = [word for word in in_args if word != flag]
        return int(super().parse_execute([*[flag][: len(in_args) - len(rest)], *rest]) or 0)

    def execute(self, params: Any, args: list[str]) -> int:
        """As doit's, with a loader that leaves fresh actions out. A word that is nothing is told with the nearest."""
        self.loader = _Loader(self.loader, params)
        if args and all(word.partition(":")[0] in MEASURED for word in args):
            params["continue"] = True  # a broken gate of one variant says nothing of the next one
        try:
            code = int(super().execute(params, args) or 0)
            ours = params["reporter"] is Reporter
            return 1 if code == _BROKEN and ours and not broke() else code
        except InvalidCommand as error:
            if not error.not_found:
                raise
            from rules.commands.help import unknown  # as above

            raise InvalidCommand(str(unknown(tasks.here(), error.not_found, self._commands))) from error


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
        check = not self._params["no_check"] and self._has_ours()
        if found is None:
            _checked(_among(cmd.sel_tasks or (), always=self._params["always"]) if check else [])
            return self._every.load_tasks(cmd, pos_args)
        _checked([task["meta"]["action"] for task in found if "action" in task.get("meta", {})] if check else [])
        return generate_tasks("engines", (task for task in found))

    def _has_ours(self) -> bool:
        """Whether dodo.py has our tasks as they are."""
        return (getattr(self._every, "namespace", None) or {}).get("task_engines") is tasks.task_engines

    def _ours(self, cmd: Any) -> bool:
        """Whether all is asked in our words: our tasks as they are, told by our reporter, and no option of doit's
        that takes a task for another.
        """
        changed = self._params["always"] or self._params["single"] or self._params["reporter"] is not Reporter
        return self._has_ours() and bool(cmd.sel_tasks) and not changed


def _among(targets: Iterable[str], *, always: bool) -> list[str]:
    """Of the actions that `targets` need, as far as they are ours, those that will run."""
    space = tasks.here()
    found: list[str] = []
    for target in targets:
        with suppress(BuildError):  # a task of the user's, or a mistake that doit tells
            found += space.actions(target)
    return [one.name for one in space.closure(found) if always or not space.fresh(one.name, here=False)]


def _checked(names: list[str]) -> None:
    """Tells what is unwise with the actions that will run, and raises InvalidCommand, exit 3, with what will fail."""
    if not names:
        return
    from rules import preflight  # a build with nothing to do does not pay for it

    found = preflight.survey(tasks.here(), names)
    wrong = [f"{finding.problem}\n    rule: {finding.id}" for finding in found if finding.severity == "error"]
    for finding in found:
        if finding.severity == "warning":
            print(f"warning: {finding.problem}\n    rule: {finding.id}", file=sys.stderr)
    if wrong:
        text = "\n".join(wrong)
        raise InvalidCommand(f"this would fail, so nothing was run (--no-check runs it all the same)\n\n{text}\n")
