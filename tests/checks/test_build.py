"""The release has what an entry's checkpoint and engine are made with, or is told not to."""

from __future__ import annotations

from pathlib import Path

from rules.backends.trtllm import Build
from rules.checks.build import INTENTS
from tests.checks.examples import Examples, Tiny, said
from tests.lane import TEXTS, toml

AWQ = {"precisions": '["int4_awq"]', "calibration": TEXTS}
EXAMPLES: Examples = {
    "release-exists": [
        Tiny({"release": "0.11"}, {}, "toolchains.t.release: there is no release '0.11'", "did you mean '0.11.0'?"),
        Tiny({"release": "main"}, {}, "toolchains.t.release: there is no release 'main'", "one of: 0.8.0"),
    ],
    "image-fits": [
        Tiny({"head": 'image = "x"'}, {}, "toolchains.t.image: runner is 'local'", 'runner = "docker"'),
        Tiny(
            {"runner": "docker", "head": 'image = "nvcr.io/nvidia/tritonserver:24.06-trtllm-python-py3"'},
            {"runner": "docker", "head": 'image = "nvcr.io/nvidia/tritonserver:24.07-trtllm-python-py3"'},
            "toolchains.t.image: is not one of TensorRT-LLM 0.11.0",
            "24.07-trtllm-python-py3",
        ),
        Tiny(
            {"release": "0.18.1", "runner": "docker"},
            {"release": "0.18.1", "runner": "docker", "head": 'image = "registry.local/triton@sha256:00"'},
            "toolchains.t.image: no image of NVIDIA carries TensorRT-LLM 0.18.1",
            "your own",
        ),
    ],
    "flags-known": [
        Tiny(
            {"build": "{ enable_context_fmha = true }"},
            {"build": "{ context_fmha = true }"},
            "models.m.build.enable_context_fmha: is not set here",
            "write `context_fmha`",
        ),
        Tiny(
            {"release": "0.12.0", "build": "{ use_custom_all_reduce = true }"},
            {"build": "{ use_custom_all_reduce = true }"},
            "models.m.build.use_custom_all_reduce: TensorRT-LLM 0.12.0 has no --use_custom_all_reduce",
            "leave it out",
        ),
        Tiny(
            {"build": "{ multipel_profiles = true }"},
            {"build": "{ multiple_profiles = true }"},
            "models.m.build.multipel_profiles: TensorRT-LLM 0.11.0 has no",
            "did you mean 'multiple_profiles'?",
        ),
        Tiny(
            {"build": "{ max_batch_size = 8 }"},
            {"build": '{ workers = 2, quantizer = "modelopt" }'},
            "models.m.build.max_batch_size: is not set here",
            "`batch` in `shapes`",
        ),
        Tiny(
            {"build": '{ gemm_plugin = "float61" }'},
            {"build": '{ gemm_plugin = "fp8" }'},
            "models.m.build.gemm_plugin: is not one of its choices",
            "did you mean 'float16'?",
        ),
    ],
    "flags-fit-each-other": [
        Tiny(
            {"build": "{ multiple_profiles = true, opt_num_tokens = 8 }"},
            {"build": "{ opt_num_tokens = 8 }"},
            "models.m.build.opt_num_tokens: not with multiple_profiles",
            "leave one",
        ),
        Tiny(
            {"build": "{ gather_context_logits = true, max_draft_len = 4 }"},
            {"build": "{ gather_context_logits = true, max_draft_len = 0 }"},
            "models.m.build.gather_context_logits: not with max_draft_len",
            "leave one",
        ),
        Tiny(
            {"build": "{ reduce_fusion = true }"},
            {"build": "{ reduce_fusion = false }"},
            "models.m.build.reduce_fusion: is for Llama, and this is qwen2",
            "leave it out",
        ),
        Tiny(
            {"build": "{ reduce_fusion = true, use_custom_all_reduce = false }"},
            {"build": "{ reduce_fusion = true }"},
            "models.m.build.reduce_fusion: needs use_custom_all_reduce",
            "leave one",
            "llama",
        ),
    ],
    "stages-hold-layers": [
        Tiny(
            {"parallelism": '["pp3"]'},
            {"parallelism": '["pp2", "pp4"]'},
            "models.m.parallelism: pp 3 does not divide the layers",
            "pp may be 1, 2, 4",
        ),
    ],
    "quantizer-can": [
        Tiny(
            {"precisions": '["int4_wo"]'},
            {"precisions": '["int4_wo"]', "build": '{ quantizer = "upstream" }'},
            "models.m.build.quantizer: modelopt makes no int4_wo",
            "int4_awq",
        ),
        Tiny(
            {"precisions": '["int8_sq"]', "calibration": TEXTS, "parallelism": '["tp4"]'},
            {"precisions": '["int8_sq"]', "calibration": TEXTS, "parallelism": '["tp2"]'},
            "models.m.build.quantizer: modelopt cannot copy 2 KV heads to tp 4 in int8_sq",
            "lower tp",
        ),
        Tiny(
            {"release": "0.8.0"},
            {"release": "0.9.0"},
            "models.m.toolchain: trtllm-build of 0.8.0 builds no qwen2",
            "0.9.0 or later",
        ),
        Tiny(
            {"build": '{ quantizer = "upstream" }'},
            {},
            "models.m.build.quantizer: there is no convert_checkpoint.py known for model_type ''",
            "modelopt",
            "",
        ),
        Tiny(
            {"source": '"file:phi3"'},
            {"source": '"file:mistral"'},
            "models.m.build.quantizer: modelopt is not known to make checkpoints of model_type 'phi3'",
            "known: qwen2, llama, mistral, gpt2",
        ),
    ],
    "release-read": [
        Tiny(
            {"release": "0.17.0", "build": "{ monitor_memory = true }"},
            {"release": "0.18.2", "build": "{ monitor_memory = true }"},
            "models.m.build: the flags of 0.17.0 are inferred\n    given  monitor_memory",
            "--help",
        )
    ],
}


def test_every_release_is_known_by_its_missing_name() -> None:
    text = toml().replace('release = "0.11.0"\n', "")
    assert said("release-exists", text, Path()) == [
        "toolchains.t.release: is missing\n    hint: TensorRT-LLM's version, 0.8.0 to 1.2.1"
    ]


def test_our_own_keys_are_those_of_the_build_table() -> None:
    assert set(INTENTS) == set(Build.model_fields)
