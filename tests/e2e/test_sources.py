"""From a hub to a smoke test, as a user does it: lock, build, build again elsewhere, offline, and after drift."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub import TOKEN, Hub, Repository, checkpoint, running
from tests.space import HEAD, Result, Space, texts

MODEL = """
[models.{name}]
source = "{source}"
toolchain = "cpu"
precisions = ["fp32"]
shapes = [{{ batch = 8, isl = 256, osl = 64 }}]
"""
HF, SCOPE = MODEL.format(name="a", source="hf:o/n"), MODEL.format(name="b", source="modelscope:o/n")
TOOLS = ["openvino_convert", "openvino_compile", "render"]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running(Hub({"o/n": Repository(files=checkpoint())})) as found:
        yield found


@pytest.fixture
def space(workspace: Space) -> Space:
    workspace.write("models.toml", HEAD + HF)
    return workspace


@pytest.fixture(scope="session")
def locked(tmp_path_factory: pytest.TempPathFactory, shared_site: Path) -> str:
    """What `doit lock` says of the repository on both hubs."""
    space = Space(tmp_path_factory.mktemp("locked"), shared_site)
    space.write("models.toml", HEAD + HF + SCOPE)
    with running(Hub({"o/n": Repository(files=checkpoint())})) as hub:
        _doit(space, hub, "lock")
    return space.read("models.lock")


@pytest.fixture
def pinned(space: Space, locked: str) -> Space:
    """A workspace whose source is locked."""
    space.write("models.lock", locked)
    return space


def _doit(space: Space, hub: Hub, *args: str, rc: int = 0, **env: str) -> Result:
    result = space.run(*args, **{**hub.env(), **env})
    assert result.rc == rc, result.out + result.err
    return result


def _bytes(hub: Hub) -> list[str]:
    """The requests of files' bytes."""
    return [it.path for it in hub.requests if it.host == "cdn" or "resolve" in it.path or "FilePath" in it.path]


def test_an_unlocked_source_can_be_planned_and_building_it_says_lock(space: Space, hub: Hub) -> None:
    (source, *others) = json.loads(_doit(space, hub, "plan", "--json", "build:a").out)["actions"]
    assert (source["status"], source["key"]) == ("blocked", None)
    assert source["reasons"] == ["waits for hf:o/n@main in models.lock (doit lock)"]
    assert {it["status"] for it in others} == {"blocked"}
    for rc, option in ((3, ()), (1, ("--no-check",))):
        result = _doit(space, hub, "build:a", *option, rc=rc)
        assert "hf:o/n@main is not in models.lock" in result.out + result.err
        assert "hint: doit lock a" in result.out + result.err
    assert not hub.requests


def test_what_is_locked_is_downloaded_verified_and_built(pinned: Space, hub: Hub) -> None:
    _doit(pinned, hub, "build:a")
    assert pinned.ran() == TOOLS
    files = {path.name: path.read_bytes() for path in (pinned.root / "artifacts" / "source" / "a").iterdir()}
    taken = set(hub.repositories["o/n"].files) - {".gitattributes", "README.md"}
    assert files == {path: hub.repositories["o/n"].files[path] for path in taken}
    hub.requests.clear()
    _doit(pinned, hub, "build:a")
    assert not hub.requests
    assert not list((pinned.root / "artifacts" / "store" / "warm" / "downloads").glob("[0-9a-f]*"))


def test_the_same_files_from_another_hub_are_stored_and_built_once(pinned: Space, hub: Hub) -> None:
    pinned.write("models.toml", HEAD + HF + SCOPE)
    _doit(pinned, hub, "build:a")
    pinned.ran()
    hub.requests.clear()
    pinned.poison()
    _doit(pinned, hub, "build:b")
    assert not hub.requests
    assert pinned.record("source:a")["key"] == pinned.record("source:b")["key"]
    assert pinned.record("engine:b_fp32_isl256_osl64_bs8")["how"] == "local"


def test_a_new_commit_brings_only_the_files_that_changed(pinned: Space, hub: Hub) -> None:
    _doit(pinned, hub, "build:a")
    pinned.ran()
    moved = hub.repositories["o/n"]
    moved.commit, moved.files["tokenizer_config.json"] = "beef" * 10, b'{"eos_token": "<other>"}'
    _doit(pinned, hub, "lock")
    hub.requests.clear()
    _doit(pinned, hub, "build:a")
    assert _bytes(hub) == [f"/o/n/resolve/{moved.commit}/tokenizer_config.json"]
    assert pinned.ran() == ["render"], "neither weights nor engine depend on it"


def test_a_moved_branch_changes_nothing_until_it_is_locked(pinned: Space, hub: Hub) -> None:
    _doit(pinned, hub, "build:a")
    moved = hub.repositories["o/n"]
    moved.commit, moved.files["config.json"] = "beef" * 10, b"{}"
    hub.requests.clear()
    _doit(pinned, hub, "build:a")
    assert not hub.requests


def test_a_build_stops_when_the_hub_has_another_file_than_the_locked_one(pinned: Space, hub: Hub) -> None:
    changed = hub.repositories["o/n"].files
    changed["model.safetensors"] = checkpoint(90_000)["model.safetensors"]
    result = _doit(pinned, hub, "build:a", rc=1)
    said = result.out + result.err
    assert "model.safetensors is not what models.lock says" in said
    assert hashlib.sha256(changed["model.safetensors"]).hexdigest() in said
    assert not (pinned.root / "artifacts" / "source" / "a").exists()
    assert pinned.ran() == []


def test_offline_builds_what_the_store_has_and_says_what_it_has_not(pinned: Space, hub: Hub) -> None:
    refused = _doit(pinned, hub, "build:a", rc=1, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set, and the store does not have hf:o/n@" in refused.out + refused.err
    _doit(pinned, hub, "source:a")
    _doit(pinned, hub, "clean", "source:a")
    hub.requests.clear()
    _doit(pinned, hub, "build:a", HF_HUB_OFFLINE="1")
    assert not hub.requests


def test_a_machine_without_a_network_builds_from_what_was_pulled(pinned: Space, hub: Hub, tmp_path: Path) -> None:
    team = f'[cache]\nremote = "file://{tmp_path}/team"\n\n'
    pinned.write("models.toml", team + HEAD + HF)
    _doit(pinned, hub, "source:a", ENGINES_REMOTE="off")
    _doit(pinned, hub, "cache", "push", "source:a")
    hub.requests.clear()
    (tmp_path / "apart").mkdir()
    apart = Space(tmp_path / "apart", pinned.site)
    for name in ("models.toml", "models.lock"):
        apart.write(name, pinned.read(name))
    _doit(apart, hub, "cache", "pull", "source:a", HF_HUB_OFFLINE="1")
    _doit(apart, hub, "build:a", HF_HUB_OFFLINE="1", ENGINES_REMOTE="off")
    assert apart.ran() == TOOLS
    assert not hub.requests


def test_what_an_earlier_build_left_of_a_download_is_used(pinned: Space, hub: Hub) -> None:
    content = hub.repositories["o/n"].files["model.safetensors"]
    part = pinned.root / "artifacts" / "store" / "warm" / "downloads" / hashlib.sha256(content).hexdigest()
    part.parent.mkdir(parents=True)
    part.write_bytes(content[:30_000])
    _doit(pinned, hub, "source:a")
    (sent,) = (it for it in hub.requests if it.host == "cdn" and part.name in it.path)
    assert sent.headers["range"] == f"bytes=30000-{len(content) - 1}"
    assert "going on after" in pinned.read("artifacts/logs/source/a.log")


def test_a_token_reaches_the_hub_and_nothing_that_is_kept_or_shown(space: Space, hub: Hub) -> None:
    hub.repositories["o/n"].gated = True
    results = [_doit(space, hub, "lock", HF_TOKEN=TOKEN)]
    results.append(_doit(space, hub, "plan", "--json", "build:a", HF_TOKEN=TOKEN))
    assert "hf:o/n is gated, and HF_TOKEN is not set" in _doit(space, hub, "build:a", rc=3).err
    hub.repositories["o/n"].readers = ()
    results.append(_doit(space, hub, "build:a", rc=1, HF_TOKEN=TOKEN))
    assert "is gated, and we may not read it" in results[-1].out + results[-1].err
    hub.repositories["o/n"].readers = (TOKEN,)
    results.append(_doit(space, hub, "build:a", HF_TOKEN=TOKEN))
    results.append(_doit(space, hub, "why", "source:a", HF_TOKEN=TOKEN))
    assert any(it.headers.get("authorization") == f"Bearer {TOKEN}" for it in hub.requests)
    for result in results:
        assert TOKEN not in result.out + result.err
    assert not [path for path, text in texts(space.root) if TOKEN in text or "SecretSignature" in text]


def test_a_changed_lock_is_a_change_that_affected_sees(space: Space, hub: Hub) -> None:
    _doit(space, hub, "lock")
    for args in (("init", "-q"), ("add", "."), ("-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "one")):
        subprocess.run(["git", *args], cwd=space.root, check=True)
    assert _doit(space, hub, "affected", "--since", "HEAD").out == ""
    moved = hub.repositories["o/n"]
    moved.commit, moved.files["config.json"] = "beef" * 10, moved.files["config.json"] + b"\n"
    _doit(space, hub, "lock")
    assert _doit(space, hub, "affected", "--since", "HEAD").out == "a_fp32_isl256_osl64_bs8\n"
