"""Compressing weights: as small as the precision says, with the same answers, or a refusal."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.made import Made, Run

pytestmark = [pytest.mark.filterwarnings("ignore")]
PRECISIONS = ("fp16", "int8_wo", "int4_wo")


def _weights(folder: Path) -> int:
    return (folder / "openvino_model.bin").stat().st_size


@pytest.fixture(scope="session")
def quantized(make: Made, converted: Made) -> Made:
    return lambda precision, *more: make(
        "openvino_quantize", "--checkpoint", converted("llama"), "--precision", precision, *more
    )


@pytest.mark.parametrize("precision", ["fp16", "int8_wo"])
def test_a_group_size_is_refused_where_it_means_nothing(run_tool: Run, out: Path, precision: str) -> None:
    done = run_tool("openvino_quantize", "--checkpoint", out, "--precision", precision, "--group-size=64", "--out", out)
    assert (done.returncode, done.stdout) == (1, "")
    assert "group sizes belong to int4_wo" in done.stderr


def test_a_folder_without_an_ir_is_refused(run_tool: Run, tmp_path: Path, out: Path) -> None:
    done = run_tool("openvino_quantize", "--checkpoint", tmp_path, "--precision", "int8_wo", "--out", out)
    assert done.returncode == 1
    assert done.stderr.startswith("error: the checkpoint holds no readable OpenVINO IR")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_fewer_bits_make_smaller_weights(quantized: Made, converted: Made) -> None:
    fp32 = _weights(converted("llama"))
    ratios = [_weights(quantized(precision)) / fp32 for precision in PRECISIONS]
    assert ratios[0] == pytest.approx(0.5, abs=0.01)
    assert ratios[1] == pytest.approx(0.25, abs=0.02)
    assert 0.125 < ratios[2] < ratios[1]


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_equal_inputs_make_equal_bytes(make: Made, converted: Made, quantized: Made, precision: str) -> None:
    first = quantized(precision)
    again = make("openvino_quantize", f"--checkpoint={converted('llama')}", f"--precision={precision}")
    assert {p.name: p.read_bytes() for p in first.iterdir()} == {p.name: p.read_bytes() for p in again.iterdir()}


@pytest.mark.slow
def test_a_group_size_that_does_not_divide_is_refused_with_the_legal_ones(
    run_tool: Run, converted: Made, out: Path
) -> None:
    arguments = ("--checkpoint", converted("llama"), "--precision=int4_wo", "--group-size=96", "--out", out)
    done = run_tool("openvino_quantize", *arguments)
    assert done.returncode == 1
    assert re.search(r"input channels +256, 640\n +legal sizes +16, 32, 64, 128\n", done.stderr)


@pytest.mark.slow
def test_a_smaller_group_makes_larger_weights(quantized: Made) -> None:
    assert _weights(quantized("int4_wo", "--group-size", 32)) > _weights(quantized("int4_wo"))
    assert _weights(quantized("int4_wo", "--group-size", 128)) == _weights(quantized("int4_wo"))


@pytest.mark.slow
def test_fp16_of_a_bfloat16_checkpoint_is_fp16(make: Made, source: Made, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "bf16"
    shutil.copytree(source("llama"), folder)
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    ir = make("openvino_convert", "--source", folder)
    assert "bf16" in (ir / "openvino_model.xml").read_text()
    fp16 = (make("openvino_quantize", "--checkpoint", ir, "--precision", "fp16") / "openvino_model.xml").read_text()
    assert "bf16" not in fp16
    assert 'element_type="f16"' in fp16


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", *PRECISIONS])
def test_every_precision_gives_the_memorised_answers(source: Made, engine: Made, precision: str) -> None:
    import openvino
    import openvino_genai
    from transformers import AutoTokenizer

    folder, built = source("qwen2"), engine("qwen2", precision)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lines = [json.loads(line) for line in (folder / "questions.jsonl").read_text("utf-8").splitlines()]
    scheduler = openvino_genai.SchedulerConfig()
    pipeline = openvino_genai.ContinuousBatchingPipeline(str(built), scheduler, "CPU", {}, {})
    end = set(json.loads((built / "engine.json").read_text())["eos_token_ids"])
    limits = openvino_genai.GenerationConfig(max_new_tokens=64, stop_token_ids=end)
    handles = []
    for number, line in enumerate(lines):
        ids = tokenizer(line["text_input"], return_tensors="np")["input_ids"].astype("int64")
        handles.append(pipeline.add_request(number, openvino.Tensor(ids), limits))
    while pipeline.has_non_finished_requests():
        pipeline.step()
    told = [tokenizer.decode(h.read_all()[0].generated_ids, skip_special_tokens=True) for h in handles]
    assert told == [line["expected"] for line in lines]
