"""models.lock: read back as it was written, with diffs by file, and never a way out of the source's folder."""

from __future__ import annotations

import json

import pytest

from rules.locked import Held, Locked, read, text
from rules.source import tokenizer_facts

ONE = Locked(
    commit="c0ffee",
    gated=True,
    config={"model_type": "qwen2", "num_hidden_layers": 2},
    generation={"eos_token_id": [1, 2]},
    tokenizer=tokenizer_facts({"tokenizer.json"}, {"chat_template": "x", "eos_token": "<|端|>"}),
    files=(Held("a/b.safetensors", 5, "1" * 64), Held("config.json", 2, "2" * 64, '"etag"')),
)
BARE = Locked(commit="", files=())


def test_what_is_written_is_read_back() -> None:
    sources = {"hf:o/n@main": ONE, "s3://b/p": BARE}
    assert read(text(sources)) == (sources, [])
    assert read(text({})) == ({}, [])
    assert read("") == ({}, [])


def test_equal_sources_are_equal_bytes_in_whatever_order() -> None:
    turned = Locked(**{**vars(ONE), "files": ONE.files[::-1]})
    assert text({"b": BARE, "a": ONE}) == text({"a": turned, "b": BARE})


def test_a_changed_file_is_one_line_of_a_diff() -> None:
    changed = Locked(**{**vars(ONE), "files": (Held("a/b.safetensors", 6, "3" * 64), ONE.files[1])})
    before, after = (set(text({"a": it}).splitlines()) for it in (ONE, changed))
    assert len(after - before) == 1


@pytest.mark.parametrize(
    "row",
    [
        ["../evil", 1, "1" * 64],
        ["/etc/passwd", 1, "1" * 64],
        ["a/../../b", 1, "1" * 64],
        ["", 1, "1" * 64],
        ["a", -1, "1" * 64],
        ["a", True, "1" * 64],
        ["a", 1, "1" * 63],
        ["a", 1, "Z" * 64],
        ["a", 1],
        ["a", 1, "1" * 64, 7],
        "a",
    ],
)
def test_a_row_that_is_no_file_below_the_source_is_refused(row: object) -> None:
    data = json.loads(text({"hf:o/n@main": BARE}))
    data["sources"]["hf:o/n@main"]["files"] = [row]
    sources, (problem,) = read(json.dumps(data))
    assert sources == {}
    assert problem.what == "models.lock cannot be read"


@pytest.mark.parametrize("name", ["eos_token", "bos_token", "add_bos_token", "chat_template"])
def test_what_a_check_asks_of_a_tokenizer_is_there(name: str) -> None:
    data = json.loads(text({"hf:o/n@main": ONE}))
    del data["sources"]["hf:o/n@main"]["tokenizer"][name]
    sources, (problem,) = read(json.dumps(data))
    assert sources == {}
    assert problem.facts == (("reason", f"'{name}' is missing"),)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"version": 2, "sources": {}}', "<<<<<<< HEAD", "null"])
def test_what_is_no_lock_is_one_problem_with_a_way_out(content: str) -> None:
    sources, (problem,) = read(content)
    assert sources == {}
    assert "doit lock" in problem.hint
