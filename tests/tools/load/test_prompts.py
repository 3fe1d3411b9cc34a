"""The user's prompts in every dialect, and made-up ones of exact lengths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import prompts
import pytest

SETTINGS = {"isl": 20, "isl_stddev": 0, "isl_max": None, "osl": 8, "osl_stddev": 0, "osl_max": None, "seed": 3}


def _file(folder: Path, *rows: object) -> Path:
    path = folder / "p.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


@pytest.mark.parametrize("name", ["input", "text_input", "text", "prompt"])
def test_every_name_for_a_prompt_is_understood(tmp_path: Path, name: str) -> None:
    assert prompts.read(_file(tmp_path, {name: "蜜蜂\u2028?"}), 9) == [prompts.Prompt("蜜蜂\u2028?", 9)]


def test_an_answer_and_a_length_of_the_rows_own_are_taken(tmp_path: Path) -> None:
    rows = {"input": "a", "output": "b", "max_tokens": 3}, {"text": "c", "expected": "d", "output_tokens": 4}
    assert prompts.read(_file(tmp_path, *rows), 9) == [prompts.Prompt("a", 3, "b"), prompts.Prompt("c", 4, "d")]


def test_every_line_that_is_no_prompt_is_told(tmp_path: Path) -> None:
    path = _file(tmp_path, "{", {"input": "a", "text": "b"}, {"text": ""}, [1], {"text": "x", "max_tokens": 0})
    with pytest.raises(prompts.Bad) as told:
        prompts.read(path, 9)
    assert [f"line {number}:" in str(told.value) for number in range(1, 6)] == [True] * 5


def test_a_named_column_is_the_prompt_whatever_else_is_there(tmp_path: Path) -> None:
    assert prompts.read(_file(tmp_path, {"text": "a", "mine": "b"}), 9, "mine")[0].text == "b"


def _vocabulary() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {f"\u2581{word}": number for number, word in enumerate(("bees", "make", "honey", "while", "keys"))}
    found = Tokenizer(models.WordLevel({**words, "<s>": 5, "<unk>": 6}, unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.Metaspace()
    found.add_special_tokens(["<s>"])
    found.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 5)])
    return found


def test_a_made_up_prompt_is_as_long_as_the_engine_will_see_it() -> None:
    found = _vocabulary()
    made = prompts.synthetic(SETTINGS, 5, prompts.encoder(found), found)
    assert {len(found.encode(one.text).ids) for one in made} == {20}  # <s> included
    assert len({one.text for one in made}) == 5
    assert {one.max_tokens for one in made} == {8}


def test_made_up_lengths_vary_as_asked_within_the_shape() -> None:
    found, asked = _vocabulary(), {"isl_stddev": 6, "osl_stddev": 3, "isl_max": 22, "osl_max": 9}
    made = prompts.synthetic(SETTINGS | asked, 60, prompts.encoder(found), found)
    lengths = [len(found.encode(one.text).ids) for one in made]
    assert max(lengths) == 22
    assert len(set(lengths)) > 6
    assert max(one.max_tokens for one in made) == 9


def test_the_same_seed_makes_the_same_prompts() -> None:
    found = _vocabulary()
    again = [prompts.synthetic(SETTINGS | {"seed": seed}, 4, prompts.encoder(found), found) for seed in (3, 3, 4)]
    digests = [prompts.digest(one) for one in again]
    assert digests[0] == digests[1] != digests[2]


def test_a_folder_without_a_tokenizer_is_told(tmp_path: Path) -> None:
    with pytest.raises(prompts.Bad, match="has no tokenizer"):
        prompts.tokenizer(tmp_path)
