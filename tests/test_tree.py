"""Folders as receipts: seals, placing, and a memory of folders that are not ours."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rules import digest, tree
from rules.action import Entry, Receipt
from tests.fakes import PROJECT

MIB = 1 << 20


def _blob(path: Path, data: bytes, *, executable: bool = False) -> Entry:
    path.write_bytes(data)
    entry = Entry(path.name, digest.of_bytes(data), len(data), executable)
    tree.protect(path, entry)
    return entry


def test_a_file_as_it_was_sealed_is_intact_without_being_read(tmp_path: Path) -> None:
    entry = _blob(tmp_path / "f", b"data")
    claimed = Entry("f", entry.digest[:6] + "0" * 58, entry.size)
    assert tree.intact(tmp_path / "f", claimed), "size and seal were right: the content is not read"


@pytest.mark.parametrize("data", [b"DATA", b"dat", b"data+", b""])
def test_a_modified_file_is_not_intact(tmp_path: Path, data: bytes) -> None:
    entry = _blob(tmp_path / "f", b"data")
    (tmp_path / "f").write_bytes(data)
    assert not tree.intact(tmp_path / "f", entry)


def test_a_touched_file_is_read_found_intact_and_sealed_anew(tmp_path: Path) -> None:
    entry = _blob(tmp_path / "f", b"data")
    os.utime(tmp_path / "f")
    assert tree.intact(tmp_path / "f", entry)
    assert (tmp_path / "f").stat().st_mtime == tree.seal(entry.digest)


def test_a_missing_file_a_folder_and_a_dangling_link_are_not_intact(tmp_path: Path) -> None:
    entry = Entry("f", digest.of_bytes(b""), 0)
    assert not tree.intact(tmp_path / "f", entry)
    assert not tree.intact(tmp_path, Entry("", entry.digest, tmp_path.stat().st_size))
    (tmp_path / "f").symlink_to("nowhere")
    assert not tree.intact(tmp_path / "f", entry)


def test_a_file_below_a_file_is_not_intact(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")
    assert not tree.intact(tmp_path / "f" / "g", Entry("g", digest.of_bytes(b""), 0))


def test_a_protected_file_is_read_only_and_keeps_its_run_bit(tmp_path: Path) -> None:
    _blob(tmp_path / "f", b"1")
    _blob(tmp_path / "x", b"2", executable=True)
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o444
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o555


@pytest.mark.parametrize("size", [0, 10, MIB, 2 * MIB])
@pytest.mark.parametrize("executable", [False, True])
def test_a_placed_file_has_content_run_bit_and_seal(tmp_path: Path, size: int, executable: bool) -> None:
    """Also where the blob came first from a file with the other run bit."""
    entry = _blob(tmp_path / "blob", b"x" * size)
    wanted = Entry("a", entry.digest, size, executable)
    tree.place(tmp_path / "blob", tmp_path / "deep" / "a", wanted)
    found = tmp_path / "deep" / "a"
    assert found.read_bytes() == b"x" * size
    assert os.access(found, os.X_OK) == executable
    assert found.stat().st_mtime == tree.seal(entry.digest)
    assert not os.access(tmp_path / "blob", os.X_OK)


def test_a_small_file_is_a_copy_so_that_an_edit_cannot_reach_the_store(tmp_path: Path) -> None:
    entry = _blob(tmp_path / "blob", b"small")
    tree.place(tmp_path / "blob", tmp_path / "a", entry)
    (tmp_path / "a").chmod(0o644)
    (tmp_path / "a").write_bytes(b"other")
    assert (tmp_path / "blob").read_bytes() == b"small"


def test_a_large_file_costs_no_space(tmp_path: Path) -> None:
    """Reflink or hard link; either way no second copy is written."""
    entry = _blob(tmp_path / "blob", os.urandom(8 * MIB))
    before = os.statvfs(tmp_path).f_bfree
    tree.place(tmp_path / "blob", tmp_path / "a", entry)
    linked = (tmp_path / "a").stat().st_ino == (tmp_path / "blob").stat().st_ino
    assert linked or before - os.statvfs(tmp_path).f_bfree < 1024


def test_a_folder_reads_as_its_files_sorted(tmp_path: Path) -> None:
    for name in ("b/c", "b.txt", "a", ".hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    found = tree.read(tmp_path, {})
    assert [entry.path for entry in found.entries] == sorted(["b/c", "b.txt", "a", ".hidden"])
    assert Receipt.parse(found.text()) == found


def test_a_link_to_a_file_counts_as_the_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("data")
    (tmp_path / "b").symlink_to("a")
    assert [entry.digest for entry in tree.read(tmp_path, {}).entries] == [digest.of_bytes(b"data")] * 2


def test_a_known_inode_is_not_read_again(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("data")
    found = (tmp_path / "a").stat()
    assert tree.read(tmp_path, {(found.st_dev, found.st_ino): "11" * 32}).entries[0].digest == "11" * 32


def test_writing_replaces_the_whole_text_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "below" / "f"
    tree.write(path, "a" * 100_000)
    stop = threading.Event()
    seen: set[str] = set()

    def look() -> None:
        while not stop.is_set():
            seen.add(path.read_text())

    watcher = threading.Thread(target=look)
    watcher.start()
    for text in ("b", "a") * 20:
        tree.write(path, text * 100_000)
    stop.set()
    watcher.join()
    assert seen <= {"a" * 100_000, "b" * 100_000}
    assert [p.name for p in path.parent.iterdir()] == ["f"]


def test_replacing_a_folder_leaves_exactly_the_new_one(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
    tree.replace(tmp_path / "old", tmp_path / "new")
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")] == ["old", "old/new"]


def test_replacing_is_not_stopped_by_what_a_crash_left(tmp_path: Path) -> None:
    """In a container the process id of the crashed one comes again."""
    target = tmp_path / "t"
    target.mkdir()
    (left := tree.aside(target, "old")).mkdir()
    (left / "f").write_text("left")
    (tmp_path / "new").mkdir()
    tree.replace(target, tmp_path / "new")
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


def test_two_containers_with_the_same_process_numbers_write_to_different_files() -> None:
    code = """
import os, threading; from pathlib import Path
from rules import tree
os.getpid = threading.get_native_id = lambda: 7
print(tree.aside(Path("blob"), "get"))
"""
    command = [sys.executable, "-c", code]
    names = {subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout for _ in range(2)}
    assert len(names) == 2


def _memo(tmp_path: Path) -> tree.Memo:
    return tree.Memo(tmp_path / "memo.json")


def test_a_memo_reads_an_unchanged_file_once(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    file = tmp_path / "src" / "a"
    file.write_text("data")
    os.utime(file, (1, 1))
    first = _memo(tmp_path).read(tmp_path / "src")
    text = (tmp_path / "memo.json").read_text()
    (tmp_path / "memo.json").write_text(text.replace(first.entries[0].digest, "11" * 32))
    assert _memo(tmp_path).read(tmp_path / "src").entries[0].digest == "11" * 32


def test_a_memo_notices_an_edit_of_equal_length_in_the_same_instant(tmp_path: Path) -> None:
    """A file system's clock ticks every few milliseconds: such an edit leaves size and time as they were."""
    (tmp_path / "src").mkdir()
    file = tmp_path / "src" / "a"
    file.write_bytes(b"one")
    _memo(tmp_path).read(tmp_path / "src")
    before = file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert _memo(tmp_path).read(tmp_path / "src").entries[0].digest == digest.of_bytes(b"two")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}', '{"a": []}', '{"a": [1, 2, 3, 4, 5]}', "null"])
def test_a_broken_memo_is_no_memo(tmp_path: Path, text: str) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a").write_bytes(b"data")
    (tmp_path / "memo.json").write_text(text)
    assert _memo(tmp_path).read(tmp_path / "src").entries[0].digest == digest.of_bytes(b"data")


def test_no_room_is_told_with_the_path_and_the_numbers_before_or_while_it_fills(tmp_path: Path) -> None:
    tried = False
    said = r"1152921504606.8 MB to bring here and \d+\.\d MB free: '.*/store'"
    with pytest.raises(OSError, match=said), tree.room(tmp_path / "store", 1 << 60):
        tried = True
    assert not tried
    said = r"5.0 MB to bring here and \d+\.\d MB free: '.*/store'"
    with pytest.raises(OSError, match=said), tree.room(tmp_path / "store", 5_000_000):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="other"), tree.room(tmp_path / "store", 5):
        raise OSError(errno.EIO, "other")
