"""A bucket as a place of models: every object by size and SHA-256, and what did not change is not read again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import obstore
import pytest

from rules.commands.lock import resolve
from rules.hubs import HubError, Listed, Listing
from rules.hubs.bucket import Bucket
from rules.locked import Locked
from rules.remotes import Patience
from rules.remotes.objects import bucket
from rules.source import Source
from tests.hub import Hub, checkpoint
from tests.servers import s3rver
from tests.tools.test_hub import Download

pytestmark = pytest.mark.server
WHERE = Source(scheme="s3", where="engines/models/m")


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with s3rver(tmp_path_factory.mktemp("s3")) as found:
        yield found


@pytest.fixture
def login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, port: int) -> dict[str, str]:
    """The way to a folder of the bucket with a checkpoint in it."""
    env = {
        **dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "S3RVER"),
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "HOME": str(tmp_path),
    }
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    store = bucket("engines", "models/m", Patience())
    for path, content in checkpoint().items():
        obstore.put(store, path, content)
    return env


class Counting(Bucket):
    """Counts the objects that are read whole."""

    def __init__(self) -> None:
        self.read_whole: list[str] = []

    def sha256(self, where: str, commit: str, file: Listed, heard: object) -> str:
        self.read_whole.append(file.path)
        return super().sha256(where, commit, file, print)


def test_a_folder_of_a_bucket_is_locked_and_read_again_only_where_it_changed(login: dict[str, str]) -> None:
    hub = Counting()
    found = resolve(hub, WHERE, hub.list(WHERE.where, ""), None, print)
    assert {it.path: it.sha256 for it in found.files} == {
        path: hashlib.sha256(content).hexdigest() for path, content in checkpoint().items()
    }
    assert found.config == json.loads(checkpoint()["config.json"])
    obstore.put(bucket("engines", "models/m", Patience()), "README.md", b"# changed\n")
    hub.read_whole.clear()
    again: Listing = hub.list(WHERE.where, "")
    after: Locked = resolve(hub, WHERE, again, found, print)
    assert hub.read_whole == ["README.md"]
    assert after != found


def test_a_locked_folder_is_downloaded_and_verified(login: dict[str, str], tmp_path: Path) -> None:
    hub = Hub({"o/n": type("Files", (), {"files": checkpoint()})()})
    download = Download(hub, tmp_path, place=WHERE.name, env=login)
    download.succeed()


def test_a_changed_object_is_not_taken(login: dict[str, str], tmp_path: Path) -> None:
    hub = Hub({"o/n": type("Files", (), {"files": checkpoint()})()})
    changed = checkpoint()["tokenizer.json"].replace(b"{}", b"[]")
    obstore.put(bucket("engines", "models/m", Patience()), "tokenizer.json", changed)
    assert "tokenizer.json is not what models.lock says" in Download(hub, tmp_path, WHERE.name, env=login).refusal()


def test_an_empty_folder_and_a_wrong_key_are_errors_without_the_key(
    login: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(HubError, match="holds nothing"):
        Bucket().list("engines/nothing", "")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "WrongSecretKey")
    with pytest.raises(HubError) as told:
        Bucket().list(WHERE.where, "")
    assert "WrongSecretKey" not in str(told.value)
