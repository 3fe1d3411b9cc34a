"""Receipts (rules/action.py): what came out and nothing else, as bytes that are equal when the outputs are."""

from __future__ import annotations

import json

import pytest

from rules.action import Entry, Receipt

ODD = ("a b", 'quo"te', "back\\slash", "new\nline", "模型 🙂", "tab\t", " ", "\u2028", "\udcff", "x\x7f")
RECEIPT = Receipt((Entry("a/b.bin", "11" * 32, 5), Entry("run.sh", "22" * 32, 7, executable=True)))


def test_a_receipt_holds_path_digest_size_and_run_bit_and_nothing_else() -> None:
    data = json.loads(RECEIPT.text())
    assert data == {"version": 1, "files": [["a/b.bin", "11" * 32, 5, False], ["run.sh", "22" * 32, 7, True]]}


def test_equal_outputs_are_equal_bytes() -> None:
    same = Receipt(tuple(Entry(e.path, e.digest, e.size, e.executable) for e in RECEIPT.entries))
    assert same.text() == RECEIPT.text()
    assert same.digest() == RECEIPT.digest()


@pytest.mark.parametrize(
    "entry",
    [
        Entry("other", "22" * 32, 7, executable=True),
        Entry("run.sh", "33" * 32, 7, executable=True),
        Entry("run.sh", "22" * 32, 8, executable=True),
        Entry("run.sh", "22" * 32, 7),
    ],
)
def test_any_difference_is_another_digest(entry: Entry) -> None:
    assert Receipt((RECEIPT.entries[0], entry)).digest() != RECEIPT.digest()


def test_one_file_is_one_line_so_that_a_diff_is_readable() -> None:
    assert [line for line in RECEIPT.text().splitlines() if "run.sh" in line] == [
        f'["run.sh", "{"22" * 32}", 7, true]',
    ]


@pytest.mark.parametrize("name", ODD)
def test_an_odd_name_reads_back_as_it_was(name: str) -> None:
    receipt = Receipt((Entry(name, "11" * 32, 1),))
    assert Receipt.parse(receipt.text().encode().decode()) == receipt


def test_a_receipt_of_nothing_reads_back() -> None:
    assert Receipt.parse(Receipt(()).text()) == Receipt(())


def _rows(*rows: object) -> str:
    return json.dumps({"version": 1, "files": rows})


GOOD = ["a", "11" * 32, 1, False]
UNREADABLE = (
    "",
    "{",
    "null",
    "[]",
    '{"version": 1}',
    '{"version": 2, "files": []}',
    '{"version": 1, "files": null}',
    '{"version": 1, "files": {"a": 1}}',
    _rows("abcd"),
    _rows(3),
    _rows(None),
    _rows([]),
    _rows(GOOD[:2]),
    _rows([*GOOD, 1]),
    _rows([1, *GOOD[1:]]),
    _rows(["a", 5, 1, False]),
    _rows(["a", "11" * 32, "1", False]),
    _rows(["a", "11" * 32, -1, False]),
    _rows(["a", "11" * 32, 1, "no"]),
    _rows(["a", "11", 1, False]),
    _rows(["a", "../../" + "1" * 58, 1, False]),
    _rows(["", *GOOD[1:]]),
    _rows(["/etc/passwd", *GOOD[1:]]),
    _rows(["../up", *GOOD[1:]]),
    _rows(["a/../../up", *GOOD[1:]]),
    _rows(GOOD, GOOD),
    _rows(GOOD, ["a!", *GOOD[1:]], ["a/b", *GOOD[1:]]),
    _rows(["a\0b", *GOOD[1:]]),
    _rows(["a/b\0/c", *GOOD[1:]]),
    _rows(["\ud800", *GOOD[1:]]),
    "[" * 100_000,
)


@pytest.mark.parametrize("text", UNREADABLE, ids=range(len(UNREADABLE)))
def test_anything_else_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Receipt.parse(text)


def test_only_keeps_what_matches_a_pattern_in_order() -> None:
    receipt = Receipt(tuple(Entry(name, "11" * 32, 1) for name in ("config.json", "tokenizer.json", "x.bin")))
    assert [e.path for e in receipt.only(("tokenizer*", "config.json")).entries] == ["config.json", "tokenizer.json"]
    assert receipt.only(()) == receipt
    assert receipt.only(("nothing",)) == Receipt(())


def test_size_is_the_bytes_of_all_files() -> None:
    assert RECEIPT.size() == 12
