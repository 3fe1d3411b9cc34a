"""What a server must know of an engine is read from what was built, and what is wrong with it is told at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rules.built import read
from rules.errors import Misconfigured

MODEL = {"num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "hidden_size": 8192}
LIMITS = {"max_batch_size": 8, "max_seq_len": 3072}


def engine(folder: Path, tp: int = 1, pp: int = 1, version: str = "0.11.0", **build: Any) -> Path:
    """An engine of the size of Qwen2-72B whose rank files have ten bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    mapping = {"world_size": tp * pp, "tp_size": tp, "pp_size": pp}
    model = {**MODEL, "mapping": mapping, "quantization": {"kv_cache_quant_algo": build.pop("kv", None)}}
    config = {"version": version, "pretrained_config": model, "build_config": {**LIMITS, **build}}
    (folder / "config.json").write_text(json.dumps(config))
    for rank in range(tp * pp):
        (folder / f"rank{rank}.engine").write_text("0123456789")
    return folder


def test_the_world_is_as_large_as_the_engine_says(tmp_path: Path) -> None:
    found = read(engine(tmp_path, tp=4, pp=2))
    assert (found.world_size, found.version, found.ranks, found.batch) == (8, "0.11.0", (10,) * 8, 8)


def test_a_request_takes_keys_and_values_of_every_layer_and_kv_head_of_a_rank(tmp_path: Path) -> None:
    # 2 x (80 / pp) layers x (8 / tp) KV heads x 128 wide x 2 bytes x 3072 tokens
    assert read(engine(tmp_path / "a")).request == 2 * 80 * 8 * 128 * 2 * 3072
    assert read(engine(tmp_path / "b", tp=4, pp=2)).request == 2 * 40 * 2 * 128 * 2 * 3072
    assert read(engine(tmp_path / "c", kv="FP8")).request == 2 * 80 * 8 * 128 * 3072
    assert read(engine(tmp_path / "d", tp=16)).request == 2 * 80 * 1 * 128 * 2 * 3072, "KV heads are replicated"


def test_before_0_11_the_longest_request_is_two_numbers(tmp_path: Path) -> None:
    made = read(engine(tmp_path, version="0.10.0", max_seq_len=None, max_input_len=1024, max_output_len=512))
    assert made.request == 2 * 80 * 8 * 128 * 2 * 1536


def test_every_rank_file_that_is_missing_empty_or_of_another_engine_is_named(tmp_path: Path) -> None:
    engine(tmp_path, tp=4)
    (tmp_path / "rank1.engine").unlink()
    (tmp_path / "rank3.engine").write_text("")
    (tmp_path / "rank4.engine").write_text("x")
    with pytest.raises(Misconfigured) as told:
        read(tmp_path)
    assert [problem.what for problem in told.value.problems] == [
        "rank1.engine is missing or empty",
        "rank3.engine is missing or empty",
        "rank4.engine is of another engine",
    ]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": "0.11.0"}', '{"version": 1, "pretrained_config": {}}'])
def test_a_config_that_cannot_be_read_is_an_error_of_one_message(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(Misconfigured, match=r"the engine's config.json cannot be read"):
        read(tmp_path)
