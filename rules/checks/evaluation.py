"""What an entry is measured on is there, and what it must reach can be measured."""

from __future__ import annotations

from collections.abc import Iterator

from rules.checks.entry import Subject
from rules.errors import Problem, nearest
from rules.gates import LIMITS
from rules.rule import Rule, error

__all__ = ["RULES"]


@error("write a gate that there is; docs/evaluation.md lists them")
def gates_known(subject: Subject) -> Iterator[Problem]:
    """Each gate is a figure that can be measured; one on a loss of quality needs what it is lost against."""
    for name in subject.entry.gates:
        path = f"{subject.path}.gates.{name}"
        if name not in LIMITS:
            yield Problem(what=f"{path}: unknown gate", hint=nearest(name, tuple(LIMITS)))
        elif _against_reference(name) and not (subject.entry.eval and subject.entry.eval.reference):
            yield Problem(what=f"{path}: needs a reference precision", hint='write eval = { reference = "fp16", ... }')


@error("write `eval` with a file that is there, and metrics or a reference", "TRT-LLM#2007", "TRT-LLM#967")
def evaluation_possible(subject: Subject) -> Iterator[Problem]:
    """The questions are there, something is measured on them, and the reference is a precision of the entry."""
    asked, path = subject.entry.eval, f"{subject.path}.eval"
    if asked is None:
        return
    file = subject.root / asked.data.removeprefix("file:")
    if not file.is_file():
        yield Problem(what=f"{path}.data: {file} does not exist", hint="a .jsonl, relative to models.toml")
    if not asked.metrics and asked.reference is None:
        yield Problem(what=f"{path}: measures nothing", hint="name metrics, or a reference precision")
    if asked.reference is not None and asked.reference not in subject.entry.precisions:
        what = f"{path}.reference: {asked.reference!r} is not a precision of this entry"
        yield Problem(what=what, hint=nearest(asked.reference, subject.entry.precisions))


RULES: tuple[Rule[Subject], ...] = (gates_known, evaluation_possible)


def _against_reference(gate: str) -> bool:
    return gate.endswith("_drop") or gate.startswith("agreement")
