"""The store's upkeep: what it counts, repairs and removes, and what it never touches."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from rules import upkeep
from rules.action import Action
from rules.remotes import connect
from rules.sign import public_key
from rules.upkeep import Limits
from tests.lab import Lab

NOW = Limits(size=0, grace_s=0)


def made(lab: Lab, name: str, text: str) -> Action:
    action = lab.action(name, f"(out / 'a').write_text({text!r})")
    lab.made(action)
    return action


def spoil(lab: Lab) -> None:
    """Other bytes of the same size under every blob, sealed as if nothing had happened."""
    for content in lab.store.digests():
        path = lab.store.blob(content)
        found = path.stat()
        path.chmod(0o644)
        path.write_bytes(b"x" * found.st_size)
        os.utime(path, (found.st_mtime, found.st_mtime))


def test_totals_count_what_no_result_names(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    made(lab, "s:a", "four")
    made(lab, "s:b", "seven77")
    record = lab.executor.artifacts.record("s:a")
    assert record
    lab.store.forget(record.key)
    found = upkeep.totals(lab.store)
    assert (found.results, found.blobs, found.size, found.loose) == (1, 2, 11, 4)


def test_verify_reads_what_a_seal_would_believe(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    action = made(lab, "s:a", "text")
    spoil(lab)
    assert upkeep.verify(lab.cache, print) == ([], [lab.executor.artifacts.record("s:a").key])  # type: ignore[union-attr]
    lab.executor.artifacts.clean("s:a")
    assert lab.make(action) == ["ran"]


def test_verify_repairs_from_the_remote(tmp_path: Path) -> None:
    (tmp_path / "team").mkdir()
    lab = Lab(tmp_path, remote=connect(f"file://{tmp_path}/team"), mode="write")
    made(lab, "s:a", "text")
    spoil(lab)
    repaired, removed = upkeep.verify(lab.cache, print)
    assert (len(repaired), removed) == (1, [])
    assert upkeep.verify(lab.cache, print) == ([], [])


def test_verify_leaves_alone_what_was_used_without_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "team").mkdir()
    first = Lab(tmp_path / "first", remote=connect(f"file://{tmp_path}/team"), mode="write")
    second = Lab(tmp_path / "second", remote=connect(f"file://{tmp_path}/team"), mode="read")
    action = made(first, "s:a", "text")
    second.executor.make(action, print, here=False)
    assert upkeep.verify(second.cache, print) == ([], [])
    assert list(second.store.digests()) == []
    assert len(list(second.store.keys())) == 1
    listed = list(first.store.digests())
    monkeypatch.setattr(second.store, "digests", lambda: iter(listed))  # as if a gc took them away a moment later
    assert upkeep.verify(second.cache, print) == ([], [])


def test_unsigned_results_are_named(tmp_path: Path) -> None:
    lab = Lab(tmp_path, trusted=frozenset({public_key("11" * 32)}))
    made(lab, "s:a", "text")
    assert len(upkeep.unsigned(lab.cache)) == 1
    lab.cache.seed = "11" * 32
    made(lab, "s:b", "other")
    assert len(upkeep.unsigned(lab.cache)) == 1


def test_collecting_spares_what_a_checkout_was_made_with(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    upkeep.enroll(lab.store, lab.root / "artifacts")
    made(lab, "s:a", "old")
    action = made(lab, "s:a", "current")
    assert upkeep.collect(lab.store, upkeep.needed(lab.store), NOW) == 3
    lab.executor.artifacts.clean("s:a")
    assert lab.make(action) == ["local"]


def test_a_checkout_that_is_gone_needs_nothing(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    upkeep.enroll(lab.store, tmp_path / "gone")
    assert upkeep.needed(lab.store) == set()
    assert list((lab.store.root / "roots").iterdir()) == []


def test_a_pin_keeps_what_it_named_then_and_another_pin_of_the_same_name_adds(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    for text in ("one", "two"):
        record = lab.made(lab.action("s:a", f"(out / 'a').write_text({text!r})"))
        upkeep.pin(lab.store, "s:a", [record.key])
    made(lab, "s:b", "three")
    assert upkeep.collect(lab.store, set().union(*upkeep.pinned(lab.store).values()), NOW) == 5
    assert upkeep.unpin(lab.store, "s:a")
    assert not upkeep.unpin(lab.store, "s:a")
    assert upkeep.pinned(lab.store) == {}


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    actions = [made(lab, f"s:{name}", name * 10) for name in "abc"]
    for age, action in enumerate(actions):
        key = lab.executor.artifacts.record(action.name).key  # type: ignore[union-attr]
        os.utime(lab.store.result_path(key), (time.time() - 100 * age,) * 2)
    upkeep.collect(lab.store, set(), Limits(size=20, grace_s=0))
    for action in actions:
        lab.executor.artifacts.clean(action.name)
    assert lab.make(*actions) == ["local", "local", "ran"]


def test_bytes_that_two_results_share_count_once(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    for name in "ab":
        lab.made(lab.action(f"s:{name}", "(out / 'a').write_text('shared' * 10)"))
    assert upkeep.collect(lab.store, set(), Limits(size=60, grace_s=0)) == 0
    assert len(list(lab.store.keys())) == 2


def test_age_is_since_the_last_use(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    action = made(lab, "s:a", "text")
    path = lab.store.result_path(lab.executor.artifacts.record("s:a").key)  # type: ignore[union-attr]
    os.utime(path, (1.0, 1.0))
    lab.executor.artifacts.clean("s:a")
    assert lab.make(action) == ["local"]
    assert upkeep.collect(lab.store, set(), Limits(age_s=60, grace_s=0)) == 0
    os.utime(path, (1.0, 1.0))
    assert upkeep.collect(lab.store, set(), Limits(age_s=60, grace_s=0)) == 4


def test_a_blob_whose_build_may_still_be_writing_stays(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    made(lab, "s:a", "text")
    assert upkeep.collect(lab.store, set(), Limits(size=0)) == 0
    assert len(list(lab.store.digests())) == 1


def test_what_another_process_removes_meanwhile_is_not_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab(tmp_path)
    made(lab, "s:a", "four")
    half = lab.store.root / "blobs" / "ab" / ".cd.1-1.tmp"
    half.parent.mkdir(exist_ok=True)
    listed = [*lab.store.digests(), "ab" * 32]
    monkeypatch.setattr(lab.store, "digests", lambda: iter(listed))
    monkeypatch.setattr(Path, "glob", lambda self, _: iter([half]) if self == lab.store.root else iter(()))
    found = upkeep.totals(lab.store)
    assert (found.blobs, found.size) == (1, 4)
    assert upkeep.collect(lab.store, set(), Limits(grace_s=0)) == 4
    assert upkeep.verify(lab.cache, print) == ([], [])


def test_a_blob_that_cannot_be_read_is_no_good_one(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    action = made(lab, "s:a", "text")
    (content,) = lab.store.digests()
    lab.store.blob(content).unlink()
    lab.store.blob(content).symlink_to("nowhere")
    repaired, removed = upkeep.verify(lab.cache, print)
    assert (repaired, len(removed)) == ([], 1)
    lab.executor.artifacts.clean("s:a")
    assert lab.make(action) == ["ran"]


def test_half_written_files_and_orphans_go(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    made(lab, "s:kept", "kept")
    made(lab, "s:gone", "gone")
    half = lab.store.root / "blobs" / "ab" / ".cd.1-1.tmp"
    half.parent.mkdir(exist_ok=True)
    half.write_text("half")
    (lab.root / "artifacts/work/ended/out").mkdir(parents=True)
    upkeep.collect(lab.store, set(), Limits(grace_s=0))
    upkeep.sweep_work(lab.root / "artifacts", {lab.executor.artifacts.folder("s:kept")}, 0)
    assert not half.exists()
    assert sorted(path.name for path in (lab.root / "artifacts/s").iterdir()) == [
        "kept",
        "kept.receipt.json",
        "kept.record.json",
    ]
    assert not (lab.root / "artifacts/work/ended").exists()


@pytest.mark.parametrize("grace_s", [3600.0])
def test_the_work_of_a_running_build_stays(tmp_path: Path, grace_s: float) -> None:
    (tmp_path / "work" / "key").mkdir(parents=True)
    upkeep.sweep_work(tmp_path, set(), grace_s)
    assert (tmp_path / "work" / "key").exists()


def test_the_index_of_a_hubs_digests_forgets_what_is_gone(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    made(lab, "s:a", "text")
    (content,) = lab.store.digests()
    lab.store.write_note("sha256", "ab" * 32, content)
    upkeep.collect(lab.store, set(), Limits(grace_s=0))
    assert lab.store.note("sha256", "ab" * 32) == content
    upkeep.collect(lab.store, set(), NOW)
    assert lab.store.note("sha256", "ab" * 32) is None


def test_what_is_warm_is_named_and_goes_when_nobody_wrote_to_it_for_long(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    for name, age in (("old", 9 * 86400), ("new", 0)):
        path = lab.store.warm(name) / "model.cache"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"12345")
        os.utime(path, (time.time() - age,) * 2)
    assert upkeep.warm(lab.store) == {"new": 5, "old": 5}
    assert upkeep.cool(lab.store, 7 * 86400.0) == 5
    assert upkeep.warm(lab.store) == {"new": 5}
    assert upkeep.cool(lab.store, 0.0) == 5
