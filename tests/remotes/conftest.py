"""Remotes that a test may ask for, with no home of the user's to find a login in."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.servers import nginx, s3rver
from tests.shelf import Shelf, shelf

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def cache() -> Iterator[Shelf]:
    with shelf() as running:
        yield running


@pytest.fixture(scope="session")
def nginx_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nginx")


@pytest.fixture(scope="session")
def nginx_port(nginx_root: Path) -> Iterator[int]:
    with nginx(nginx_root) as port:
        yield port


@pytest.fixture(scope="session")
def s3_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with s3rver(tmp_path_factory.mktemp("s3")) as port:
        yield port


@pytest.fixture
def s3_login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "S3RVER")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "S3RVER")


@pytest.fixture(scope="session")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """72 MiB and a bit: nine whole parts and a rest."""
    path = tmp_path_factory.mktemp("big") / "big"
    path.write_bytes(random.Random(7).randbytes(72 * MIB + 12345))
    return path


@pytest.fixture
def profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Writes AWS files with the profiles `team`, which has a key, and `sso`, which has none."""

    def write(*, endpoint: str, key: str) -> None:
        (tmp_path / "credentials").write_text(f"[team]\naws_access_key_id={key}\naws_secret_access_key={key}\n")
        (tmp_path / "config").write_text(
            f"[profile team]\nregion = eu-west-1\nendpoint_url = {endpoint}\n[profile sso]\nsso_session = x\n"
        )
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))

    return write
