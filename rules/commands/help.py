"""`doit help [WORD]`: the commands in groups, what a target is made of, and what a wrong word may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from doit.cmd_help import Help as PlainHelp
from doit.exceptions import InvalidCommand, InvalidDodoFile

from rules.action import MEASURED
from rules.errors import Problem
from rules.tasks import DOCS, here
from rules.workspace import Workspace

__all__ = ["Help", "told", "unknown"]

_GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Before anything runs", ("check", "plan", "why", "affected", "render", "lock")),
    ("Serving", ("serve", "stop")),
    ("Measuring", ("bench", "eval", "report", "recommend")),
    ("The store, and your editor", ("cache", "schema")),
    ("doit's own", ("list", "info", "clean", "forget", "run", "tabcompletion", "help")),
)
_SHOWN = 12


class Help(PlainHelp):
    """The command. Commands of doit's that mean nothing here are left out of the list; they work all the same."""

    name = "help"
    doc_purpose = "show help: of a command, of a stage or a target, or of all"
    doc_usage = "[COMMAND | STAGE | TARGET]"

    def print_usage(self, cmds: Mapping[str, Any]) -> None:
        """The stages and commands, a line each."""
        name = self.bin_name
        print(
            "Engines, built like code: models.toml -> checkpoint -> engine -> Triton model repository -> smoke test\n"
        )
        print(f"Make ({name} STAGE:NAME..., where NAME is a variant or the beginning of several)")
        for stage, doc in DOCS.items():
            print(f"  {name} {stage + ':NAME':16}  {doc}")
        for title, names in _GROUPS:
            print(f"\n{title}")
            for command in names:
                print(f"  {name} {command:16}  {cmds[command].doc_purpose}")
        print(f"\n{name} list names every target; {name} help WORD says more of a command, a stage or a target")

    def execute(self, params: Any, args: list[str]) -> int:
        """As doit's, and of a target what it stands for. Raises InvalidCommand, exit 3, for a word that is nothing."""
        if len(args) != 1 or args[0] == "task" or args[0] in self.cmds:
            return int(super().execute(params, args) or 0)
        try:
            space = here()
        except InvalidDodoFile:
            return int(super().execute(params, args) or 0)
        text = told(space, args[0])
        if text:
            print(text)
        elif args[0] in self._of_the_users():
            return int(super().execute(params, args) or 0)
        else:
            raise InvalidCommand(str(unknown(space, args[0], (*self.cmds, *self._of_the_users()))))
        return 0

    def _of_the_users(self) -> list[str]:
        """Tasks of dodo.py that are not ours."""
        self.loader.setup({"dodoFile": "dodo.py", "cwdPath": None, "seek_file": False})
        return [name.removeprefix("task_") for name in self.loader.namespace if name.startswith("task_")]


def told(space: Workspace, target: str) -> str:
    """What `stage` or `stage:name` is, what it stands for and where it lies. "" when it is neither."""
    stage, _, name = target.partition(":")
    if stage not in DOCS:
        return ""
    members = _members(space, stage, name)
    if members is None:
        return ""
    one = len(members) == 1
    lines = [f"{target}  {DOCS[stage]}"]
    if members != [target]:
        lines += [f"  stands for {'1 target' if one else f'{len(members)} targets'}", *_listed(members)]
    if stage not in MEASURED and one:
        lines += ["  made from", *_listed(space.plan.actions[members[0]].needs())]
    folder = f"artifacts/{stage}/{members[0].partition(':')[2] if one else 'NAME'}"
    lines.append(f"  {'each run is kept below' if stage in MEASURED else 'is put into'} {folder}")
    return "\n".join([*lines, f"doit plan {target} says what it would take, doit {target} makes it"])


def unknown(space: Workspace, word: str, others: Iterable[str] = ()) -> Problem:
    """What `word`, which is no command and no target, may have meant; `others` are the commands and tasks there are."""
    stage, colon, name = word.partition(":")
    named = space.plan.names["build"]
    if not colon and word in named:
        return Problem(
            what=f"{word!r} is a name without a stage", hint=f"doit build:{word}, smoke:{word}, bench:{word}"
        )
    if stage == "eval" and name in named:
        hint = 'give its entry eval = { data = "file:QUESTIONS.jsonl", metrics = [...] }: docs/evaluation.md'
        return Problem(what=f"{word}: there are no questions to ask", hint=hint)
    if stage == "k8s" and name in named:
        return Problem(what=f"{word}: an engine for the CPU has no manifests", hint="k8s is for engines on GPUs")
    if colon and stage in DOCS:
        return Problem(what=f"there is no {word!r}", hint=_near(name, tuple(named), f"{stage}:") or "doit list has all")
    words = (*DOCS, *others, *named)
    return Problem(what=f"{word!r} is no command and no target", hint=_near(word, words) or "doit help, doit list")


def _near(word: str, words: tuple[str, ...], prefix: str = "") -> str:
    """Only a near word: a list of all targets helps nobody."""
    close = difflib.get_close_matches(word, words[:2000], n=3, cutoff=0.6)
    begun = [one for one in words if one.startswith(word)][:1] if word else []
    found = list(dict.fromkeys(begun + close))[:3]
    return f"did you mean {' or '.join(repr(prefix + one) for one in found)}?" if found else ""


def _members(space: Workspace, stage: str, name: str) -> list[str] | None:
    """The targets that a name stands for at a stage; None when there is no such name."""
    like = "build" if stage in MEASURED else stage
    by_name = space.plan.names[like]
    found = by_name.get(name) if name else dict.fromkeys(one for of in by_name.values() for one in of)
    if found is None:
        return None
    asked = [one for one in found if stage != "eval" or space.plan.variants[one.partition(":")[2]].entry.eval]
    return [f"{stage}:{one.partition(':')[2]}" if stage in MEASURED else one for one in asked] or None


def _listed(names: Iterable[str]) -> list[str]:
    every = list(names)
    rest = [f"    and {len(every) - _SHOWN} more"] if len(every) > _SHOWN else []
    return [*(f"    {name}" for name in every[:_SHOWN]), *rest]
