"""Prompts that the engine refuses, and answers that never end, are told from the tokenizer's own files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.checks.examples import CPU, FILE, Example, Examples, said
from tests.lane import toml

SHORT = "[{ batch = 8, isl = 4, osl = 64 }, { batch = 8, isl = 8, osl = 64 }]"
LONG = "[{ batch = 8, isl = 8, osl = 64 }]"
ASKED: Mapping[str, Any] = {
    **CPU,
    "source": '"file:Chat-Instruct"',
    "eval": '{ data = "file:asked.jsonl", metrics = ["exact_match"] }',
}
BARE: Mapping[str, Any] = {**FILE, "source": '"file:bare-chat"'}
GOOD: Mapping[str, Any] = {**FILE, "source": '"file:Chat-Instruct"'}
EXAMPLES: Examples = {
    "prompts-fit-isl": [
        Example(
            {**ASKED, "shapes": SHORT},
            {**ASKED, "shapes": LONG},
            "models.m.shapes[0]: 2 of 3 prompts are longer than isl 4\n    longest  6 tokens",
            "isl = 6 holds them all",
        )
    ],
    "chat-template-there": [Example(BARE, GOOD, "models.m.source: no chat template", "as they are sent")],
    "special-tokens-once": [
        Example(
            {**GOOD, "serving": "{ add_special_tokens = true }"},
            {**GOOD, "serving": "{ add_special_tokens = false }"},
            "models.m.serving.add_special_tokens: formatted prompts will begin with <s> twice",
            "write false",
        )
    ],
    "every-stop-token": [
        Example(
            GOOD,
            {**GOOD, "source": '"file:bare-chat"'},
            "models.m.source: generation_config.json ends answers at 2, 7",
            "",
        )
    ],
    "stop-token-there": [Example(BARE, GOOD, "models.m.source: nothing says which token ends", "eos_token")],
}


def test_prompts_are_counted_with_the_special_tokens_that_the_server_adds(root: Path) -> None:
    entry = {**ASKED, "shapes": SHORT.replace("isl = 4", "isl = 5"), "serving": "{ add_special_tokens = false }"}
    assert not said("prompts-fit-isl", toml(**entry), root)


def test_the_prompts_of_a_load_are_counted_too_and_a_shared_file_once(root: Path) -> None:
    load = {"shapes": SHORT, "bench": '{ prompts = "file:asked.jsonl" }'}
    alone = {key: value for key, value in ASKED.items() if key != "eval"}
    for entry in ({**alone, **load}, {**ASKED, **load}):
        (told,) = said("prompts-fit-isl", toml(**entry), root)
        assert "2 of 3 prompts" in told


@pytest.mark.parametrize("spoiled", ["Chat-Instruct/tokenizer.json", "asked.jsonl"])
def test_prompts_that_cannot_be_counted_are_not_judged(root: Path, spoiled: str) -> None:
    (root / spoiled).unlink()
    assert not said("prompts-fit-isl", toml(**{**ASKED, "shapes": SHORT}), root)


def test_a_tokenizer_that_is_none_is_told(root: Path) -> None:
    (root / "Chat-Instruct/tokenizer.json").write_text('{"model": 1}')
    (told,) = said("prompts-fit-isl", toml(**{**ASKED, "shapes": SHORT}), root)
    assert told.startswith("models.m.source: its tokenizer.json cannot be read\n    reason  ")


def test_a_line_separator_within_a_prompt_does_not_end_its_row(root: Path) -> None:
    (root / "asked.jsonl").write_text(json.dumps({"text": "a a a a\u2028a a"}, ensure_ascii=False), encoding="utf-8")
    (told,) = said("prompts-fit-isl", toml(**{**ASKED, "shapes": SHORT}), root)
    assert "1 of 1 prompts" in told


def test_rows_that_are_no_prompts_are_left_out(root: Path) -> None:
    rows = ["{", "[]", json.dumps({"other": "x"}), json.dumps({"text": "a a a a a a"})]
    (root / "asked.jsonl").write_text("\n".join(rows))
    (told,) = said("prompts-fit-isl", toml(**{**ASKED, "shapes": SHORT}), root)
    assert "1 of 1 prompts" in told
