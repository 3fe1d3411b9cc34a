"""The traps inside five public guides, as their authors set them: each is told before a GPU is touched.

S0 to S4 are the guides of requirements.md; models.toml has the entries that do it right.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rules import check, plan
from rules.spec import read
from tests.checks.examples import said
from tests.lane import TEXTS, planned, toml

S0: dict[str, Any] = {
    "release": "0.8.0",
    "sm": 80,
    "source": '"hf:meta-llama/Llama-2-7b-chat-hf"',
    "shapes": "[{ batch = 64, isl = 1024, osl = 1024 }]",
    "build": '{ quantizer = "upstream" }',
}
S1: dict[str, Any] = {
    "release": "0.10.0",
    "source": '"hf:Qwen/Qwen1.5-14B-Chat"',
    "shapes": "[{ batch = 256, isl = 1024, osl = 1024 }]",
}
S4: dict[str, Any] = {"source": '"hf:Qwen/Qwen2-7B"', "shapes": "[{ batch = 8, isl = 2048, osl = 1024 }]"}


def test_s4_a_cap_of_8560_tokens_for_every_shape() -> None:
    """2.8 requests of 2048 + 1024, for a batch of 8."""
    (told,) = said("cache-holds-a-batch", toml(**S4, serving="{ max_tokens_in_paged_kv_cache = 8560 }"), Path())
    assert "max_tokens_in_paged_kv_cache: 2.8 of 8 full requests fit" in told


def test_s0_a_cap_of_2560_tokens_for_a_batch_of_64() -> None:
    (told,) = said("cache-holds-a-batch", toml(**S0, serving="{ max_tokens_in_paged_kv_cache = 2560 }"), Path())
    assert "1.2 of 64 full requests fit" in told
    small = {**S0, "shapes": "[{ batch = 64, isl = 2048, osl = 1024 }]"}
    (told,) = said("cache-holds-a-request", toml(**small, serving="{ max_tokens_in_paged_kv_cache = 2560 }"), Path())
    assert "shapes[0] needs 3072 for one request" in told


def test_s0_an_engine_of_batch_1_behind_a_triton_of_batch_64() -> None:
    """Its trtllm-build was given no --max_batch_size, and 0.8's default was 1. Here neither number can be typed."""
    assert said("settings-known", toml(**S0, serving="{ triton_max_batch_size = 64 }"), Path())
    assert said("flags-known", toml(**{**S0, "build": "{ max_batch_size = 1 }"}), Path())


def test_s0_one_number_is_the_batch_of_the_engine_and_of_triton(tmp_path: Path) -> None:
    made = planned(toml(**S0), tmp_path)
    engine = made.actions["engine:m_fp16_isl1024_osl1024_bs64"].argv
    assert engine[engine.index("--max_batch_size") + 1] == "64"
    assert "--set=triton_max_batch_size=64" in made.actions["build:m_fp16_isl1024_osl1024_bs64"].argv


def test_s0_an_image_of_another_release_than_the_templates() -> None:
    image = 'image = "nvcr.io/nvidia/tritonserver:24.04-trtllm-python-py3"'  # 0.9.0
    (told,) = said("image-fits", toml(**S0, runner="docker", head=image), Path())
    assert "is not one of TensorRT-LLM 0.8.0" in told


def test_s1_decoupled_in_one_model_and_not_in_another() -> None:
    (told,) = said("settings-known", toml(**S1, serving="{ decoupled_mode = true }"), Path())
    assert "write `streaming`: it holds for all models" in told


def test_s1_an_engine_called_14b_of_a_7b_checkpoint() -> None:
    text = toml(**{**S1, "source": '"hf:Qwen/Qwen2-7B"'}).replace("[models.m]", "[models.qwen1_5_14b_chat]")
    (told,) = said("name-says-size", text, Path())
    assert "says 5_14b" in told or "says 14b" in told
    assert "7.6 billion" in told


def test_s1_a_build_that_reads_another_folder_than_quantization_wrote() -> None:
    """Paths between stages cannot be typed."""
    assert "models.m.build.checkpoint_dir: is not set here" in str(
        said("flags-known", toml(**{**S1, "build": '{ checkpoint_dir = "kvfp8-trt" }'}), Path())
    )


def test_s1_placeholders_left_unfilled_or_misspelt() -> None:
    (told,) = said("settings-known", toml(**S1, serving='{ batch_schedular_policy = "max_utilization" }'), Path())
    assert "mean 'batch_scheduler_policy'?" in told


def test_s1_a_batch_of_256_that_memory_does_not_hold() -> None:
    (told,) = said("memory-holds-a-batch", toml(**S1), Path())
    assert "full-length requests; the batch is 256" in told


def test_s4_one_quantization_serves_all_shapes_of_a_precision(tmp_path: Path) -> None:
    """Its script made 384 where 12 are enough."""
    shapes = ", ".join(f"{{ batch = {batch}, isl = 2048, osl = 1024 }}" for batch in (1, 4, 8, 16))
    entry = {**S4, "shapes": f"[{shapes}]", "precisions": '["fp8", "fp16"]', "calibration": TEXTS}
    made = planned(toml(**entry), tmp_path)
    assert sum(action.stage == "checkpoint" for action in made.actions.values()) == 2


def test_s4_two_models_of_one_shape_have_two_repositories(tmp_path: Path) -> None:
    text = toml(**S4)
    made = plan.load(text + text[text.index("[models.m]") :].replace("[models.m]", "[models.n]"), tmp_path)
    assert len(made.names["build"]["m"]) == len(made.names["build"]["n"]) == 1


def test_s4_options_of_fp8_do_not_leak_into_fp16(tmp_path: Path) -> None:
    made = planned(toml(**S4, precisions='["fp8", "fp16"]', calibration=TEXTS), tmp_path).actions
    lines = {of: " ".join(made[f"engine:m_{of}_isl2048_osl1024_bs8"].argv) for of in ("fp8", "fp16")}
    assert "--use_fp8_context_fmha enable" in lines["fp8"]
    assert "--use_fp8_context_fmha disable" in lines["fp16"]


def test_the_entries_that_do_it_right_have_no_errors(project: Path) -> None:
    text = (project / "models.toml").read_text(encoding="utf-8")
    told = check.examine(text, project)
    assert [finding for finding in told if finding.severity == "error"] == []
    # a batch of 256 on one H20, and an FP8 KV cache of a Qwen: what the guides ask for, and what they do not say
    assert {finding.id for finding in told} <= {"memory-holds-a-batch", "known-bad-pair"}
    assert read(text)[1] == []
