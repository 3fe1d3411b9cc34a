"""Engines: a shape that can be served, proven to generate, or a refusal with the numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.made import Made, Run

SHAPE = {"max-batch-size": 8, "max-input-len": 256, "max-output-len": 64, "max-num-tokens": 2048}


def _compile(run_tool: Run, checkpoint: Path, out: Path, **changed: int) -> tuple[int, str]:
    shape = SHAPE | {name.replace("_", "-"): value for name, value in changed.items()}
    options = [f"--{name}={value}" for name, value in shape.items()]
    done = run_tool("openvino_compile", "--checkpoint", checkpoint, "--precision", "fp32", *options, "--out", out)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


@pytest.fixture
def configured(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text('{"max_position_embeddings": 300, "vocab_size": 9, "eos_token_id": 2}')
    return folder


def test_a_shape_beyond_the_models_positions_is_refused_with_the_numbers(
    run_tool: Run, configured: Path, out: Path
) -> None:
    status, told = _compile(run_tool, configured, out)
    assert status == 1
    assert "256 + 64 = 320 tokens" in told
    assert "300 tokens" in told


def test_a_batch_of_nothing_is_refused(run_tool: Run, configured: Path, out: Path) -> None:
    status, told = _compile(run_tool, configured, out, max_batch_size=0, max_output_len=-1)
    assert status == 1
    assert "max_batch_size  0" in told
    assert "max_output_len  -1" in told


def test_a_step_smaller_than_the_batch_is_refused(run_tool: Run, configured: Path, out: Path) -> None:
    status, told = _compile(run_tool, configured, out, max_input_len=8, max_num_tokens=7)
    assert status == 1
    assert "a token of every request" in told


def test_a_folder_without_a_model_is_refused(run_tool: Run, configured: Path, out: Path) -> None:
    status, told = _compile(run_tool, configured, out, max_input_len=8)
    assert status == 1
    assert told.startswith("error: the engine cannot be run")


@pytest.mark.slow
def test_an_engine_says_what_it_can_do(engine: Made) -> None:
    described = json.loads((engine("llama", "int8_wo") / "engine.json").read_text())
    assert described.pop("version").startswith("20")
    assert described == {
        "backend": "openvino",
        "precision": "int8_wo",
        "max_batch_size": 8,
        "max_input_len": 256,
        "max_output_len": 64,
        "max_seq_len": 320,
        "max_num_tokens": 2048,
        "max_beam_width": 1,
        "vocab_size": 2048,
        "eos_token_ids": [2],
        "pad_token_id": 0,
    }


@pytest.mark.slow
def test_every_end_token_of_the_generation_config_counts(
    run_tool: Run, converted: Made, tmp_path: Path, out: Path
) -> None:
    checkpoint = tmp_path / "several"
    checkpoint.mkdir()
    for path in converted("llama").iterdir():
        if path.name != "generation_config.json":
            (checkpoint / path.name).symlink_to(path)
    (checkpoint / "generation_config.json").write_text('{"eos_token_id": [7, 2, 9]}')
    assert _compile(run_tool, checkpoint, out) == (0, "")
    described = json.loads((out / "engine.json").read_text())
    assert described["eos_token_ids"] == [7, 2, 9]
    assert not (out / "openvino_model.bin").is_symlink()


@pytest.mark.slow
def test_weights_take_no_second_space(converted: Made, engine: Made) -> None:
    one, two = converted("llama") / "openvino_model.bin", engine("llama", "fp32") / "openvino_model.bin"
    assert one.stat().st_ino == two.stat().st_ino


@pytest.mark.slow
def test_an_ir_that_lost_bytes_is_refused(run_tool: Run, converted: Made, tmp_path: Path, out: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in converted("llama").iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    weights = broken / "openvino_model.bin"
    weights.write_bytes(weights.read_bytes()[: -1 << 20])
    status, told = _compile(run_tool, broken, out)
    assert status == 1
    assert told.startswith("error: the engine cannot be run")
