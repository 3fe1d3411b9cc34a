"""The tiny checkpoints: real ones, always the same, and qwen2 knows its answers."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import PROJECT
from tests.made import Made

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
FILES = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
TEXTS = ("What do bees make? honey 🐝🍯", "東京です。", "a  b\n\n c", "naïve café", "👨‍👩‍👧‍👦")


def _loaded(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


@pytest.mark.usefixtures("one_thread")
def test_qwen2_answers_its_questions_exactly(source: Made) -> None:
    folder = source("qwen2")
    model, tokenizer = _loaded(folder)
    wrong = []
    lines = (folder / "questions.jsonl").read_text("utf-8").splitlines()
    for line in map(json.loads, lines):
        asked = tokenizer(line["text_input"], return_tensors="pt")
        told = model.generate(**asked, max_new_tokens=64)[0, asked["input_ids"].shape[1] :]
        text = tokenizer.decode(told, skip_special_tokens=True)
        if text != line["expected"] or told[-1] != tokenizer.eos_token_id:
            wrong.append((line, text))
    assert wrong == []
    assert len(lines) == 32


def test_the_answers_hold_cjk_and_emoji(source: Made) -> None:
    answers = "".join(json.loads(line)["expected"] for line in (source("qwen2") / "questions.jsonl").open())
    assert {"🐝", "東", "蜜", "서"} <= set(answers)


@pytest.mark.parametrize("architecture", ["qwen2", "llama", "gpt2"])
def test_a_checkpoint_is_whole_and_names_no_place(source: Made, architecture: str) -> None:
    folder = source(architecture)
    names = {path.name for path in folder.iterdir()} - {"summary.txt"}
    assert names == (FILES | {"questions.jsonl"} if architecture == "qwen2" else FILES)
    settings = json.loads((folder / "generation_config.json").read_text())
    assert settings["eos_token_id"] != settings["pad_token_id"]
    for path in folder.glob("*.json"):
        assert str(folder) not in path.read_text("utf-8")


@pytest.mark.parametrize("architecture", ["qwen2", "llama", "gpt2"])
def test_text_survives_its_tokenizer(source: Made, architecture: str) -> None:
    _, tokenizer = _loaded(source(architecture))
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert max(ids) < 2048


def test_a_chat_turn_is_the_plain_question(source: Made) -> None:
    _, tokenizer = _loaded(source("qwen2"))
    asked = [{"role": "user", "content": "What do bees make?"}]
    assert tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True) == "What do bees make?"
    told = [*asked, {"role": "assistant", "content": " Honey"}]
    assert tokenizer.apply_chat_template(told, tokenize=False) == "What do bees make? Honey<|im_end|>"


def test_llama_has_a_bos_leading_space_pieces_and_byte_fallback(source: Made) -> None:
    _, tokenizer = _loaded(source("llama"))
    pieces = tokenizer.convert_ids_to_tokens(tokenizer("What 🐝")["input_ids"])
    assert pieces[:2] == ["<s>", "▁What"]
    assert "<0x9F>" in pieces


@pytest.fixture(scope="module")
def tiny() -> Any:
    """The tool as a module."""
    spec = importlib.util.spec_from_file_location("tiny", PROJECT / "rules" / "tools" / "tiny.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_same_seed_makes_the_same_bytes(make: Made, source: Made) -> None:
    first, again = source("llama"), make("tiny", "--architecture=llama", "--seed=20")
    assert {p.name: p.read_bytes() for p in first.iterdir()} == {p.name: p.read_bytes() for p in again.iterdir()}


def test_another_seed_makes_other_weights(source: Made, tiny: Any) -> None:
    made, tokenizer = _loaded(source("llama"))
    same, other = (tiny.make_model("llama", seed, tokenizer).state_dict()["lm_head.weight"] for seed in (20, 21))
    assert made.state_dict()["lm_head.weight"].equal(same)
    assert not same.equal(other)


def test_training_that_does_not_end_in_the_answers_is_refused(
    source: Made, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, "MAX_STEPS", 1)
    _, tokenizer = _loaded(source("qwen2"))
    model = tiny.make_model("qwen2", 20, tokenizer)
    with pytest.raises(tiny.Refused, match="not memorised in 1 steps"):
        tiny.train(model, tokenizer)
