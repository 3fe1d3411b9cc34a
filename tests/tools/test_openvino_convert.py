"""Converting: the IR says what the checkpoint says, and what cannot be converted is refused early."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.made import Made, Run

WRITTEN = {"openvino_model.xml", "openvino_model.bin", "config.json", "generation_config.json", "summary.txt"}
PROMPTS = ("What do bees make?", "日本の首都はどこですか？", "def main(", "The quick brown fox")
TOKENS = 40


def _refusal(run_tool: Run, source: Path, out: Path) -> str:
    done = run_tool("openvino_convert", "--source", source, "--out", out)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    return str(done.stderr)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (None, "config.json cannot be read"),
        ("{", "config.json cannot be read"),
        ("{}", "names no model_type"),
        ('{"model_type": "x", "auto_map": {"AutoModel": "m.M"}}', "its own Python code"),
        ('{"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}', "quantised already"),
    ],
)
def test_what_cannot_be_converted_is_refused_before_torch_loads(
    run_tool: Run, tmp_path: Path, out: Path, config: str | None, reason: str
) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    assert reason in _refusal(run_tool, tmp_path, out)


@pytest.mark.slow
def test_an_unknown_architecture_is_refused_with_the_known_ones(run_tool: Run, tmp_path: Path, out: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    told = _refusal(run_tool, tmp_path, out)
    assert "bert" in told
    assert "qwen2" in told


@pytest.mark.slow
def test_pickled_weights_are_read_where_that_is_allowed_and_make_the_same_ir(
    run_tool: Run, source: Made, converted: Made, tmp_path: Path, out: Path
) -> None:
    import torch
    from safetensors.torch import load_file

    pickled = Path(shutil.copytree(source("llama"), tmp_path / "pickled"))
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    done = run_tool("openvino_convert", "--source", pickled, "--allow-pickle", "--out", out)
    assert done.returncode == 0, done.stderr
    assert (out / "openvino_model.bin").read_bytes() == (converted("llama") / "openvino_model.bin").read_bytes()


@pytest.mark.slow
def test_weights_that_do_not_fit_the_config_are_refused(run_tool: Run, source: Made, tmp_path: Path, out: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(source("llama"), broken)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "intermediate_size": 128}))
    assert "cannot load the checkpoint" in _refusal(run_tool, broken, out)


@pytest.mark.slow
def test_tokenizer_files_change_nothing(make: Made, source: Made, converted: Made, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        (bare / name).symlink_to(source("llama") / name)
    first, again = converted("llama"), make("openvino_convert", "--source", bare)
    assert {path.name for path in first.iterdir()} == WRITTEN
    assert {p.name: p.read_bytes() for p in first.iterdir()} == {p.name: p.read_bytes() for p in again.iterdir()}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("architecture", ["qwen2", "llama", "gpt2"])
@pytest.mark.usefixtures("one_thread")
def test_the_engine_generates_what_transformers_generates(source: Made, engine: Made, architecture: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = source(architecture)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = [tokenizer(prompt, return_tensors="pt")["input_ids"] for prompt in PROMPTS]
    limits = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}
    wanted = [model.generate(ids, **limits)[0, ids.shape[1] :].tolist() for ids in prompts]
    assert _generated(engine(architecture, "fp32"), prompts) == wanted


def _generated(engine: Path, prompts: list[Any]) -> list[list[int]]:
    import openvino
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    # An f16 cache, the export's default, flips near ties of random weights; the arithmetic is what is compared.
    exact = {"KV_CACHE_PRECISION": "f32", "INFERENCE_PRECISION_HINT": "f32"}
    pipeline = openvino_genai.ContinuousBatchingPipeline(str(engine), scheduler, "CPU", exact, {})
    limits = openvino_genai.GenerationConfig(max_new_tokens=TOKENS, min_new_tokens=TOKENS, ignore_eos=True)
    handles = [pipeline.add_request(n, openvino.Tensor(ids.numpy()), limits) for n, ids in enumerate(prompts)]
    while pipeline.has_non_finished_requests():
        pipeline.step()
    return [handle.read_all()[0].generated_ids for handle in handles]
