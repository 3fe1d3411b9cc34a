"""`doit plan TARGET...`: what would run, what comes from which cache, why, and what it is expected to cost."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any

from rules import check
from rules.action import Action, Files, Input, Local, Pinned
from rules.commands import EngineCommand
from rules.errors import Problem
from rules.outlook import Outlook, look
from rules.tasks import here
from rules.workspace import Workspace

__all__ = ["PlanCommand", "as_json", "as_text", "unwise"]


class PlanCommand(EngineCommand):
    """The command."""

    name = "plan"
    doc_purpose = "show what would run and why, without running it"
    doc_usage = "[TARGET...]"
    doc_description = (
        "TARGET is a stage, or stage:name as for `doit`. Without one: what `doit` alone would make. An action is fresh,"
        " or its result is local (in the store) or remote, or it has to run, or it is blocked, which is no fault: what "
        "it waits for has to run first, and if that makes what there was, nothing follows."
    )
    cmd_options = (
        {"name": "json", "long": "json", "type": bool, "default": False, "help": "one object, for programs"},
    )

    def execute(self, opt_values: dict[str, Any], pos_args: list[str]) -> int:
        """Prints it."""
        space = here()
        wanted = space.closure(space.named(pos_args or space.default))
        looked = look(space.executor, wanted)
        for problem in unwise(space, wanted):
            print(f"warning: {problem}", file=sys.stderr)
        print(json.dumps(as_json(space, looked), indent=1) if opt_values["json"] else as_text(looked))
        return 0


def unwise(space: Workspace, wanted: Iterable[Action]) -> list[Problem]:
    """What is unwise in the entries that these actions are of."""
    names = dict.fromkeys(action.name.partition(":")[2] for action in wanted)
    variants = [space.plan.variants[name] for name in names if name in space.plan.variants]
    return [finding.problem for finding in check.findings(space.plan.spec, space.root, variants)]


def as_text(looked: list[Outlook]) -> str:
    """A line per action that is not fresh, its reasons below it, and the sum."""
    width = max((len(look.action.name) for look in looked), default=0)
    lines = []
    for one in looked:
        if one.status != "fresh":
            lines.append(f"{one.status:8} {one.action.name.ljust(width)}  {_cost(one)}".rstrip())
            lines += [f"             {reason}" for reason in one.reasons]
    counts = Counter(one.status for one in looked)
    total = ", ".join(f"{counts[status]} {status}" for status in ("run", "blocked", "local", "remote", "fresh"))
    return "\n".join([*lines, f"{total}; {_expected(looked)}"])


def as_json(space: Workspace, looked: list[Outlook]) -> dict[str, Any]:
    """`{"version": 1, "actions": [...]}` in build order; `key` is null where an input's digest is not known yet."""
    return {"version": 1, "actions": [_row(space, one) for one in looked]}


def _row(space: Workspace, one: Outlook) -> dict[str, Any]:
    action = one.action
    name = action.name.partition(":")[2]
    return {
        "name": action.name,
        "stage": action.stage,
        "variant": name if name in space.plan.variants else None,
        "key": one.key,
        "status": one.status,
        "reasons": list(one.reasons),
        "argv": space.executor.command_line(action, one.key),
        "env": dict(action.env),
        "toolchain": dict(action.toolchain),
        "platform": action.platform,
        "inputs": {key: _input(source) for key, source in action.inputs},
        "outputs": list(action.outputs),
        "gpus": action.gpus,
        "expected_seconds": one.seconds,
        "expected_bytes": one.size,
    }


def _input(source: Input) -> str | list[str]:
    if isinstance(source, Files):
        return [f"{path or 'file'} {content}" for path, content in source.members]
    if isinstance(source, Pinned):
        return source.place
    return source.path if isinstance(source, Local) else source.action


def _cost(one: Outlook) -> str:
    if one.status == "remote":
        return f"{_size(one.size or 0)} to fetch"
    if one.seconds is None or one.status == "local":
        return ""
    return f"about {_time(one.seconds)}"


def _expected(looked: list[Outlook]) -> str:
    to_run = [one for one in looked if one.status in ("run", "blocked")]
    if any(one.seconds is None for one in to_run):
        return "nothing like it ran here before, so its time is not known"
    made = sum(one.size or 0 for one in to_run)
    fetched = sum(one.size or 0 for one in looked if one.status == "remote")
    parts = (
        f"about {_time(sum(one.seconds or 0.0 for one in to_run))}, {_size(made)} to make" if to_run else "",
        f"{_size(fetched)} to fetch" if fetched else "",
    )
    return ", ".join(filter(None, parts)) or "no command has to run"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _size(size: float) -> str:
    return f"{size / 1e6:.1f} MB" if size < 1e9 else f"{size / 1e9:.2f} GB"
