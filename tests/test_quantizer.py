"""The checkpoint stage: what its actions may see, what they make, and where they run."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from rules import digest, quantizer
from rules.action import Action, Files, Local, Output
from rules.release import load
from rules.source import TINY, Dims
from rules.spec import Calibration, Parallelism, Platform, Toolchain
from rules.steps import CONFIG, TOKENIZER, WEIGHTS
from rules.taken import CODE, PICKLED, Choice
from rules.translate import Intent
from rules.variant import Point

TOOLCHAIN = Toolchain(backend="trtllm", release="0.11.0", runner="docker")
LARGE = Dims(
    heads=64,
    kv_heads=8,
    layers=80,
    max_positions=32768,
    hidden=8192,
    intermediate=29568,
    family="qwen2",
    head_size=128,
    vocab=152064,
)
UNKNOWN = Dims(heads=0, kv_heads=0, layers=0, max_positions=0)  # of a hub's model that is not locked
MIXTURE = replace(LARGE, layers=32, hidden=4096, intermediate=14336, experts=8, vocab=32000)  # 47 billion parameters
PAIRS = (("image", "x"), ("tensorrt_llm", "0.11.0"))


@pytest.fixture
def point(tmp_path: Path) -> Point:
    """FP8 of a 72B model for eight ranks, with texts."""
    (tmp_path / "texts.jsonl").write_text("{}\n")
    return Point(
        model="m",
        name="m_tp4pp2_fp8",
        precision="fp8",
        parallelism=Parallelism(tp=4, pp=2),
        toolchain=TOOLCHAIN,
        platform=Platform(sm=90, memory_gib=80, gpus=8),
        calibration=Calibration(data="file:texts.jsonl", column="input", size=64),
        dims=LARGE,
        root=tmp_path,
    )


def _intent(point: Point) -> Intent:
    return Intent(precision=point.precision, dtype="float16", parallelism=point.parallelism, sm=90)


def _modelopt(point: Point) -> Action:
    return quantizer.modelopt(point, load("0.11.0"), _intent(point))


def _upstream(point: Point) -> Action:
    return quantizer.upstream(point, load("0.11.0"), _intent(point), PAIRS)


def test_one_file_a_rank_is_promised(point: Point) -> None:
    for made in (_modelopt(point), _upstream(point)):
        assert made.outputs == ("config.json", *(f"rank{rank}.safetensors" for rank in range(8)))


def test_modelopt_takes_the_arguments_it_is_given(point: Point) -> None:
    trusting = Choice(allow_pickle=True, trust_remote_code=True)
    made = _modelopt(replace(point, precision="int4_awq", choice=trusting))
    end = made.argv.index("--")
    for name, words in (("tool", made.argv[3:end]), ("quantizer", made.argv[end + 4 :])):
        tool = dict(made.inputs)[name]
        assert isinstance(tool, Files)
        offered = set(re.findall(r'"(--[a-z-]+)"', Path(tool.root).read_text()))
        assert {word.partition("=")[0] for word in words} == offered


def test_every_placeholder_of_a_command_is_an_input(point: Point) -> None:
    for made in (_modelopt(point), _upstream(point)):
        used = {name for word in made.argv for name in re.findall(r"\{(\w+)\}", word)}
        assert used - {"python", "out"} == {name for name, _ in made.inputs}


@pytest.mark.parametrize("precision", ["fp16", "int8_wo"])
def test_a_tokenizer_and_texts_are_seen_only_where_scales_are_measured(point: Point, precision: str) -> None:
    assert set(dict(_modelopt(point).inputs)) == {"tool", "quantizer", "source", "tokenizer", "calibration"}
    plain = dict(_modelopt(replace(point, precision=precision)).inputs)
    assert set(plain) == {"tool", "quantizer", "source"}
    assert plain["source"] == Output(action="source:m", only=(*CONFIG, *WEIGHTS))


@pytest.mark.parametrize("precision", ["fp16", "int8_wo", "fp8"])
def test_a_quantized_kv_cache_is_measured_whatever_the_weights_are(point: Point, precision: str) -> None:
    point = replace(point, precision=precision)
    made = quantizer.modelopt(point, load("0.11.0"), replace(_intent(point), kv_cache_dtype="fp8"))
    assert {"tokenizer", "calibration"} <= set(dict(made.inputs))
    assert {"--tokenizer={tokenizer}", "--calibration={calibration}", "--calibration-size=64"} <= set(made.argv)
    assert made.gpus == 3


def test_a_file_of_texts_is_keyed_by_its_content_and_a_folder_too(point: Point) -> None:
    path = point.root / "texts.jsonl"
    assert dict(_modelopt(point).inputs)["calibration"] == Files(root=str(path), members=(("", digest.of_file(path)),))
    folder = replace(point, calibration=Calibration(data="file:texts"))
    assert dict(_modelopt(folder).inputs)["calibration"] == Local(path=str(point.root / "texts"))


def test_modelopt_is_the_same_work_on_every_platform_and_in_every_runner(point: Point) -> None:
    other = replace(point, platform=Platform(sm=89, memory_gib=80, gpus=8), toolchain=replace_runner("local"))
    assert _modelopt(other) == _modelopt(point)
    assert _modelopt(point).runner == "local"


def replace_runner(runner: str) -> Toolchain:
    return TOOLCHAIN.model_copy(update={"runner": runner})


def test_upstream_runs_the_releases_script_inside_its_toolchain(point: Point) -> None:
    made = _upstream(replace(point, calibration=Calibration(data="file:texts")))
    assert " -- python3 /app/examples/quantization/quantize.py --model_dir {source} " in " ".join(made.argv)
    assert (made.toolchain, made.runner, made.platform) == (PAIRS, "docker", "sm90")
    assert dict(made.inputs)["source"] == Output(action="source:m", only=(*CONFIG, *WEIGHTS, *TOKENIZER))
    converted = _upstream(replace(point, precision="fp16"))
    assert " -- python3 /app/examples/qwen/convert_checkpoint.py --model_dir {source} " in " ".join(converted.argv)


def test_gpus_are_leased_for_measuring_and_as_many_as_the_weights_need(point: Point) -> None:
    assert _modelopt(point).gpus == 3
    assert _modelopt(replace(point, precision="fp16")).gpus == 0
    assert _modelopt(replace(point, dims=TINY["qwen2"])).gpus == 0
    assert _modelopt(replace(point, dims=UNKNOWN)).gpus == 1
    assert _modelopt(replace(point, dims=MIXTURE)).gpus == 2
    assert _modelopt(replace(point, platform=Platform(sm=90, memory_gib=8, gpus=8))).gpus == 8


def test_what_can_run_code_is_seen_and_told_only_where_the_entry_trusts_it(point: Point) -> None:
    trusting = replace(point, choice=Choice(allow_pickle=True, trust_remote_code=True))
    for make in (_modelopt, _upstream):
        plain, trusted = (dict(make(it).inputs) for it in (point, trusting))
        assert isinstance(plain["source"], Output)
        assert isinstance(trusted["source"], Output)
        assert set(trusted["source"].only) - set(plain["source"].only) == {*CODE, *PICKLED}
    said = set(_modelopt(trusting).argv) - set(_modelopt(point).argv)
    assert said == {"--allow-pickle", "--trust-remote-code"}
    tokenizer = dict(_modelopt(trusting).inputs)["tokenizer"]
    assert isinstance(tokenizer, Output)
    assert tokenizer.only == (*TOKENIZER, *CODE)


def test_modelopt_sees_where_a_machine_has_its_driver(point: Point) -> None:
    assert {"LD_LIBRARY_PATH", "CUDA_HOME"} <= set(_modelopt(point).passes)
