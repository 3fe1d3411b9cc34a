"""What an entry serves fits its engine and its release, or is told not to."""

from __future__ import annotations

from pathlib import Path

import pytest

from rules.release import load, versions
from tests.checks.examples import Example, Examples, said
from tests.lane import toml

LIKELY = '{ data = "file:asked.jsonl", likelihood = true }'
GATHER = "{ gather_context_logits = true }"

EXAMPLES: Examples = {
    "settings-known": [
        Example(
            {"serving": "{ enable_trt_overlap = true }"},
            {"serving": "{ enable_kv_cache_reuse = true }"},
            "models.m.serving.enable_trt_overlap: the templates of TensorRT-LLM 0.11.0 have no enable_trt_overlap",
            "leave it out",
        ),
        Example(
            {"serving": "{ streming = true }"},
            {"serving": "{ streaming = true }"},
            "models.m.serving.streming: the templates",
            "did you mean 'streaming'?",
        ),
        Example(
            {"serving": "{ decoupled_mode = true }"},
            {"serving": "{ bls_instance_count = 8 }"},
            "models.m.serving.decoupled_mode: is not set here",
            "write `streaming`",
        ),
        Example(
            {"serving": '{ gpt_model_type = "V1" }'},
            {"serving": '{ batching_strategy = "V1" }'},
            "models.m.serving.gpt_model_type: is not set here",
            "write `batching_strategy`",
        ),
        Example(
            {"serving": '{ batch_scheduler_policy = "max_utilisation" }'},
            {"serving": '{ batch_scheduler_policy = "max_utilization" }'},
            "models.m.serving.batch_scheduler_policy: is not one of its words",
            "did you mean 'max_utilization'?",
        ),
    ],
    "logits-returned": [
        Example(
            {"eval": LIKELY},
            {"eval": LIKELY, "build": GATHER},
            "models.m.eval.likelihood: needs build.gather_context_logits",
            "gather_context_logits = true",
        ),
        Example(
            {"eval": LIKELY, "build": GATHER, "serving": "{ enable_kv_cache_reuse = true }"},
            {"eval": LIKELY, "build": "{ gather_all_token_logits = true }"},
            "models.m.eval.likelihood: logits of tokens in the cache are left out",
            "enable_kv_cache_reuse = false",
        ),
    ],
    "serving-fits-engine": [
        Example(
            {"build": "{ use_paged_context_fmha = false }", "serving": "{ enable_chunked_context = true }"},
            {"serving": "{ enable_chunked_context = true }"},
            "models.m.serving.enable_chunked_context: needs build.use_paged_context_fmha, which is turned off",
            "leave use_paged_context_fmha out",
        ),
        Example(
            {"build": '{ paged_kv_cache = "disable" }'},
            {"build": '{ paged_kv_cache = "disable" }', "serving": '{ batching_strategy = "V1" }'},
            "models.m.build.paged_kv_cache: in-flight batching needs a paged KV cache",
            'batching_strategy = "V1"',
        ),
        Example(
            {"serving": "{ max_beam_width = 4 }"},
            {"build": "{ max_beam_width = 4 }", "serving": "{ max_beam_width = 4 }"},
            "models.m.serving.max_beam_width: 4 beams of an engine for 1",
            "max_beam_width = 4 in `build`",
        ),
        Example(
            {"release": "0.17.0", "build": '{ logits_dtype = "float16" }'},
            {
                "release": "0.17.0",
                "build": '{ logits_dtype = "float16" }',
                "serving": '{ logits_datatype = "TYPE_FP16" }',
            },
            "models.m.serving.logits_datatype: is not what build.logits_dtype makes",
            "TYPE_FP16 go together",
        ),
    ],
    "tokens-hold-a-prompt": [
        Example(
            {"build": "{ max_num_tokens = 2047 }"},
            {"build": "{ max_num_tokens = 2047 }", "serving": "{ enable_chunked_context = true }"},
            "models.m.shapes[0]: a prompt of 2048 tokens in steps of max_num_tokens = 2047",
            "raise build.max_num_tokens",
        ),
    ],
    "cache-holds-a-request": [
        Example(
            {"serving": "{ max_tokens_in_paged_kv_cache = 3071 }"},
            {"serving": "{ max_tokens_in_paged_kv_cache = 3072 }"},
            "models.m.serving.max_tokens_in_paged_kv_cache: shapes[0] needs 3072 for one request",
            "leave it out",
        ),
        Example(
            {"serving": "{ kv_cache_free_gpu_mem_fraction = 1.0 }"},
            {"serving": "{ kv_cache_free_gpu_mem_fraction = 0.95 }"},
            "models.m.serving.kv_cache_free_gpu_mem_fraction: 1.0 leaves nothing for activations",
            "0.9",
        ),
    ],
    "cache-holds-a-batch": [
        Example(  # the guide's own numbers: 8560 tokens for a batch of 8 requests of 2048 + 1024
            {"serving": "{ max_tokens_in_paged_kv_cache = 8560 }"},
            {"serving": "{ max_tokens_in_paged_kv_cache = 24576 }"},
            "models.m.serving.max_tokens_in_paged_kv_cache: 2.8 of 8 full requests fit",
            "leave it out",
        ),
    ],
    "paged-context-used": [
        Example(
            {"build": "{ use_paged_context_fmha = true }"},
            {"build": "{ use_paged_context_fmha = true }", "serving": "{ enable_kv_cache_reuse = true }"},
            "models.m.build.use_paged_context_fmha: nothing that is served needs it",
            "enable_chunked_context",
        ),
    ],
    "policy-kept": [
        Example(
            {"serving": '{ batch_scheduler_policy = "max_utilization" }'},
            {"serving": '{ batch_scheduler_policy = "max_utilization", enable_chunked_context = true }'},
            "models.m.serving.batch_scheduler_policy: 0.11.0 will use guaranteed_no_evict",
            "enable_chunked_context = true",
        ),
        Example(
            {"serving": '{ batch_scheduler_policy = "max_utilization" }'},
            {"release": "0.12.0", "serving": '{ batch_scheduler_policy = "max_utilization" }'},
            "models.m.serving.batch_scheduler_policy: 0.11.0 will use guaranteed_no_evict",
            "streaming = false",
        ),
    ],
}


@pytest.mark.parametrize("version", versions())
def test_every_setting_of_every_release_can_be_given(version: str) -> None:
    sample = {"bool": "true", "int": "4", "fraction": "0.5", "text": '"x"'}
    derived = {"triton_max_batch_size", "decoupled_mode", "engine_dir", "tokenizer_dir"}
    for setting in load(version).placeholders().values():
        if setting.name not in derived:
            value = f'"{setting.words[0]}"' if setting.words else sample[setting.type]
            assert not said("settings-known", toml(version, serving=f"{{ {setting.name} = {value} }}"), Path())
