"""`doit check [TARGET...]`: what would fail, or is unwise, told in seconds instead of after hours on GPUs."""

from __future__ import annotations

import json
import os
import re
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rules import check, host, preflight, workspace
from rules.action import MEASURED
from rules.commands import EngineCommand
from rules.plan import STAGES
from rules.rule import Finding
from rules.tasks import here

__all__ = ["CheckCommand", "as_json", "as_text"]

_WHERE = re.compile(r"((?:models|toolchains|platforms)\.[\w-]+)[.:]?\s*(.*)", re.DOTALL)
_HERE = {rule.id for rule in host.RULES}
_COLOURS = {"error": "31", "warning": "33"}


class CheckCommand(EngineCommand):
    """The command."""

    name = "check"
    doc_purpose = "tell what would fail, or is unwise, before anything runs"
    doc_usage = "[TARGET...]"
    doc_description = (
        "Without a TARGET all of models.toml, the same on every machine. With one (a name, a stage, or stage:name) its "
        "part, and whether this machine can make and serve it. docs/checks.md lists the rules."
    )
    cmd_options = (
        {"name": "json", "long": "json", "type": bool, "default": False, "help": "one object, for programs"},
    )

    def execute(self, opt_values: dict[str, Any], pos_args: list[str]) -> int:
        """Prints it. Exit 3 when something is wrong, 0 when it is at most unwise."""
        found = _found(pos_args)
        print(as_json(found) if opt_values["json"] else as_text(found, colour=_colour()))
        return 3 if any(finding.severity == "error" for finding in found) else 0


def _found(targets: list[str]) -> list[Finding]:
    """A file with mistakes cannot be planned, so that nobody knows what its targets are: all of it is told."""
    root = Path.cwd()
    found = check.examine(workspace.text(root), root, workspace.lock(root))
    if check.refused(found) or not targets:
        return found
    space = here()
    wanted = space.named(one if one.partition(":")[0] in (*STAGES, *MEASURED) else f"build:{one}" for one in targets)
    stale = [action.name for action in space.closure(wanted) if not space.fresh(action.name, here=False)]
    about = preflight.told(space, wanted)
    return [*about, *(one for one in preflight.survey(space, stale, serve=True) if one not in about)]


def as_json(found: Iterable[Finding]) -> str:
    """`{"version": 1, "findings": [...]}`, the findings in the order of the file and of the table."""
    return json.dumps({"version": 1, "findings": [_row(finding) for finding in found]}, indent=1)


def as_text(found: list[Finding], *, colour: bool) -> str:
    """The findings by what they are about, errors first, and their sum."""
    groups: dict[str, list[Finding]] = {}
    for finding in sorted(found, key=lambda one: one.severity):
        groups.setdefault(_parted(finding)[0], []).append(finding)
    lines = [line for where, of in groups.items() for line in (where, *(_told(one, colour=colour) for one in of), "")]
    errors = sum(finding.severity == "error" for finding in found)
    warnings = len(found) - errors
    count = len(preflight.table())
    return "\n".join([*lines, f"{_many(errors, 'error')}, {_many(warnings, 'warning')}; {count} rules"])


def _told(finding: Finding, *, colour: bool) -> str:
    head = f"{finding.severity} [{finding.id}]"
    shown = f"\033[{_COLOURS[finding.severity]}m{head}\033[0m" if colour else head
    rest = str(finding.problem).removeprefix(finding.problem.what)
    return textwrap.indent(f"{shown} {_parted(finding)[1]}{rest}", "  ")


def _parted(finding: Finding) -> tuple[str, str]:
    """(what the finding is about, what it says of it)."""
    parts = _WHERE.fullmatch(finding.problem.what)
    where = "this machine" if finding.id in _HERE else "models.toml"
    return (parts[1], parts[2]) if parts else (where, finding.problem.what)


def _row(finding: Finding) -> dict[str, Any]:
    problem = finding.problem
    return {
        "id": finding.id,
        "severity": finding.severity,
        "where": _parted(finding)[0],
        "what": problem.what,
        "facts": dict(problem.facts),
        "hint": problem.hint,
    }


def _many(count: int, word: str) -> str:
    return f"{count or 'no'} {word}{'' if count == 1 else 's'}"


def _colour() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")
