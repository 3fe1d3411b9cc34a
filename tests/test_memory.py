"""The arithmetic of memory against figures that others have published or measured, and against engines built here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rules.memory import (
    GIB,
    Cut,
    activations,
    cache_bytes,
    exported,
    linear_bytes,
    parameters,
    to_build,
    to_make,
    weights,
)
from rules.source import HUB, TINY, Dims, Source, dims
from rules.spec import Parallelism
from tests.made import Made

MIB = 1 << 20
ONE = Parallelism(tp=1, pp=1)


def model(name: str) -> Dims:
    """A model whose config is in the repository."""
    found = dims(Source(scheme="hf", where=name), Path())
    assert isinstance(found, Dims)
    return found


def like(base: Dims, **changed: object) -> Dims:
    return Dims(**{**vars(base), **changed})


LLAMA2_7B = model("meta-llama/Llama-2-7b-chat-hf")
QWEN15_7B = like(LLAMA2_7B, family="qwen2", vocab=151936, max_positions=32768)
LLAMA3_8B = like(LLAMA2_7B, intermediate=14336, kv_heads=8, vocab=128256, max_positions=131072)
# model -> parameters as its card or safetensors index counts them
PUBLISHED = {
    "gpt2": (model("openai-community/gpt2"), 124_439_808),
    "llama2_7b": (LLAMA2_7B, 6_738_415_616),
    "llama3_8b": (LLAMA3_8B, 8_030_261_248),
    "llama3_70b": (like(LLAMA3_8B, hidden=8192, intermediate=28672, heads=64, layers=80), 70_553_706_496),
    "qwen1_5_7b": (QWEN15_7B, 7_721_324_544),
    "qwen1_5_14b": (model("Qwen/Qwen1.5-14B-Chat"), 14_167_290_880),
    "qwen2_7b": (model("Qwen/Qwen2-7B"), 7_615_616_512),
    "qwen2_72b": (model("Qwen/Qwen2-72B-Instruct"), 72_706_203_648),
    "mistral_7b": (like(LLAMA3_8B, vocab=32000, family="mistral"), 7_241_732_096),
    "mixtral_8x7b": (like(LLAMA3_8B, vocab=32000, family="mixtral", experts=8), 46_702_792_704),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_that_are_published(name: str) -> None:
    found, published = PUBLISHED[name]
    assert parameters(found) == published


def test_every_model_that_is_known_before_it_is_fetched_can_be_counted() -> None:
    assert all(parameters(model(name)) for name in json.loads(HUB.read_text()))


def test_a_config_that_says_too_little_has_no_size() -> None:
    little = Dims(heads=16, kv_heads=8, layers=6, max_positions=4096)
    assert parameters(little) == weights(little, Cut(precision="fp16", parallelism=ONE)) == 0


def test_the_guides_checkpoint_is_the_weights_and_its_position_tables() -> None:
    """Guide S1's rank0.safetensors: 40 layers with two tables of 32768 x 128 float32 each, and a header of 48 KiB."""
    tables = 40 * 2 * 32768 * 128 * 4
    of_14b = weights(model("Qwen/Qwen1.5-14B-Chat"), Cut(precision="bf16", parallelism=ONE))
    assert 29_676_808_144 - (of_14b + tables) < 50_000


def test_the_guides_engine_is_of_the_7b_model_that_it_is_not_called() -> None:
    """Guide S1's rank0.engine has 15,485,236,972 bytes, and its config 32 layers: 7B, under the name 14B."""
    assert weights(QWEN15_7B, Cut(precision="bf16", parallelism=ONE)) == pytest.approx(15_485_236_972, rel=0.005)


def test_an_engine_in_fp16_is_its_weights() -> None:
    """TRT-LLM#3636: Llama 3.1 8B, `Loaded engine size: 15388 MiB`."""
    assert weights(LLAMA3_8B, Cut(precision="fp16", parallelism=ONE)) == pytest.approx(15388 * MIB, rel=0.01)


def test_an_engine_in_fp8_is_its_weights() -> None:
    """TensorRT-LLM's memory.md: `Loaded engine size: 6695 MiB` of what is Llama 2 7B by its KV cache."""
    assert weights(LLAMA2_7B, Cut(precision="fp8", parallelism=ONE)) == pytest.approx(6695 * MIB, rel=0.02)


def test_an_engine_for_eight_ranks_is_an_eighth_and_of_upstreams_checkpoint_the_whole_embedding() -> None:
    dims, tp8 = model("Qwen/Qwen2-72B-Instruct"), Parallelism(tp=8, pp=1)
    embedding = dims.vocab * dims.hidden * 2
    upstream = Cut(precision="fp16", parallelism=tp8, embedding_whole=True)
    assert weights(dims, Cut(precision="fp16", parallelism=tp8)) == pytest.approx(parameters(dims) / 4, rel=0.001)
    assert weights(dims, upstream) == pytest.approx((2 * parameters(dims) - embedding) / 8 + embedding, rel=0.001)


def test_a_rank_of_7b_in_fp8_is_what_modelopt_wrote_on_an_h200() -> None:
    cut = Cut(precision="fp8", parallelism=Parallelism(tp=2, pp=1))
    assert weights(model("Qwen/Qwen2-7B"), cut) == pytest.approx(4_353_200_000, rel=0.001)


def test_stages_share_the_layers_and_the_first_has_the_embedding() -> None:
    dims = model("Qwen/Qwen2-72B-Instruct")
    whole, half = (weights(dims, Cut(precision="fp16", parallelism=Parallelism(tp=4, pp=pp))) for pp in (1, 2))
    assert whole / 2 < half < whole


@pytest.mark.parametrize(("precision", "share"), [("int8_wo", 0.5), ("int4_wo", 0.25), ("int4_awq", 0.2578125)])
def test_quantized_linear_layers_take_their_share(precision: str, share: float) -> None:
    assert linear_bytes(precision) / linear_bytes("fp16") == share


def test_a_token_of_llama_2_takes_half_a_mebibyte() -> None:
    assert cache_bytes(LLAMA2_7B, ONE, 2) == 512 * 1024


def test_the_cache_of_a_log_is_what_its_fraction_holds() -> None:
    """memory.md: 0.9 of 70.48 GiB are 4060 blocks of 64 tokens of an FP8 cache; TRT-LLM#2268: of 21.89 GiB 631."""
    assert 0.9 * 70.48 * GIB / cache_bytes(LLAMA2_7B, ONE, 1) / 64 == pytest.approx(4060, rel=0.001)
    assert 0.9 * 21.89 * GIB / cache_bytes(QWEN15_7B, ONE, 2) / 64 == pytest.approx(631, rel=0.002)


def test_the_cache_of_grouped_heads_is_what_vllm_allots_too() -> None:
    """vllm#12330: 11.12 GiB are 5691 blocks of 16 tokens of Llama 3 8B."""
    assert 11.12 * GIB / cache_bytes(LLAMA3_8B, ONE, 2) / 16 == pytest.approx(5691, rel=0.001)


def test_kv_heads_are_kept_whole_where_ranks_outnumber_them() -> None:
    four, eight = (cache_bytes(model("Qwen/Qwen2-7B"), Parallelism(tp=tp, pp=1), 2) for tp in (4, 28))
    assert four == eight


def test_a_stage_keeps_the_cache_of_its_own_layers() -> None:
    dims = model("Qwen/Qwen2-72B-Instruct")
    assert cache_bytes(dims, Parallelism(tp=4, pp=2), 2) * 2 == cache_bytes(dims, Parallelism(tp=4, pp=1), 2)


QWEN_1B5 = Dims(
    heads=12,
    kv_heads=2,
    layers=28,
    max_positions=131072,
    hidden=1536,
    intermediate=8960,
    family="qwen2",
    head_size=128,
    vocab=151936,
)
# `Allocated N MiB for execution context memory`, in logs that say what the engine was built for
LOGS = {
    "TRT-LLM#3636: 128,000 tokens, logits of all of them": (
        activations(LLAMA3_8B, Cut(precision="fp16", parallelism=ONE), 128_000, sequences=64, all_logits=True),
        37_812.51,
    ),
    "a public log of DeepSeek-R1-Distill-Qwen-1.5B with 0.17's defaults": (
        activations(QWEN_1B5, Cut(precision="int4_wo", parallelism=ONE), 8192, sequences=2048),
        921.51,
    ),
    "memory.md: Llama 2 7B in FP8 with the defaults": (
        activations(LLAMA2_7B, Cut(precision="fp8", parallelism=ONE), 8192, sequences=256),
        1134.01,
    ),
}


@pytest.mark.parametrize("name", LOGS)
def test_activations_are_near_those_of_published_logs(name: str) -> None:
    estimated, published = LOGS[name]
    assert estimated / MIB == pytest.approx(published, rel=0.12)


def test_the_whole_sum_is_near_that_of_a_log() -> None:
    """TRT-LLM#224: Llama 2 7B, batches of 25 x 2048 tokens, 0.95 of an A10: `Using 10718 tokens in paged KV cache`.

    An A10 has 22.18 GiB; 0.75 are the runtime's, as in memory.md's log.
    """
    cut = Cut(precision="fp16", parallelism=ONE)
    taken = weights(LLAMA2_7B, cut) + activations(LLAMA2_7B, cut, 25 * 2048, sequences=25)
    left = 22.18 * GIB - taken - 0.75 * GIB
    assert 0.95 * left / cache_bytes(LLAMA2_7B, ONE, 2) == pytest.approx(10_718, rel=0.03)


def test_building_seven_billion_parameters_takes_the_memory_that_triton_cli_asks_for() -> None:
    """Its README: 48 GB of host memory for models of 7 to 8 billion parameters."""
    found = [to_build(dims, Cut(precision="fp16", parallelism=ONE)) / 1e9 for dims in (LLAMA2_7B, LLAMA3_8B)]
    assert found[0] < 48 < found[1] * 1.01


def test_making_a_checkpoint_takes_the_model_twice() -> None:
    assert to_make(LLAMA2_7B, "checkpoint") == 4 * parameters(LLAMA2_7B)
    assert to_make(LLAMA2_7B, "engine") == 0


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_model_has_a_size(name: str) -> None:
    assert 1e6 < parameters(TINY[name]) < 1e7


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8_wo"])
def test_an_exported_engine_is_as_large_as_reckoned(engine: Made, precision: str) -> None:
    """The real export and compression of a tiny model."""
    there = (engine("llama", precision) / "openvino_model.bin").stat().st_size
    assert exported(TINY["llama"], precision) == pytest.approx(there, rel=0.03)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_cache_of_a_real_engine_is_as_large_as_reckoned(engine: Made) -> None:
    """OpenVINO GenAI's own count: 80 blocks of 32 tokens, 16 bits a number."""
    import numpy as np
    import openvino
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.num_kv_blocks = 80
    properties = {"INFERENCE_NUM_THREADS": 1, "KV_CACHE_PRECISION": "f16"}
    pipeline = openvino_genai.ContinuousBatchingPipeline(str(engine("llama", "int8_wo")), scheduler, "CPU", properties)
    wanted = openvino_genai.GenerationConfig(max_new_tokens=1, eos_token_id=2)
    pipeline.add_request(0, openvino.Tensor(np.array([[1, 5, 7]], dtype=np.int64)), wanted)
    while pipeline.has_non_finished_requests():
        pipeline.step()
    assert pipeline.get_metrics().kv_cache_size_in_bytes == 80 * 32 * cache_bytes(TINY["llama"], ONE, 2)
