"""What was fresh is known again when nothing was touched, and only then."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rules import tree
from rules.artifacts import Artifacts
from rules.freshness import Freshness

MADE, NEED = "engine:m", "checkpoint:m"
WORD = "kept"
_REAL = time.time_ns


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Artifacts of an action and of what it needs."""
    artifacts = tmp_path / "artifacts"
    for name in (
        "engine/m/sub/model.bin",
        "engine/m.receipt.json",
        "engine/m.record.json",
        "checkpoint/m.receipt.json",
    ):
        path = artifacts / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(WORD)
    _tick(artifacts)
    return artifacts


def _tick(folder: Path) -> None:
    """Waits until the file system's clock, which may tick every few milliseconds, is at another time."""
    clock = folder / "clock"
    clock.touch()
    before = clock.stat().st_ctime_ns
    while clock.stat().st_ctime_ns == before:
        clock.touch()
    clock.unlink()


@pytest.fixture(autouse=True)
def _later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds later than it is, so that no test waits for files to settle."""
    _clock(monkeypatch, 10)


def _clock(monkeypatch: pytest.MonkeyPatch, seconds: int) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: _REAL() + seconds * 10**9)


def state(root: Path, identity: str = "as it is") -> str:
    """What a new process sees."""
    return Freshness(Artifacts(root)).state(MADE, identity, [NEED])


def learnt(root: Path) -> str:
    """The state that is kept."""
    memo, found = Freshness(Artifacts(root)), state(root)
    memo.learn(MADE, found)
    memo.save([MADE])
    return found


def known(root: Path) -> bool:
    """What a new process thinks."""
    memo = Freshness(Artifacts(root))
    return memo.known(MADE, memo.state(MADE, "as it is", [NEED]))


def edited(path: Path) -> None:
    """Other bytes of the same number, in place, and the old time put back."""
    before = path.stat()
    with path.open("r+") as file:
        file.write("evil")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def swapped(path: Path) -> None:
    """Another file in its place, of the same size and time."""
    before = path.stat()
    other = path.with_name("other")
    other.write_text("evil")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


HARMS: dict[str, Callable[[Path], object]] = {
    "edited": edited,
    "swapped": swapped,
    "deleted": Path.unlink,
    "truncated": lambda path: path.write_text(""),
    "touched": os.utime,
    "given another mode": lambda path: path.chmod(0o755),
}
FILES = ("engine/m/sub/model.bin", "engine/m.receipt.json", "engine/m.record.json", "checkpoint/m.receipt.json")


def test_what_was_fresh_is_known_in_the_next_process(root: Path) -> None:
    assert not known(root)
    learnt(root)
    assert known(root)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", HARMS)
def test_no_file_changes_unnoticed(root: Path, name: str, harm: str) -> None:
    learnt(root)
    HARMS[harm](root / name)
    assert not known(root)


def test_a_file_or_a_folder_that_appears_is_noticed(root: Path) -> None:
    learnt(root)
    (root / "engine/m/sub/more").mkdir()
    assert known(root), "an empty folder is no output"
    (root / "engine/m/sub/more/extra").write_text("")
    assert not known(root)


def test_outputs_that_are_gone_or_replaced_as_a_whole_are_noticed(root: Path) -> None:
    learnt(root)
    (root / "engine/m").rename(root / "engine/old")
    assert not known(root)
    shutil.copytree(root / "engine/old", root / "engine/m")
    assert not known(root)
    shutil.rmtree(root / "engine/m")
    (root / "engine/old").rename(root / "engine/m")
    assert known(root), "the very files are back"


def test_another_definition_is_another_state(root: Path) -> None:
    assert state(root, "as it is") != state(root, "with another tool")


def test_a_memo_that_was_copied_to_another_checkout_knows_nothing_there(root: Path, tmp_path: Path) -> None:
    learnt(root)
    assert not known(Path(shutil.copytree(root, tmp_path / "other")))


def test_what_was_changed_just_now_is_not_learnt(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = (root / FILES[0]).stat().st_ctime_ns + 10**9
    monkeypatch.setattr(time, "time_ns", lambda: now)
    assert learnt(root) == ""
    assert not known(root)


def test_a_clock_that_was_put_back_makes_nothing_fresh(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learnt(root)
    _clock(monkeypatch, -3600)
    assert not known(root)
    edited(root / FILES[0])
    _clock(monkeypatch, 10)
    assert not known(root)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"version": 0, "rows": {}}', '{"version": 1, "rows": 1}', "\0"])
def test_a_memo_that_is_not_whole_is_no_memo(root: Path, text: str) -> None:
    learnt(root)
    (root / "memo/fresh.json").write_text(text)
    assert not known(root)


def test_killed_while_it_is_written_the_old_memo_stays(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learnt(root)
    (root / "memo/.fresh.json.1-1.tmp").write_text('{"version": 1, "ro')
    assert known(root)
    monkeypatch.setattr(tree, "write", _full)
    memo = Freshness(Artifacts(root))
    memo.learn("engine:other", "state")
    memo.save([MADE, "engine:other"])
    assert known(root)


def _full(_path: Path, _text: str) -> None:
    raise OSError(28, "No space left on device")


def test_what_is_planned_no_more_is_forgotten(root: Path) -> None:
    learnt(root)
    memo = Freshness(Artifacts(root))
    memo.learn("engine:other", "state")
    memo.save(["engine:other"])
    assert not known(root)
