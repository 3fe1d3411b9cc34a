"""`doit affected --since REV`: the variants whose keys differ between a git revision and the working tree.

Builds nothing. The revision's models.toml is planned by the revision's own rules, templates and tools (where they are
in git; an installed wheel plans both), so a change of any of them counts.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from doit.exceptions import InvalidCommand

from rules import git
from rules.commands import EngineCommand
from rules.plan import variant_identities
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
    return [name for name, identity in now.items() if before.get(name) != identity]
