"""A team's cache: two machines and a folder between them, which may lie, be cut off, or belong to others."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rules.action import Action, Output
from rules.cache import Mode
from rules.errors import StepFailed
from rules.remotes import RemoteError, connect
from rules.sign import public_key
from tests.lab import Lab

ALICE, MALLORY = "11" * 32, "22" * 32
Machine = Callable[..., Lab]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine of its own, with the team's folder behind its store."""

    def made(name: str, mode: Mode = "write", **cache: object) -> Lab:
        (tmp_path / name).mkdir()
        (tmp_path / "team").mkdir(exist_ok=True)
        return Lab(tmp_path / name, **{"remote": connect(f"file://{tmp_path}/team"), "mode": mode, **cache})

    return made


def chain(lab: Lab, **more: object) -> tuple[Action, Action]:
    """An engine made from weights."""
    weights = lab.action("s:weights", "(out / 'w').write_text('weights' * 1000)", **more)
    read = "(out / 'e').write_text((places[0] / 'w').read_text()[:70])"
    return weights, lab.action("t:engine", read, ("weights", Output(action="s:weights")), **more)


def team(lab: Lab, folder: str) -> list[Path]:
    return sorted(path for path in (lab.root.parent / "team" / folder).rglob("*") if path.is_file())


def spoil(*blobs: Path) -> None:
    """Other bytes of the same size."""
    for blob in blobs:
        blob.chmod(0o644)
        blob.write_bytes(b"x" * blob.stat().st_size)


def test_the_second_machine_runs_nothing(machine: Machine) -> None:
    first, second = machine("first"), machine("second")
    assert first.make(*chain(first)) == ["ran", "ran"]
    assert second.make(*chain(second)) == ["remote", "remote"]
    assert second.ran() == []
    assert second.files("t:engine") == first.files("t:engine")


def test_a_hit_needs_only_the_result(machine: Machine) -> None:
    first, second = machine("first"), machine("second")
    first.make(*chain(first))
    for action in chain(second):
        assert not second.executor.make(action, print, here=False).here
        assert second.executor.fresh(action, here=False)
        assert not second.executor.fresh(action, here=True)
    assert list(second.store.digests()) == []


def test_bytes_come_when_a_command_needs_them(machine: Machine) -> None:
    first, second = machine("first"), machine("second")
    first.make(chain(first)[0])
    weights, engine = chain(second)
    second.executor.make(weights, print, here=False)
    assert second.made(engine).how == "ran"
    assert second.ran() == ["t:engine"]
    assert second.executor.fresh(weights, here=True)


def test_bytes_that_cannot_be_had_any_more_are_made_again(machine: Machine) -> None:
    first, second = machine("first"), machine("second")
    first.make(chain(first)[0])
    weights, engine = chain(second)
    second.executor.make(weights, print, here=False)
    for blob in team(second, "cas"):
        blob.unlink()
    second.made(engine)
    assert second.ran() == ["s:weights", "t:engine"]


def test_a_result_whose_blob_is_gone_is_a_miss(machine: Machine) -> None:
    first, second = machine("first"), machine("second")
    first.make(chain(first)[0])
    team(first, "cas")[0].unlink()
    assert second.make(chain(second)[0]) == ["ran"]


def test_a_blob_that_is_not_what_its_name_says_is_a_miss_told_once(machine: Machine) -> None:
    first, second = machine("first"), machine("second", mode="read")
    first.make(*chain(first))
    spoil(*team(first, "cas"))
    assert second.make(*chain(second)) == ["ran", "ran"]
    assert second.files("t:engine") == first.files("t:engine")
    assert len(second.warned) == len(set(second.warned)) == 2
    assert all("is not what its name says" in text for text in second.warned)


def test_a_wrong_blob_is_replaced_by_whoever_may_write(machine: Machine) -> None:
    first, second, third = machine("first"), machine("second"), machine("third")
    first.make(*chain(first))
    spoil(*team(first, "cas"))
    assert second.make(*chain(second)) == ["ran", "ran"]
    assert third.make(*chain(third)) == ["remote", "remote"]
    assert (len(second.warned), third.warned) == (2, [])


def test_a_blob_that_does_not_end_is_cut_off_and_a_miss(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = machine("first"), machine("second", mode="read")
    first.make(chain(first)[0])
    fetched: list[int] = []

    def endless(_: object, name: str, target: Path, heard: Callable[[int], None]) -> str:
        while len(fetched) < 100:
            fetched.append(1 << 20)
            heard(1 << 20)
        return "never"

    monkeypatch.setattr(type(first.cache.remote), "fetch", endless)
    assert second.make(chain(second)[0]) == ["ran"]
    assert len(fetched) == 1
    assert "is not what its name says" in second.warned[0]


def test_when_one_transfer_fails_the_others_end(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = machine("first"), machine("second", mode="read")
    action = first.action("s:two", "[(out / name).write_text(name * 9) for name in 'ab']")
    record = first.made(action)
    running, ended = threading.Event(), []

    def fetch(_: object, name: str, target: Path, heard: Callable[[int], None]) -> str:
        if not running.is_set():  # the first comes byte by byte, until somebody says that it need not
            running.set()
            while True:
                try:
                    heard(0)
                except BaseException as error:
                    ended.append(error)
                    raise
                time.sleep(0.01)
        raise RemoteError([])

    monkeypatch.setattr(type(first.cache.remote), "fetch", fetch)
    receipt = first.store.get(record.key)
    assert receipt is not None
    assert not second.cache.fetch(receipt, print)
    assert (len(ended), second.cache.mode) == (1, "off")


def test_an_unreadable_result_is_a_miss(machine: Machine) -> None:
    first, second = machine("first"), machine("second")
    first.make(chain(first)[0])
    for result in team(first, "ac"):
        result.write_text("<html>login</html>")
    assert second.make(chain(second)[0]) == ["ran"]
    assert "unreadable" in second.warned[0]


def test_only_missing_blobs_travel(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    first = machine("first")
    first.make(chain(first)[0])
    sent: list[str] = []
    kind: Any = type(first.cache.remote)
    send = kind.send

    def counted(remote: Any, name: str, *rest: Any) -> None:
        sent.append(name)
        send(remote, name, *rest)

    monkeypatch.setattr(kind, "send", counted)
    again = first.action("s:twice", "(out / 'w').write_text('weights' * 1000); (out / 'n').write_text('new')")
    first.made(again)
    assert len(sent) == 1


def test_the_result_is_sent_last(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = machine("first"), machine("second")

    def cut(*_: object) -> None:
        raise RemoteError([])

    monkeypatch.setattr(type(first.cache.remote), "send", cut)
    assert first.make(chain(first)[0]) == ["ran"]
    assert team(first, "ac") == []
    monkeypatch.undo()
    assert second.make(chain(second)[0]) == ["ran"]


def test_a_broken_remote_is_one_warning_and_then_off(machine: Machine, tmp_path: Path) -> None:
    lab = machine("first", remote=connect("http://127.0.0.1:9/cache"))
    assert lab.make(*chain(lab)) == ["ran", "ran"]
    assert len(lab.warned) == 1
    assert "off for this run" in lab.warned[0]


def test_what_is_not_to_be_shared_stays_here(machine: Machine) -> None:
    lab = machine("first")
    lab.make(*chain(lab, sharing="local"))
    assert team(lab, "ac") == team(lab, "cas") == []


def test_a_reader_writes_nothing(machine: Machine) -> None:
    lab = machine("first", mode="read")
    lab.make(*chain(lab))
    assert team(lab, "ac") == team(lab, "cas") == []


def test_a_result_signed_by_a_trusted_key_is_used(machine: Machine) -> None:
    first, second = machine("first", seed=ALICE), machine("second", trusted=frozenset({public_key(ALICE)}))
    first.make(*chain(first))
    assert second.make(*chain(second)) == ["remote", "remote"]


@pytest.mark.parametrize("seed", ["", MALLORY])
def test_a_result_that_nobody_trusted_signed_is_a_miss(machine: Machine, seed: str) -> None:
    first, second = machine("first", seed=seed), machine("second", "read", trusted=frozenset({public_key(ALICE)}))
    first.make(*chain(first))
    assert second.make(*chain(second)) == ["ran", "ran"]
    assert "not signed by a trusted key" in second.warned[0]


def test_what_was_taken_before_anybody_had_to_sign_is_asked_for_its_signature(machine: Machine) -> None:
    mallory, second = machine("first", seed=MALLORY), machine("second", "write")
    mallory.make(*chain(mallory))
    shared = {path: path.read_bytes() for path in team(mallory, "sig")}
    assert second.make(*chain(second)) == ["remote", "remote"]
    second.cache.push(second.made(chain(second)[0]).key, second.executor.artifacts.receipt("s:weights"), print)
    assert {path: path.read_bytes() for path in team(mallory, "sig")} == shared  # as they were
    second.cache.trusted = frozenset({public_key(ALICE)})
    for name in ("s:weights", "t:engine"):
        second.executor.artifacts.clean(name)
    assert second.make(*chain(second)) == ["ran", "ran"]
    for name in ("s:weights", "t:engine"):
        second.executor.artifacts.clean(name)
    assert second.make(*chain(second)) == ["local", "local"]  # made here, signed or not


def test_who_writes_to_the_bucket_cannot_swap_a_signed_engine(machine: Machine) -> None:
    first, second = machine("first", seed=ALICE), machine("second", "read", trusted=frozenset({public_key(ALICE)}))
    weights, engine = chain(first)
    first.make(weights, engine)
    shared = {action.name: first.root.parent / "team" / "ac" / first.made(action).key for action in (weights, engine)}
    shared["t:engine"].write_bytes(shared["s:weights"].read_bytes())
    assert second.make(*chain(second)) == ["remote", "ran"]


def test_every_shared_result_has_its_record_and_no_secret(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    lab = machine("first", seed=ALICE)
    lab.make(*chain(lab))
    assert len(team(lab, "rec")) == 2
    for path in (*team(lab, "rec"), *team(lab, "ac"), *team(lab, "sig")):
        assert "hf_secret" not in path.read_text()
        assert ALICE not in path.read_text()


def test_the_cache_never_shows_its_private_key(machine: Machine) -> None:
    assert ALICE not in repr(machine("first", seed=ALICE).cache)


def test_a_download_that_does_not_fit_is_the_disks_error_and_not_the_remotes(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = machine("first"), machine("second")
    first.make(*chain(first))
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_frsize=1, f_bavail=100, f_bfree=100))
    with pytest.raises(StepFailed) as error:
        second.make(*chain(second))
    assert "s:weights could not be kept" in str(error.value)
    assert f"0.0 MB to bring here and 0.0 MB free: '{second.store.root}'" in str(error.value)
    assert "hint: free some space: doit cache gc" in str(error.value)
    assert (second.warned, second.cache.mode) == ([], "write")
