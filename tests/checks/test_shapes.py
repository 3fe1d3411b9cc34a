"""A model that cannot be cut or run as asked is told from its config.json, with the legal values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.checks.examples import CPU, FILE, Example, Examples, said
from tests.lane import toml

SHORT = "[{ batch = 8, isl = 256, osl = 64 }]"
TWO = "[platforms.two]\nsm = 90\nmemory_gib = 80\ngpus = 8\nnodes = 2"
EXAMPLES: Examples = {
    "one-rank-on-a-cpu": [
        Example(
            {**CPU, "parallelism": '["tp2"]'},
            {**CPU, "parallelism": '["tp1pp1"]'},
            "models.m.parallelism: toolchain 'cpu' runs on the CPU and cannot do tp2",
            "leave",
        )
    ],
    "tp-divides-heads": [
        Example(
            {**FILE, "parallelism": '["tp3"]'},
            {**FILE, "parallelism": '["tp1", "tp2", "tp4", "tp8", "tp16"]'},
            "models.m.parallelism: tp 3 does not divide the heads\n    attention heads  16\n    KV heads         4",
            "tp may be 1, 2, 4, 8, 16",
        ),
        Example(
            {"source": '"hf:Qwen/Qwen2-7B"', "parallelism": '["tp8"]'},  # 28 heads
            {"source": '"hf:Qwen/Qwen2-7B"', "parallelism": '["tp4"]'},
            "models.m.parallelism: tp 8 does not divide the heads",
            "tp may be 1, 2, 4, 28",
        ),
    ],
    "kv-heads-replicated": [
        Example(
            {**FILE, "parallelism": '["tp8"]'},
            {**FILE, "parallelism": '["tp4"]'},
            "models.m.parallelism: tp 8 keeps each of 4 KV heads 2 times",
            "tp4pp2",
        )
    ],
    "pp-within-layers": [
        Example(
            {**FILE, "parallelism": '["pp7"]'},
            {**FILE, "parallelism": '["pp6"]'},
            "models.m.parallelism: 7 pipeline stages for 6 layers",
            "up to 6",
        )
    ],
    "ranks-within-platform": [
        Example(
            {"parallelism": '["tp4pp4"]'},
            {"parallelism": '["tp4pp2"]'},
            "models.m.parallelism: tp4pp4 needs 16 GPUs",
            "up to 8",
        ),
        Example(
            {"head": TWO, "platform": '"two"', "parallelism": '["tp8pp4"]'},
            {"head": TWO, "platform": '"two"', "parallelism": '["tp8pp2"]'},
            "models.m.parallelism: tp8pp4 needs 32 GPUs",
            "up to 16",
        ),
    ],
    "ranks-fill-nodes": [
        Example(
            {"head": TWO, "platform": '"two"', "parallelism": '["tp2pp5"]'},
            {"head": TWO, "platform": '"two"', "parallelism": '["tp4pp2", "tp8pp2"]'},
            "models.m.parallelism: tp2pp5 leaves GPUs of a node without a rank",
            "multiple of 8",
        )
    ],
    "lengths-within-positions": [
        Example(
            {**FILE, "shapes": "[{ batch = 1, isl = 4000, osl = 97 }]"},
            {**FILE, "shapes": "[{ batch = 1, isl = 4000, osl = 96 }]"},
            "models.m.shapes[0]: is longer than the model's positions",
            "lower",
        )
    ],
    "head-size-multiple-of-8": [
        Example(
            {"source": '"file:odd"'},
            {"source": '"file:there"'},
            "models.m.source: the head size is not a multiple of 8\n    head size  100 / 8 = 12.5",
            "another model",
        )
    ],
    "vocabulary-padded": [
        Example(
            {"source": '"hf:openai-community/gpt2"', "parallelism": '["tp2"]', "shapes": SHORT},
            {"source": '"hf:Qwen/Qwen2-7B"', "parallelism": '["tp2"]'},
            "models.m.parallelism: tp 2 pads the vocabulary by 1\n    vocabulary  50257 -> 50258",
            "logits",
        )
    ],
    "name-says-size": [
        Example(
            {"source": '"file:Qwen2-72B"'},
            {"source": '"hf:Qwen/Qwen2-72B-Instruct"'},
            "models.m.source: says 72b\n    source      file:Qwen2-72B\n    parameters  7.6 billion",
            "checkpoint?",
        )
    ],
}


def _folder(root: Path, name: str, **config: object) -> None:
    (root / name).mkdir()
    (root / name / "config.json").write_text(json.dumps(config))


def test_kv_heads_may_be_replicated_but_not_split(root: Path) -> None:
    entry: Mapping[str, Any] = {**FILE, "parallelism": '["tp16"]'}
    assert not said("tp-divides-heads", toml(**entry), root)


SCALINGS = [
    ({"type": "linear", "factor": 4.0}, 16384),
    ({"rope_type": "dynamic", "factor": 2.0}, 8192),
    ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}, 8192),
    ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}, 4096),
]


@pytest.mark.parametrize(("scaling", "positions"), SCALINGS)
def test_rope_scaling_adds_positions(tmp_path: Path, scaling: dict[str, object], positions: int) -> None:
    """Llama 3's factor is in its max_position_embeddings already."""
    _folder(tmp_path, "scaled", max_position_embeddings=4096, rope_scaling=scaling)
    for osl, fits in ((positions - 1000, True), (positions - 999, False)):
        entry: Mapping[str, Any] = {
            **CPU,
            "source": '"file:scaled"',
            "shapes": f"[{{ batch = 1, isl = 1000, osl = {osl} }}]",
        }
        assert bool(said("lengths-within-positions", toml(**entry), tmp_path)) is not fits


NAMES = [("qwen2_7b", True), ("qwen2_7b_instruct", True), ("my_7_6b", True), ("qwen1_5_7b", True), ("big", True)]
NAMES += [("eight_8x22b", True), ("moe_30b_a7b", False), ("qwen2_72b", False), ("qwen2_0_5b", False)]


@pytest.mark.parametrize(("name", "fits"), NAMES)
def test_the_size_in_a_name_is_read_as_people_write_it(name: str, fits: bool) -> None:
    """The guide's engine called Qwen1.5-14B was built from the 7B checkpoint."""
    text = toml(source='"hf:Qwen/Qwen2-7B"').replace("[models.m]", f"[models.{name}]")
    assert bool(said("name-says-size", text, Path())) is not fits
