"""A rule is one small function with an id, a severity and a fix; what it says of a subject is a finding.

Both columns use these words: a rule about an entry sees only the entry, a rule about a machine only the machine.
docs/checks.md is the list of them all, made from what stands here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from rules.errors import Problem

__all__ = ["Finding", "Rule", "Severity", "error", "findings", "warning"]

Severity = Literal["error", "warning"]
Subject = TypeVar("Subject")
Look = Callable[[Subject], Iterator[Problem]]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that the rule `id` says. An error stops a build, a warning is only told."""

    id: str
    severity: Severity
    problem: Problem


@dataclass(frozen=True, kw_only=True)
class Rule(Generic[Subject]):
    """`look` says what is wrong with a subject; its name is the rule's id and its docstring the reason.

    `fix` is the way out in general, `threads` are public issues behind it, REPOSITORY#NUMBER. An error that is an
    `estimate` may be wrong: `doit check` and a build tell it, and `--no-check` builds all the same.
    """

    look: Look[Subject]
    severity: Severity
    fix: str
    threads: tuple[str, ...] = ()
    estimate: bool = False

    @property
    def strict(self) -> bool:
        """Whether what it says is told as soon as models.toml is read, by every command."""
        return self.severity == "error" and not self.estimate

    @property
    def id(self) -> str:
        """`tp-divides-heads` of a function `tp_divides_heads`."""
        return self.look.__name__.replace("_", "-")

    @property
    def reason(self) -> str:
        """The first paragraph of the function's docstring, on one line."""
        return " ".join((self.look.__doc__ or "").split("\n\n")[0].split())

    def __call__(self, subject: Subject) -> Iterator[Problem]:
        """What is wrong with `subject`."""
        return self.look(subject)


def error(fix: str, *threads: str, estimate: bool = False) -> Callable[[Look[Subject]], Rule[Subject]]:
    """The function below is a rule whose findings stop a build."""
    return lambda look: Rule(look=look, severity="error", fix=fix, threads=threads, estimate=estimate)


def warning(fix: str, *threads: str) -> Callable[[Look[Subject]], Rule[Subject]]:
    """The function below is a rule whose findings are only told."""
    return lambda look: Rule(look=look, severity="warning", fix=fix, threads=threads)


def findings(rules: Iterable[Rule[Any]], subject: object) -> Iterator[Finding]:
    """What `rules` say of `subject`, in their order."""
    for rule in rules:
        yield from (Finding(id=rule.id, severity=rule.severity, problem=problem) for problem in rule(subject))
