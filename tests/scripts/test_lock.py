"""The locks hold all that is asked for, each with hashes, and no CUDA."""

import re
from pathlib import Path

import pytest
import tomli
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent.parent


def entries(lock: str) -> list[tuple[Requirement, list[str]]]:
    """(requirement, hashes) of each entry of a lock."""
    text = re.sub(r"#.*", "", (ROOT / lock).read_text()).replace("\\\n", "")
    lines = [line.split("--hash=") for line in text.splitlines() if line.strip()]
    return [(Requirement(line[0]), [one.strip() for one in line[1:]]) for line in lines]


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock"])
def test_every_locked_package_has_one_version_and_its_hashes(lock: str) -> None:
    for requirement, hashes in entries(lock):
        assert re.fullmatch(r"==[^,*]+", str(requirement.specifier)), requirement
        assert hashes, requirement
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", one) for one in hashes), requirement


def test_no_cuda_package_is_locked() -> None:
    names = {requirement.name for requirement, _ in entries("requirements.lock")}
    assert not {name for name in names if re.match(r"nvidia-(?!pytriton|modelopt)|cuda|triton$|torchvision", name)}
    assert {str(r.specifier) for r, _ in entries("requirements.lock") if r.name == "torch"} == {"==2.13.0+cpu"}


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12"])
def test_the_lock_holds_what_pyproject_pins(python: str) -> None:
    project = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    asked = project["dependencies"] + optional["embedded"] + optional["test"] + optional["dev"]
    environment = {"python_version": python}
    held = {
        canonicalize_name(requirement.name): str(requirement.specifier).split("+")[0]
        for lock in ("requirements.lock", "requirements-dev.lock")
        for requirement, _ in entries(lock)
        if requirement.marker is None or requirement.marker.evaluate(environment)
    }
    for requirement in map(Requirement, asked):
        name = canonicalize_name(requirement.name)
        if (requirement.marker is None or requirement.marker.evaluate(environment)) and (name, python) != (
            "torch",
            "3.10",  # no hash of its CPU build is known
        ):
            assert held.get(name) == str(requirement.specifier)
