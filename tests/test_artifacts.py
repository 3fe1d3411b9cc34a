"""Receipts, records and the history of a checkout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rules.action import Action, Entry, Receipt
from rules.artifacts import Artifacts, Record, Unknown, changes

RECEIPT = Receipt((Entry("a", "ab" * 32, 3),))
RECORD = Record(
    key="ab" * 32,
    manifest="manifest 1\n",
    how="ran",
    here=True,
    seconds=1.5,
    size=3,
    started="2026-11-21T12:00:00+00:00",
    host="h",
    revision="",
    log="",
    changed=("- a", "+ b"),
)


def test_a_record_is_read_back_as_it_was() -> None:
    assert Record.parse(RECORD.text()) == RECORD


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"key": 1}', "null"])
def test_a_torn_record_is_none(tmp_path: Path, text: str) -> None:
    artifacts = Artifacts(tmp_path)
    artifacts.write("s:a", RECEIPT, RECORD)
    next((tmp_path / "s").glob("*.record.json")).write_text(text)
    assert artifacts.record("s:a") is None


def test_what_was_never_made_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(Unknown, match="s:a"):
        Artifacts(tmp_path).receipt("s:a")


def test_an_equal_receipt_is_not_written_again(tmp_path: Path) -> None:
    artifacts = Artifacts(tmp_path)
    artifacts.write("s:a", RECEIPT, RECORD)
    before = Path(artifacts.receipt_path("s:a")).stat()
    artifacts.write("s:a", RECEIPT, replace(RECORD, seconds=9.0))
    after = Path(artifacts.receipt_path("s:a")).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_receipt_that_is_no_text_is_written_again(tmp_path: Path) -> None:
    artifacts = Artifacts(tmp_path)
    artifacts.write("s:a", RECEIPT, RECORD)
    Path(artifacts.receipt_path("s:a")).write_bytes(b"\xff\0")
    artifacts.write("s:a", RECEIPT, RECORD)
    assert Artifacts(tmp_path).receipt("s:a") == RECEIPT


def test_the_history_survives_a_torn_line(tmp_path: Path) -> None:
    artifacts = Artifacts(tmp_path)
    artifacts.remember(Action(name="s:a", stage="s", argv=()), RECORD)
    with (tmp_path / "history.jsonl").open("ab") as file:
        file.write(b'\0\0\n\xff\xfe\n7\n{"name": "s:b"}\n{"name": "s:b", "sec')
    assert [row["name"] for row in artifacts.history()] == ["s:a"]


def test_clean_removes_all_of_one_action(tmp_path: Path) -> None:
    artifacts = Artifacts(tmp_path)
    artifacts.write("s:a", RECEIPT, RECORD)
    artifacts.folder("s:a").mkdir()
    artifacts.clean("s:a")
    assert list((tmp_path / "s").iterdir()) == []
    with pytest.raises(Unknown):
        artifacts.receipt("s:a")


def test_changes_are_old_and_new_lines_only() -> None:
    assert changes("a\nb\nc\n", "a\nx\nc\n") == ["- b", "+ x"]
