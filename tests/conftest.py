"""What every test may ask for. No test reaches beyond this machine."""

from __future__ import annotations

import os
import shutil
import socket
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import PROJECT, site
from tests.space import Space

pytest_plugins = ("tests.made",)
# Logins, proxies, endpoints and caches of whoever runs the tests: no test sees them, nor what a test starts.
THEIRS = ("AWS_", "AZURE_", "ENGINES_", "GOOGLE_", "HF_", "HUGGING_FACE_", "MODELSCOPE_", "NETRC", "OPENAI_")
for _name in list(os.environ):  # before any library reads them
    if (_name.startswith(THEIRS) and _name != "ENGINES_LM_EVAL") or _name.lower().endswith("_proxy"):
        del os.environ[_name]


@pytest.fixture(autouse=True)
def _only_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forbids connections to other hosts: a test that needs one is not a test of ours."""
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, _guarded(getattr(socket.socket, name)))


def _guarded(connect: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(self: socket.socket, address: Any) -> Any:
        host = address[0] if self.family in (socket.AF_INET, socket.AF_INET6) else "localhost"
        if host not in ("localhost", "::1") and not str(host).startswith("127."):
            raise AssertionError(f"a test tried to connect to {host}")
        return connect(self, address)

    return guarded


@pytest.fixture(scope="session")
def shared_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as an unpacked wheel with fake tools. Shared: read-only."""
    return site(tmp_path_factory.mktemp("site") / "site")


@pytest.fixture
def workspace(tmp_path: Path, shared_site: Path) -> Space:
    """A project folder with one small model, in which the real doit runs with fake tools."""
    root = tmp_path / "space"
    root.mkdir()
    return Space(root, shared_site)


@pytest.fixture(scope="session")
def once_built(tmp_path_factory: pytest.TempPathFactory, shared_site: Path) -> Path:
    """A workspace with its smoke test made."""
    space = Space(tmp_path_factory.mktemp("built"), shared_site)
    space.build("smoke")
    space.ran()
    return space.root


@pytest.fixture
def built(tmp_path: Path, once_built: Path, shared_site: Path) -> Space:
    """A copy of it. What doit remembers of the original's paths is of no use here, and not needed."""
    return Space(Path(shutil.copytree(once_built, tmp_path / "space")), shared_site)


@pytest.fixture
def own_site(tmp_path: Path, shared_site: Path) -> Path:
    """A site of the test's own, whose tools and templates it may edit."""
    return Path(shutil.copytree(shared_site, tmp_path / "site"))


@pytest.fixture
def project() -> Path:
    """The root of this repository."""
    return PROJECT


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden(name, text)` asserts that `text` is tests/golden/<name>; with --update-golden it writes it first."""

    def same(name: str, text: str) -> None:
        path = PROJECT / "tests" / "golden" / name
        if request.config.getoption("--update-golden"):
            path.write_text(text, encoding="utf-8")
        assert text == path.read_text(encoding="utf-8"), f"if this is meant: pytest --update-golden -k {name}"

    return same


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Workers of `pytest -n` take whole files: the longest first, so that the last ones are short."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        cost: Counter[Path] = Counter()
        for item in items:
            cost[item.path] += _milliseconds(item)
        items.sort(key=lambda item: -cost[item.path])


def _milliseconds(item: pytest.Item) -> int:
    """Roughly: of the real tools, of a real server, of a whole doit or two, of anything else."""
    marks = {"slow": 6000, "server": 1000}
    doit = 2000 * ("shared_site" in getattr(item, "fixturenames", ()))
    return max([20, doit, *(cost for name, cost in marks.items() if item.get_closest_marker(name))])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write tests/golden anew")
