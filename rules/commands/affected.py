"""`doit affected --since REV`: the variants whose keys differ between a git revision and the working tree.

Builds nothing. The revision's models.toml is planned by the revision's own rules, templates and tools (where they are
in git; an installed wheel plans both), so a change of any of them counts. Both are planned where the user's files lie
now: one of those that git tracks counts when it has changed, such as calibration texts.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from doit.exceptions import InvalidCommand

from rules import git
from rules.action import Action, Files, Local, closure
from rules.commands import EngineCommand
from rules.plan import Plan, variant_identities
from rules.tasks import here
from rules.workspace import Workspace

__all__ = ["Affected", "affected"]


class Affected(EngineCommand):
    """The command."""

    name = "affected"
    doc_purpose = "list the variants that a change touches"
    doc_usage = "--since REV"
    doc_description = "A line per variant, its name last: doit $(doit affected --since main | sed s/^/smoke:/)"
    cmd_options = (
        {"name": "since", "long": "since", "type": str, "default": "", "help": "a commit, branch or tag"},
        {"name": "json", "long": "json", "type": bool, "default": False, "help": "a list, for programs"},
    )

    def execute(self, opt_values: dict[str, Any], pos_args: list[str]) -> int:  # noqa: ARG002
        """Prints them."""
        if not opt_values["since"]:
            raise InvalidCommand("affected needs --since REV")
        names = affected(here(), opt_values["since"])
        if opt_values["json"]:
            print(json.dumps({"version": 1, "since": opt_values["since"], "variants": names}))
        elif names:
            print("\n".join(names))
        else:
            print(f"no variant is another one than at {opt_values['since']}", file=sys.stderr)
        return 0


def affected(space: Workspace, rev: str) -> list[str]:
    """The variants of the working tree that were not there at `rev`, or were another thing. All, if `rev` is wrong.

    Raises Misconfigured when `rev` is no revision.
    """
    now = variant_identities(space.plan)
    with tempfile.TemporaryDirectory() as folder:
        git.export(space.root, rev, Path(folder))
        before = git.planned(Path(folder), space.root) or {}
    touched = _touched(space.plan, [str(space.root / path) for path in git.changed(space.root, rev)])
    return [name for name, identity in now.items() if before.get(name) != identity or name in touched]


def _touched(plan: Plan, changed: Sequence[str]) -> set[str]:
    """The variants with an action that reads one of the `changed` files, or a folder with one."""

    @cache
    def hit(place: str) -> bool:
        return any(path == place or path.startswith(f"{place}/") for path in changed)

    read = {name for name, action in plan.actions.items() if any(map(hit, _places(action)))}
    needs = {name: action.needs() for name, action in plan.actions.items()}
    return {name for name in plan.variants if not read.isdisjoint(closure([f"smoke:{name}"], needs.__getitem__))}


def _places(action: Action) -> Iterator[str]:
    """Where what it reads lies, beside the outputs of others."""
    for _, source in action.inputs:
        if isinstance(source, Files):
            yield source.root
        elif isinstance(source, Local):
            yield source.path
