"""What an entry is measured on is there, and what it must reach can be measured."""

from __future__ import annotations

from collections.abc import Iterator

from rules.checks.entry import Subject
from rules.errors import Problem, nearest
from rules.gates import LIKELIHOOD, LIMITS
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
        elif name in LIKELIHOOD and not (subject.entry.eval and subject.entry.eval.likelihood):
            what = f"{path}: needs what the engine makes of the expected answers"
            yield Problem(what=what, hint="write eval = { likelihood = true, ... }")


@error("write `eval` with a file that is there, and metrics or a reference", "TRT-LLM#2007", "TRT-LLM#967")
def evaluation_possible(subject: Subject) -> Iterator[Problem]:
    """The questions are there, something is measured on them, and the reference is a precision of the entry."""
    asked, path = subject.entry.eval, f"{subject.path}.eval"
    if asked is None:
        return
    file = subject.root / asked.data.removeprefix("file:")
    if not file.is_file():
        yield Problem(what=f"{path}.data: {file} does not exist", hint="a .jsonl, relative to models.toml")
    if not asked.metrics and asked.reference is None and not asked.likelihood:
        yield Problem(
            what=f"{path}: measures nothing", hint="name metrics, a reference precision, or likelihood = true"
        )
    if asked.reference is not None and asked.reference not in subject.whole.precisions:
        what = f"{path}.reference: {asked.reference!r} is not a precision of this entry"
        yield Problem(what=what, hint=nearest(asked.reference, subject.whole.precisions))


@error("write `bench` with a file that is there, load points that end in one way, and gates at load points there are")
def load_possible(subject: Subject) -> Iterator[Problem]:
    """The prompts are there, a load point ends in one way, and gates are judged at load points that there are."""
    asked, path = subject.entry.bench, f"{subject.path}.bench"
    file = subject.root / (asked.prompts or "").removeprefix("file:")
    if asked.prompts and not file.is_file():
        yield Problem(what=f"{path}.prompts: {file} does not exist", hint="a .jsonl, relative to models.toml")
    if asked.requests is not None and asked.seconds is not None:
        yield Problem(what=f"{path}: both requests and seconds", hint="a load point ends after the one or the other")
    values = {*map(float, asked.concurrency or ()), *asked.request_rate}
    for value in asked.gate_at if values else ():
        if value not in values:
            what = f"{path}.gate_at: there is no load point {value:g}"
            yield Problem(what=what, hint=nearest(f"{value:g}", [f"{one:g}" for one in sorted(values)]))
    if "goodput_per_s" in subject.entry.gates and not asked.slo.model_dump(exclude_none=True):
        what = f"{subject.path}.gates.goodput_per_s: needs limits"
        yield Problem(what=what, hint="write bench = { slo = { ttft_ms = 400 } }")


@error("lower `bench.isl` or `bench.osl`, or leave them out: the shape's are taken")
def load_within_shapes(subject: Subject) -> Iterator[Problem]:
    """Made-up prompts and answers are no longer than the engines are built for."""
    asked = subject.entry.bench
    for index, shape in enumerate(subject.entry.shapes):
        if (asked.isl or 0) > shape.isl or (asked.osl or 0) > shape.osl:
            what = f"{subject.path}.bench: is longer than shapes[{index}]"
            yield Problem(what=what, facts=(("isl, osl", f"{shape.isl}, {shape.osl}"),), hint="lower isl or osl")


RULES: tuple[Rule[Subject], ...] = (gates_known, evaluation_possible, load_possible, load_within_shapes)


def _against_reference(gate: str) -> bool:
    return gate.endswith("_drop") or gate.startswith("agreement") or gate in ("kl_bound", "expected_kl")
