"""docs/checks.md lists every rule as it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rules.preflight import table as every
from rules.rule import Rule
from scripts.checks import BEGIN, END, REPOSITORIES, table


def test_the_page_has_every_rule_as_it_is(project: Path) -> None:
    page = (project / "docs" / "checks.md").read_text(encoding="utf-8")
    assert page.partition(BEGIN)[2].partition(END)[0].strip() == table(), "run: python scripts/checks.py"


def test_the_table_has_a_row_for_each_rule() -> None:
    assert re.findall(r"^\| `([a-z0-9-]+)` \|", table(), re.MULTILINE) == [rule.id for rule in every()]


@pytest.mark.parametrize("rule", every(), ids=lambda rule: rule.id)
def test_a_thread_can_be_found(rule: Rule[object]) -> None:
    for thread in rule.threads:
        name, _, number = thread.partition("#")
        assert name in REPOSITORIES
        assert number.isdigit()
