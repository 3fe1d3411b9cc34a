"""`doit why TARGET`: which keyed line changed, old -> new."""

from __future__ import annotations

from typing import Any

from doit.exceptions import InvalidCommand

from rules.action import Action
from rules.artifacts import Record, Unknown, changes
from rules.commands import EngineCommand
from rules.tasks import here
from rules.workspace import Workspace

__all__ = ["Why", "reasons"]

_CAME = {"ran": "its command ran", "local": "it came from the store", "remote": "it came from the team's cache"}


class Why(EngineCommand):
    """The command."""

    name = "why"
    doc_purpose = "explain why an action would run, or why it last ran"
    doc_usage = "TARGET..."
    doc_description = "TARGET is stage:name, such as engine:tiny_qwen2_int8_wo. Prints keyed lines, - old and + new."

    def execute(self, opt_values: dict[str, Any], pos_args: list[str]) -> int:  # noqa: ARG002
        """Prints the reasons for each action behind each target."""
        if not pos_args:
            raise InvalidCommand("why needs a TARGET, such as engine:NAME")
        space = here()
        for name in space.named(pos_args):
            print("\n".join([name, *(f"    {line}" for line in reasons(space, space.plan.actions[name]))]))
        return 0


def reasons(space: Workspace, action: Action) -> list[str]:
    """Why `action` would run now or, when it is fresh, why it ran the last time."""
    executor = space.executor
    record = executor.artifacts.record(action.name)
    stale = _stale_inputs(space, action)
    if stale:
        return [f"its input {name} is not up to date (doit why {name})" for name in stale]
    if record is None:
        return ["it was never made here"]
    try:
        changed = changes(record.manifest, executor.manifest(action))
    except Unknown as error:
        return [f"it waits for {error}"]
    if changed:
        return changed
    if not executor.fresh(action, here=False):
        return ["nothing keyed changed; its outputs are missing or were modified"]
    return ["it is up to date", *_history(record)]


def _stale_inputs(space: Workspace, action: Action) -> list[str]:
    return [name for name in action.needs() if not _settled(space, space.plan.actions[name])]


def _settled(space: Workspace, action: Action) -> bool:
    return space.executor.fresh(action, here=False) and not _stale_inputs(space, action)


def _history(record: Record) -> list[str]:
    came = _CAME[record.how]
    if not record.changed:
        return [f"{came}, in {record.seconds:.1f} s"]
    return [f"{came} last time, in {record.seconds:.1f} s, because of", *(f"  {line}" for line in record.changed)]
