"""The locks hold all that is asked for, each with hashes, and no CUDA."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import tomli
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def script() -> ModuleType:
    """scripts/lock.py as a module."""
    spec = importlib.util.spec_from_file_location("lock_script", ROOT / "scripts" / "lock.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_wheel_that_is_for_later_pythons_gives_way_to_an_older_one(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with an index that does not tell: pip then chooses the newest, and refuses it when it installs."""
    pythons = {"3.6.1": ">=3.11", "3.5": ">=3.11, !=3.14.1", "3.4.2": ">=3.10"}

    def newest(python: str, lines: list[str]) -> list[object]:
        asked = [Requirement(line) for line in lines]
        versions = [next(it for it in pythons if one.specifier.contains(it)) for one in asked]
        return [
            script.Wheel(name=one.name, version=version, sha256="", requires=(), pythons=pythons[version])
            for one, version in zip(asked, versions, strict=True)
        ]

    monkeypatch.setattr(script, "choose", newest)
    lines = ["a>=2", "networkx==3.6.1"]
    assert [(one.name, one.version) for one in script.ask("3.10", lines)] == [("a", "3.4.2"), ("networkx", "3.4.2")]
    assert [one.version for one in script.ask("3.12", lines)] == ["3.6.1", "3.6.1"]


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
        if requirement.marker is None or requirement.marker.evaluate(environment):
            assert held.get(name) == str(requirement.specifier)
