"""What a GPU cannot hold, or holds too little of, is told in tokens and full-length requests, before it is built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.checks.examples import Example, Examples, said
from tests.lane import toml

EXAMPLES: Examples = {
    "weights-fit-gpu": [
        Example(
            {"precisions": '["fp16"]'},  # Qwen2-72B on one GPU of 80 GiB
            {"precisions": '["fp16"]', "parallelism": '["tp4"]'},
            "models.m: fp16 on tp1 does not fit a GPU: nothing is left for the KV cache\n"
            "    a GPU        80 GiB, 78.4 GiB of it to be had\n"
            "    weights      135.4 GiB a rank\n"
            "    activations  about 1.3 GiB for steps of 8,192 tokens\n",
            "tp2 holds a batch",
        )
    ],
    "memory-holds-a-request": [
        Example(
            {"precisions": '["int8_wo"]', "shapes": "[{ batch = 1, isl = 30000, osl = 2000 }]"},
            {"precisions": '["int8_wo"]', "shapes": "[{ batch = 1, isl = 2000, osl = 1000 }]"},
            "models.m: int8_wo on tp1: 8,660 tokens fit the KV cache; one full-length request is 32,000",
            "tp2 holds a batch",
        )
    ],
    "memory-holds-a-batch": [
        Example(
            {"precisions": '["int8_wo"]'},
            {"precisions": '["int8_wo"]', "parallelism": '["tp2"]'},
            "models.m: int8_wo on tp1: 18,683 tokens = 6.1 full-length requests; the batch is 8",
            "tp2 holds a batch",
        )
    ],
    "step-of-many-tokens": [
        Example(
            {"build": "{ max_num_tokens = 65536 }", "parallelism": '["tp8"]'},
            {"build": "{ max_num_tokens = 16384 }", "parallelism": '["tp8"]'},
            "models.m: fp16 on tp8: steps of 65,536 tokens take about",
            "leave build.max_num_tokens out",
        )
    ],
}


def test_memory_is_told_as_a_sentence_with_its_sum() -> None:
    text = toml(source='"hf:Qwen/Qwen1.5-14B-Chat"', shapes="[{ batch = 256, isl = 1024, osl = 1024 }]")
    (told,) = said("memory-holds-a-batch", text, Path())
    assert told == (
        "models.m: fp16 on tp1: 59,615 tokens = 29.1 full-length requests; the batch is 256\n"
        "    a GPU        80 GiB, 78.4 GiB of it to be had\n"
        "    weights      26.4 GiB a rank\n"
        "    activations  about 0.7 GiB for steps of 8,192 tokens\n"
        "    runtime      about 0.8 GiB\n"
        "    KV cache     0.9 of 50.5 GiB, at 800 KiB a token\n"
        "    hint: tp8 holds a batch"
    )


def test_more_ranks_that_fill_the_node_are_proposed_before_fewer_that_do_not() -> None:
    """On eight GPUs of 96 GiB tp5 would do, and leave three of them idle."""
    shapes, serving = "[{ batch = 256, isl = 1024, osl = 1024 }]", "{ kv_cache_free_gpu_mem_fraction = 0.95 }"
    text = toml(source='"hf:Qwen/Qwen1.5-14B-Chat"', shapes=shapes, serving=serving)
    (told,) = said("memory-holds-a-batch", text.replace("memory_gib = 80", "memory_gib = 96"), Path())
    assert told.endswith("hint: tp8 holds a batch")


FEWER = [
    ("serving", "{ kv_cache_free_gpu_mem_fraction = 0.5 }"),
    ("build", "{ max_beam_width = 4 }"),
    ("build", "{ max_num_tokens = 16384 }"),
]


@pytest.mark.parametrize(("table", "options"), FEWER)
def test_what_takes_memory_leaves_fewer_requests(table: str, options: str) -> None:
    plain = _requests({})
    assert _requests({table: options}) < plain


MORE = [("build", '{ kv_cache_dtype = "fp8" }'), ("serving", "{ max_attention_window_size = 256 }")]


@pytest.mark.parametrize(("table", "options"), MORE)
def test_what_saves_memory_leaves_more(table: str, options: str) -> None:
    assert _requests({table: options}) > _requests({})


def _requests(changed: dict[str, str]) -> float:
    entry: dict[str, Any] = {"source": '"hf:Qwen/Qwen2-7B"', "build": "{ max_num_tokens = 8192 }", **changed}
    text = toml(**entry, shapes="[{ batch = 4096, isl = 1024, osl = 1024 }]")
    (told,) = said("memory-holds-a-batch", text, Path())
    return float(told.split(" tokens = ")[1].split(" full")[0])


def test_a_cap_on_tokens_is_not_memorys_fault() -> None:
    text = toml(parallelism='["tp8"]', serving="{ max_tokens_in_paged_kv_cache = 8560 }")
    assert not said("memory-holds-a-batch", text, Path())
    assert said("cache-holds-a-batch", text, Path())


def test_a_model_of_unknown_dimensions_is_not_judged() -> None:
    assert not said("weights-fit-gpu", toml(source='"hf:some/model"'), Path())


@pytest.mark.parametrize("fraction", ["inf", "nan", "-1.0", "true", "[]"])
def test_a_fraction_that_is_none_is_another_rules_to_tell(fraction: str) -> None:
    text = toml(serving=f"{{ kv_cache_free_gpu_mem_fraction = {fraction} }}", shapes="[{batch=1,isl=30000,osl=2000}]")
    plain = toml(shapes="[{ batch = 1, isl = 30000, osl = 2000 }]")
    assert said("memory-holds-a-request", text, Path()) == said("memory-holds-a-request", plain, Path())


def test_heads_of_no_columns_are_not_judged(tmp_path: Path) -> None:
    odd = {
        "num_attention_heads": 64,
        "hidden_size": 32,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "vocab_size": 9,
    }
    (tmp_path / "m").mkdir()
    (tmp_path / "m/config.json").write_text(json.dumps(odd))
    assert said("memory-holds-a-request", toml(source='"file:m"'), tmp_path) == []
