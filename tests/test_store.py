"""The store: a hit is whole, or it is a miss."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from rules import digest, tree
from rules.action import Receipt
from rules.store import Store
from tests.fakes import PROJECT

TWO = {"a": b"one", "b": b"two"}
KEY, OTHER = "ab" * 32, "cd" * 32
LARGE = b"x" * (1 << 20) + b"large"  # at this size files are linked, not copied


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def _put(store: Store, key: str = KEY, files: Mapping[str, bytes] = TWO) -> Receipt:
    folder = store.root.parent / "made"
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    receipt = store.put(key, folder, {})
    subprocess.run(["rm", "-rf", folder], check=True)
    return receipt


def _out(store: Store, receipt: Receipt) -> dict[str, bytes]:
    target = store.root.parent / "out"
    store.lay_out(receipt, target)
    return {p.relative_to(target).as_posix(): p.read_bytes() for p in sorted(target.rglob("*")) if p.is_file()}


def test_what_was_put_is_got_and_laid_out(store: Store) -> None:
    receipt = _put(store)
    assert store.get(KEY) == receipt
    assert _out(store, receipt) == {"a": b"one", "b": b"two"}


def test_an_unknown_key_is_a_miss_and_writes_nothing(store: Store) -> None:
    assert store.get(KEY) is None
    assert not store.root.exists()


def test_a_missing_blob_is_a_miss(store: Store) -> None:
    receipt = _put(store)
    store.blob(receipt.entries[0].digest).unlink()
    assert store.get(KEY) is None


@pytest.mark.parametrize("data", [b"", b"on", b"one "])
def test_a_truncated_or_longer_blob_is_a_miss_and_removed(store: Store, data: bytes) -> None:
    blob = store.blob(_put(store).entries[0].digest)
    _overwrite(blob, data)
    assert store.get(KEY) is None
    assert not blob.exists()


def test_a_blob_modified_in_place_is_a_miss_and_removed(store: Store) -> None:
    """Of equal length, and through a hard link, as root can."""
    receipt = _put(store, files={"big": LARGE})
    target = store.root.parent / "out"
    store.lay_out(receipt, target)
    blob = store.blob(receipt.entries[0].digest)
    if not (target / "big").samefile(blob):  # where the file system has reflinks nothing reaches back
        (target / "big").unlink()
        (target / "big").hardlink_to(blob)
    _overwrite(target / "big", LARGE[:-1] + b"!")
    assert store.get(KEY) is None
    assert not blob.exists()


def _overwrite(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.truncate(len(data))
        file.write(data)


def test_a_damaged_blob_is_made_good_by_the_next_put(store: Store) -> None:
    _overwrite(store.blob(_put(store).entries[0].digest), b"bad")
    receipt = _put(store)
    assert store.get(KEY) == receipt
    assert _out(store, receipt)["a"] == b"one"


def test_a_damaged_blob_is_never_taken_as_there_by_a_put_of_another_key(store: Store) -> None:
    _overwrite(store.blob(_put(store).entries[0].digest), b"eno")
    assert _out(store, _put(store, OTHER))["a"] == b"one"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"version": 1}', '{"version": 1, "files": [["../x", "0", 1, false]]}']
)
def test_an_unreadable_result_is_a_miss_and_removed(store: Store, text: str) -> None:
    _put(store)
    path = store.result_path(KEY)
    path.write_text(text)
    assert store.get(KEY) is None
    assert not path.exists()


def test_a_result_of_bytes_that_are_no_text_is_a_miss(store: Store) -> None:
    _put(store)
    store.result_path(KEY).write_bytes(b"\xff\xfe\x00")
    assert store.get(KEY) is None


def test_a_result_that_cannot_be_opened_is_a_miss(store: Store) -> None:
    store.result_path(KEY).mkdir(parents=True)
    assert store.get(KEY) is None


@pytest.mark.parametrize("size", [2, 1 << 20])
def test_a_receipt_that_lies_about_a_size_is_a_miss_and_costs_no_blob(store: Store, size: int) -> None:
    receipt = _put(store)
    liar = Receipt(tuple(replace(entry, size=size) for entry in receipt.entries))
    assert store.missing(liar) == liar.entries
    assert store.get(KEY) == receipt


def test_blobs_are_shared_between_results_and_read_only(store: Store) -> None:
    _put(store)
    _put(store, OTHER, {"c": b"one"})
    blobs = [path for path in (store.root / "blobs").rglob("*") if path.is_file()]
    assert len(blobs) == 2
    assert {path.stat().st_mode & 0o777 for path in blobs} == {0o444}


def test_no_output_at_all_is_a_hit_too(store: Store) -> None:
    (store.root.parent / "made").mkdir()
    store.put(KEY, store.root.parent / "made", {})
    receipt = store.get(KEY)
    assert receipt == Receipt(())
    assert _out(store, receipt) == {}


def test_an_empty_file_is_kept(store: Store) -> None:
    assert _out(store, _put(store, files={"empty": b""})) == {"empty": b""}


@pytest.mark.parametrize(
    "name", [b"a b", b"new\nline", "模型 🙂".encode(), b'quo"te', b"\xff\xfe", b"-rf", b"a\\b", b".x"]
)
def test_an_odd_name_is_kept(store: Store, name: bytes) -> None:
    path = os.fsdecode(name)
    receipt = _put(store, files={path: b"odd"})
    assert store.get(KEY) == receipt
    assert _out(store, receipt) == {path: b"odd"}


@pytest.mark.parametrize("data", [b"#!/bin/sh\n", LARGE])
def test_the_run_bit_is_kept_per_file_of_one_content(store: Store, data: bytes) -> None:
    folder = store.root.parent / "made"
    folder.mkdir()
    for name in ("plain", "run"):
        (folder / name).write_bytes(data)
    (folder / "run").chmod(0o755)
    receipt = store.put(KEY, folder, {})
    _out(store, receipt)
    assert {p.name: tree.runnable(p) for p in (store.root.parent / "out").iterdir()} == {"plain": False, "run": True}


@pytest.mark.parametrize("data", [b"one", LARGE])
def test_a_link_is_kept_as_the_file_it_leads_to(store: Store, tmp_path: Path, data: bytes) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    (tmp_path / "elsewhere").write_bytes(data)
    (folder / "z").write_bytes(data + b"z")
    (folder / "inside").symlink_to("z")
    (folder / "outside").symlink_to(tmp_path / "elsewhere")
    assert _out(store, store.put(KEY, folder, {})) == {"inside": data + b"z", "outside": data, "z": data + b"z"}
    assert (tmp_path / "elsewhere").read_bytes() == data


def test_a_hard_link_to_a_file_that_is_not_ours_is_not_sealed(store: Store, tmp_path: Path) -> None:
    """The user's checkpoint must keep its own time and mode."""
    mine = tmp_path / "mine"
    mine.write_bytes(LARGE)
    before = mine.stat()
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "copy").hardlink_to(mine)
    store.put(KEY, folder, {})
    assert (mine.stat().st_mode, mine.stat().st_mtime_ns) == (before.st_mode, before.st_mtime_ns)


def _process(store: Store, files: int, size: int, *, stop: str = "") -> subprocess.Popen[bytes]:
    """A real process that stores `files` files as KEY, and a second key after that, for ever."""
    code = f"""
    import os, sys, tempfile
    from pathlib import Path
    from rules.store import Store
    store = Store(Path({str(store.root)!r}))
    print("ready", flush=True)
    for round in range(1_000_000):
        folder = Path(tempfile.mkdtemp(dir={str(store.root.parent)!r}))
        for n in range({files}):
            (folder / str(n)).write_bytes(bytes([n]) * {size} + str(round).encode())
        store.put(f"{{round:064x}}", folder, {{}})
        {stop}
    """
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], cwd=PROJECT, stdout=subprocess.PIPE)


@pytest.mark.parametrize("seed", range(20))
def test_a_crash_at_any_moment_leaves_whole_results_and_misses(store: Store, seed: int) -> None:
    chance = random.Random(seed)
    with _process(store, files=5, size=chance.choice((10, 100_000, 1_500_000))) as process:
        assert process.stdout
        process.stdout.readline()
        time.sleep(chance.uniform(0.0, 0.08))
        process.kill()
    hits = [receipt for key in sorted(store.keys()) if (receipt := store.receipt(key))]
    assert all(len(receipt.entries) == 5 and not _damaged(store, receipt) for receipt in hits)
    assert _put(store) == store.get(KEY), "the store still works"


def _damaged(store: Store, receipt: Receipt) -> list[str]:
    return [entry.path for entry in receipt.entries if digest.of_file(store.blob(entry.digest)) != entry.digest]


def test_two_processes_that_store_the_same_keys_leave_whole_results(store: Store) -> None:
    stop = "if round == 8: break"
    with _process(store, 3, 2_000_000, stop=stop) as one, _process(store, 3, 2_000_000, stop=stop) as other:
        assert one.wait(300) == other.wait(300) == 0
    receipts = [store.get(f"{number:064x}") for number in range(9)]
    assert all(receipt and not _damaged(store, receipt) for receipt in receipts)
