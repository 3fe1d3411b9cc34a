"""`doit cache`: the store and the team's cache, from the command line."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rules.commands import cache
from rules.errors import StepFailed
from tests.space import Space


def test_a_store_that_others_own_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", "/store/blobs/ab/cd")

    command: Any = SimpleNamespace()
    monkeypatch.setattr(cache, "here", lambda: None)
    monkeypatch.setattr(cache, "_gc", refused)
    with pytest.raises(StepFailed, match=r"(?s)the store could not be kept.*/store/blobs/ab/cd.*may we write there"):
        cache.CacheCommand.execute(command, {}, ["gc"])


@pytest.fixture
def shared(workspace: Space, tmp_path: Path) -> Space:
    """A workspace with a team's folder."""
    (tmp_path / "team").mkdir()
    workspace.write("models.toml", f'[cache]\nremote = "file://{tmp_path}/team"\n\n' + workspace.read("models.toml"))
    return workspace


def colleague(space: Space, folder: Path, **control: str) -> Space:
    """Another checkout of the same project on another machine."""
    folder.mkdir()
    other = Space(folder, space.site)
    other.write("models.toml", space.read("models.toml"))
    for path, text in control.items():
        other.write(path, text)
    return other


def test_status_counts_the_store(workspace: Space) -> None:
    workspace.build()
    out = workspace.run("cache", "status").out
    assert "5 results" in out
    assert "remote   none" in out


def test_a_colleague_builds_nothing_and_fetches_only_what_is_asked_for(shared: Space, tmp_path: Path) -> None:
    shared.build("smoke")
    other = colleague(shared, tmp_path / "other")
    other.poison()
    assert "1 from the team" not in other.build("build")
    assert other.ran() == []
    assert (other.root / "artifacts/build/m_int8_wo_isl256_osl64_bs8/ensemble/config.pbtxt").exists()
    assert not (other.root / "artifacts/engine/m_int8_wo_isl256_osl64_bs8").exists()


def test_pull_brings_all_bytes_so_that_a_machine_without_a_network_can_build(shared: Space, tmp_path: Path) -> None:
    shared.build("build")
    other = colleague(shared, tmp_path / "other")
    assert "5 results are here" in other.build("cache", "pull", "build")
    shutil.rmtree(tmp_path / "team")
    other.poison()
    shutil.rmtree(other.root / "artifacts" / "build")
    assert "made" in other.build("build")
    assert other.ran() == []


def test_pull_says_what_is_in_no_cache(shared: Space) -> None:
    result = shared.run("cache", "pull", "build")
    assert result.rc == 1
    assert "0 results are here, 5 are in no cache" in result.out


def test_push_sends_what_was_made_before_there_was_a_team(shared: Space, tmp_path: Path) -> None:
    assert shared.run("build", ENGINES_REMOTE="off").rc == 0
    other = colleague(shared, tmp_path / "other")
    assert "5 results pushed" in shared.build("cache", "push")
    other.poison()
    other.build("build")
    assert other.ran() == []


def test_a_reader_cannot_push(shared: Space) -> None:
    shared.run("build", ENGINES_REMOTE="read")
    assert shared.run("cache", "push", ENGINES_REMOTE="read").rc == 1


def test_verify_removes_what_is_wrong_and_the_next_build_makes_it_good(workspace: Space) -> None:
    workspace.build()
    for blob in (workspace.root / "artifacts/store/blobs").rglob("*"):
        if blob.is_file():
            blob.chmod(0o644)
            blob.write_bytes(b"?" * blob.stat().st_size)
    result = workspace.run("cache", "verify")
    assert result.rc == 1
    assert "5 removed" in result.out
    assert workspace.run("cache", "verify").rc == 0


def test_gc_spares_what_is_current_unless_it_is_told_otherwise(workspace: Space) -> None:
    workspace.build()
    out = workspace.build("cache", "gc", "--size", "0")
    assert "0.0 MB freed" in out
    assert "stay: pinned, or what a checkout's artifacts were made with (--all takes that too)" in out
    assert "5 results" in workspace.build("cache", "status")
    workspace.build("cache", "gc", "--size", "0", "--all")
    assert "0 results" in workspace.build("cache", "status")


def test_what_is_pinned_survives_even_a_collection_of_everything(workspace: Space) -> None:
    workspace.build()
    shape = "build:m_int8_wo_isl256_osl64_bs8"
    assert "5 results pinned, 0 not here" in workspace.build("cache", "pin", shape)
    workspace.build("smoke")
    workspace.build("cache", "gc", "--size", "0", "--all")
    assert "pinned   build:m_int8_wo_isl256_osl64_bs8, 5 results" in workspace.build("cache", "status")
    shutil.rmtree(workspace.root / "artifacts/build")
    workspace.poison()
    assert "0 made, 1 from the store" in workspace.build("build")
    assert "1 unpinned" in workspace.build("cache", "unpin", shape)
    workspace.build("cache", "gc", "--size", "0", "--all")
    assert "0 results" in workspace.build("cache", "status")


def test_pinning_what_was_never_made_says_so(workspace: Space) -> None:
    result = workspace.run("cache", "pin", "build")
    assert (result.rc, result.out) == (1, "build: 0 results pinned, 5 not here\n")
    assert workspace.run("cache", "unpin", "build:nobody").rc == 1


def test_signatures_are_asked_for_by_those_who_trust_somebody(shared: Space, tmp_path: Path) -> None:
    from rules.sign import public_key

    trusting = f'trusted = ["{public_key("11" * 32)}"]\n'
    shared.write("models.toml", shared.read("models.toml").replace("[cache]\n", "[cache]\n" + trusting))
    assert shared.run("build", ENGINES_SIGNING_KEY="11" * 32).rc == 0
    assert "every result is believed" in shared.build("cache", "verify", "--signatures")
    other = colleague(shared, tmp_path / "other")
    other.poison()
    other.build("build")
    for signature in (tmp_path / "team" / "sig").iterdir():
        signature.unlink()
    third = colleague(shared, tmp_path / "third")
    third.poison()
    assert third.run("build").rc == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "cache needs one of"),
        (["tidy"], "cache needs one of"),
        (["pin"], "needs a TARGET"),
        (["pin", "build:nobody"], "there is no 'build:nobody'"),
        (["gc", "--size", "lots"], "write a number"),
        (["gc", "--age", "-1"], "write a number of days"),
        (["pull", "build:nobody"], "there is no 'build:nobody'"),
    ],
)
def test_a_mistake_is_one_error(workspace: Space, words: list[str], said: str) -> None:
    result = workspace.run("cache", *words)
    assert result.rc == 3
    assert said in result.err
    assert "Traceback" not in result.err


def test_an_unknown_mode_is_one_error(workspace: Space) -> None:
    result = workspace.run("list", ENGINES_REMOTE="rw")
    assert result.rc == 3
    assert "ENGINES_REMOTE=rw" in result.err


def test_a_pull_that_fails_is_one_error_without_a_traceback(shared: Space, tmp_path: Path) -> None:
    shared.build("build")
    other = colleague(shared, tmp_path / "other")
    other.under = ("prlimit", "--fsize=1000")
    result = other.run("cache", "pull", "build")
    assert result.rc == 1
    assert result.err.count("ERROR: ") == 1
    assert "could not be kept\n    reason  [Errno 27] File too large" in result.err
    assert "Traceback" not in result.err


def test_without_a_remote_there_is_nothing_to_push_to(workspace: Space) -> None:
    result = workspace.run("cache", "push")
    assert (result.rc, result.out) == (3, "")
    assert "there is no remote to push to" in result.err
