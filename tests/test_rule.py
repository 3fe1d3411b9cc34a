"""A rule is named by its function and explained by its docstring."""

from __future__ import annotations

from collections.abc import Iterator

from rules.errors import Problem
from rules.rule import Finding, error, findings, warning


@error("take fewer", "repo#1", estimate=True)
def too_many(count: int) -> Iterator[Problem]:
    """More than three
    do not fit.

    Measured by hand.
    """
    if count > 3:
        yield Problem(what=f"{count}: too many")


@warning("take more")
def too_few(count: int) -> Iterator[Problem]:
    """One is lonely."""
    if count == 1:
        yield Problem(what="one: lonely")


def test_a_rule_is_named_by_its_function_and_explained_by_its_first_paragraph() -> None:
    assert (too_many.id, too_many.reason, too_many.threads) == ("too-many", "More than three do not fit.", ("repo#1",))


def test_only_what_is_sure_is_told_with_the_file() -> None:
    sure = error("x")(too_many.look)
    assert [rule.strict for rule in (too_many, too_few, sure)] == [False, False, True]


def test_findings_say_which_rule_and_how_bad() -> None:
    problem = Problem(what="5: too many")
    assert list(findings((too_few, too_many), 5)) == [Finding(id="too-many", severity="error", problem=problem)]
    assert [finding.severity for finding in findings((too_few, too_many), 1)] == ["warning"]
    assert not list(findings((too_few, too_many), 2))
