"""Each rule about an engine has an entry that it refuses, with numbers and a way out, and one that it lets pass."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rules import engine_rules
from rules.backends.trtllm import Build
from rules.engine_rules import ADVICE, RULES
from tests.lane import TEXTS, setting, told, toml

AWQ = {"precisions": '["int4_awq"]', "calibration": TEXTS}


@dataclass(frozen=True)
class Case:
    """Arguments of `toml` for an entry that is refused and for one that passes, and what is said."""

    bad: dict[str, Any]
    good: dict[str, Any]
    what: str
    hint: str
    model: str = "qwen2"


CASES: dict[str, list[Case]] = {
    "release_exists": [
        Case({"release": "0.11"}, {}, "toolchains.t.release: there is no release '0.11'", "did you mean '0.11.0'?"),
        Case({"release": "main"}, {}, "toolchains.t.release: there is no release 'main'", "one of: 0.8.0"),
    ],
    "image_fits": [
        Case({"head": 'image = "x"'}, {}, "toolchains.t.image: runner is 'local'", 'runner = "docker"'),
        Case(
            {"runner": "docker", "head": 'image = "nvcr.io/nvidia/tritonserver:24.06-trtllm-python-py3"'},
            {"runner": "docker", "head": 'image = "nvcr.io/nvidia/tritonserver:24.07-trtllm-python-py3"'},
            "toolchains.t.image: is not one of TensorRT-LLM 0.11.0",
            "24.07-trtllm-python-py3",
        ),
        Case(
            {"release": "0.18.1", "runner": "docker"},
            {"release": "0.18.1", "runner": "docker", "head": 'image = "registry.local/triton@sha256:00"'},
            "toolchains.t.image: no image of NVIDIA carries TensorRT-LLM 0.18.1",
            "your own",
        ),
    ],
    "flags_known": [
        Case(
            {"release": "0.12.0", "build": "{ use_custom_all_reduce = true }"},
            {"build": "{ use_custom_all_reduce = true }"},
            "models.m.build.use_custom_all_reduce: TensorRT-LLM 0.12.0 has no --use_custom_all_reduce",
            "leave it out",
        ),
        Case(
            {"build": "{ multipel_profiles = true }"},
            {"build": "{ multiple_profiles = true }"},
            "models.m.build.multipel_profiles: TensorRT-LLM 0.11.0 has no",
            "did you mean 'multiple_profiles'?",
        ),
        Case(
            {"build": "{ max_batch_size = 8 }"},
            {"build": '{ workers = 2, quantizer = "modelopt" }'},
            "models.m.build.max_batch_size: is not set here",
            "`batch` in `shapes`",
        ),
        Case(
            {"build": '{ gemm_plugin = "float61" }'},
            {"build": '{ gemm_plugin = "fp8" }'},
            "models.m.build.gemm_plugin: is not one of its choices",
            "did you mean 'float16'?",
        ),
    ],
    "precision_fits_gpu": [
        Case(
            {"sm": 80, "precisions": '["fp8"]'},
            {"sm": 89, "precisions": '["fp8"]'},
            "models.m.precisions: fp8 needs",
            "SM 80",
        ),
        Case(
            {"sm": 80, "build": '{ kv_cache_dtype = "fp8" }'},
            {"sm": 89, "build": '{ kv_cache_dtype = "fp8" }'},
            "models.m.build.kv_cache_dtype: fp8 needs SM 89",
            "int8",
        ),
        Case(
            {"sm": 89, "build": "{ use_fp8_context_fmha = true }"},
            {"sm": 90, "build": "{ use_fp8_context_fmha = true }"},
            "models.m.build.use_fp8_context_fmha: needs SM 90",
            "leave it out",
        ),
    ],
    "kv_cache_fits_precision": [
        Case(
            {"precisions": '["fp16", "fp8"]', "build": '{ kv_cache_dtype = "fp8" }'},
            {"precisions": '["fp8", "int4_awq"]', "build": '{ kv_cache_dtype = "fp8" }'},
            "models.m.build.kv_cache_dtype: fp8 does not go with fp16",
            "an entry of their own",
        ),
        Case(
            {
                "precisions": '["int8_sq"]',
                "build": '{ kv_cache_dtype = "int8" }',
                "serving": "{ enable_kv_cache_reuse = true }",
            },
            {"precisions": '["int8_sq"]', "build": '{ kv_cache_dtype = "int8" }'},
            "models.m.serving.enable_kv_cache_reuse: not with an int8 KV cache",
            '"fp8" or "auto"',
        ),
    ],
    "flags_fit_each_other": [
        Case(
            {"build": "{ multiple_profiles = true, opt_num_tokens = 8 }"},
            {"build": "{ opt_num_tokens = 8 }"},
            "models.m.build.opt_num_tokens: not with multiple_profiles",
            "leave one",
        ),
        Case(
            {"build": "{ gather_context_logits = true, max_draft_len = 4 }"},
            {"build": "{ gather_context_logits = true, max_draft_len = 0 }"},
            "models.m.build.gather_context_logits: not with max_draft_len",
            "leave one",
        ),
        Case(
            {"build": "{ reduce_fusion = true }"},
            {"build": "{ reduce_fusion = false }"},
            "models.m.build.reduce_fusion: is for Llama, and this is qwen2",
            "leave it out",
        ),
        Case(
            {"build": "{ reduce_fusion = true, use_custom_all_reduce = false }"},
            {"build": "{ reduce_fusion = true }"},
            "models.m.build.reduce_fusion: needs use_custom_all_reduce",
            "leave one",
            "llama",
        ),
    ],
    "ranks_hold_blocks": [
        Case(
            {**AWQ, "parallelism": '["tp2"]'},
            {**AWQ, "parallelism": '["tp1"]'},
            "models.m.parallelism: tp 2 splits blocks of 128 columns of int4_awq",
            "lower tp",
        ),
    ],
    "stages_hold_layers": [
        Case(
            {"parallelism": '["pp3"]'},
            {"parallelism": '["pp2", "pp4"]'},
            "models.m.parallelism: pp 3 does not divide the layers",
            "pp may be 1, 2, 4",
        ),
    ],
    "calibration_given": [
        Case(
            {"precisions": '["fp8"]'},
            {"precisions": '["fp16"]'},
            "models.m.calibration: is missing, and fp8",
            "file:PATH",
        ),
        Case(
            {"precisions": '["fp8"]', "calibration": '{ data = "file:no.jsonl" }'},
            {"precisions": '["fp8"]', "calibration": TEXTS},
            "models.m.calibration.data: {root}/no.jsonl does not exist",
            ".jsonl",
        ),
        Case(
            {"precisions": '["fp8"]', "calibration": TEXTS, "build": '{ quantizer = "upstream" }'},
            {"precisions": '["fp8"]', "calibration": '{ data = "file:texts" }', "build": '{ quantizer = "upstream" }'},
            "models.m.calibration: upstream's quantize.py reads a folder with a column `text`",
            "modelopt",
        ),
        Case(
            {"release": "0.9.0", "precisions": '["fp8"]', "build": '{ quantizer = "upstream" }'},
            {"release": "0.9.0", "precisions": '["fp8"]', "calibration": TEXTS},
            "models.m.build.quantizer: quantize.py of 0.9.0 takes its texts from a hub only",
            "modelopt",
        ),
    ],
    "quantizer_can": [
        Case(
            {"precisions": '["int4_wo"]'},
            {"precisions": '["int4_wo"]', "build": '{ quantizer = "upstream" }'},
            "models.m.build.quantizer: modelopt makes no int4_wo",
            "int4_awq",
        ),
        Case(
            {"precisions": '["int8_sq"]', "calibration": TEXTS, "parallelism": '["tp4"]'},
            {"precisions": '["int8_sq"]', "calibration": TEXTS, "parallelism": '["tp2"]'},
            "models.m.build.quantizer: modelopt cannot copy 2 KV heads to tp 4 in int8_sq",
            "lower tp",
        ),
        Case(
            {"release": "0.8.0"},
            {"release": "0.9.0"},
            "models.m.toolchain: trtllm-build of 0.8.0 builds no qwen2",
            "0.9.0 or later",
        ),
        Case(
            {"build": '{ quantizer = "upstream" }'},
            {},
            "models.m.build.quantizer: there is no convert_checkpoint.py known for model_type ''",
            "modelopt",
            "",
        ),
    ],
}
PAIRS = [(name, index) for name, cases in CASES.items() for index in range(len(cases))]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with calibration texts."""
    (tmp_path / "texts.jsonl").write_text('{"input": "a"}\n')
    (tmp_path / "texts").mkdir()
    return tmp_path


def test_every_rule_has_a_case() -> None:
    assert [rule.__name__ for rule in RULES] == list(CASES)


@pytest.mark.parametrize(("name", "index"), PAIRS)
def test_a_rule_refuses_a_bad_entry_with_path_and_hint(name: str, index: int, root: Path) -> None:
    rule, case = getattr(engine_rules, name), CASES[name][index]
    (text,) = told((rule,), setting(toml(**case.bad), root, case.model))
    assert text.startswith(case.what.format(root=root))
    assert case.hint in text.partition("hint: ")[2]


@pytest.mark.parametrize(("name", "index"), PAIRS)
def test_a_rule_lets_a_good_entry_pass(name: str, index: int, root: Path) -> None:
    rule, case = getattr(engine_rules, name), CASES[name][index]
    assert not told((rule,), setting(toml(**case.good), root, case.model))


@pytest.mark.parametrize(("name", "index"), PAIRS)
def test_one_mistake_is_one_message(name: str, index: int, root: Path) -> None:
    """No other rule stumbles over what a rule refuses, except that FP8 asks for texts of its own."""
    case = CASES[name][index]
    of = setting(toml(**{"calibration": TEXTS, **case.bad}), root, case.model)
    others = tuple(
        rule for rule in RULES if rule.__name__ not in (name, "kv_cache_fits_precision", "precision_fits_gpu")
    )
    assert not told(others, of) or name == "calibration_given"


def test_every_release_is_known_by_its_missing_name(root: Path) -> None:
    text = toml().replace('release = "0.11.0"\n', "")
    assert told(RULES, setting(text, root)) == [
        "toolchains.t.release: is missing\n    hint: TensorRT-LLM's version, 0.8.0 to 1.2.1"
    ]


def test_our_own_keys_are_those_of_the_build_table() -> None:
    assert set(engine_rules.INTENTS) == set(Build.model_fields)


def test_a_flag_that_is_not_proven_is_advice(root: Path) -> None:
    assert not told(ADVICE, setting(toml("0.18.2", build="{ monitor_memory = true }"), root))
