"""The versions in the keys are the versions that are installed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tomli

from rules.pins import PINS, pins


def _locked(project: Path) -> dict[str, str]:
    text = (project / "requirements.lock").read_text()
    pairs = re.findall(r"(?m)^([\w.-]+)==([^\s;\\]+)", text)
    return {name.lower().replace("_", "-"): version for name, version in pairs}


def _declared(project: Path) -> dict[str, str]:
    table = tomli.loads((project / "pyproject.toml").read_text())["project"]
    extras = table["optional-dependencies"]
    lines = [*table["dependencies"], *extras["embedded"], *extras["measure"]]
    pairs = (re.match(r"([\w.-]+)(?:\[[\w,]+\])?==([^\s;]+)", line) for line in lines)
    return {match[1].lower().replace("_", "-"): match[2] for match in pairs if match}


@pytest.mark.parametrize("name", sorted(PINS))
def test_a_pin_equals_the_one_of_pyproject(project: Path, name: str) -> None:
    assert PINS[name].split("+")[0] == _declared(project)[name]


@pytest.mark.parametrize("name", sorted(PINS))
def test_a_pin_equals_the_one_of_the_lock(project: Path, name: str) -> None:
    assert PINS[name] == _locked(project)[name]


def test_pins_gives_the_pairs_asked_for() -> None:
    assert pins("numpy", "jinja2") == (("numpy", PINS["numpy"]), ("jinja2", PINS["jinja2"]))


def test_an_unpinned_package_cannot_be_declared() -> None:
    with pytest.raises(KeyError):
        pins("left-pad")
