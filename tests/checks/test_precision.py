"""A precision that cannot run, cannot be cut or is known to go wrong is told."""

from __future__ import annotations

from tests.checks.examples import Examples, Tiny
from tests.lane import TEXTS

AWQ = {"precisions": '["int4_awq"]', "calibration": TEXTS}
FP8 = {"precisions": '["fp8"]', "build": '{ kv_cache_dtype = "fp8" }', "calibration": TEXTS}
EXAMPLES: Examples = {
    "precision-fits-gpu": [
        Tiny(
            {"sm": 80, "precisions": '["fp8"]'},
            {"sm": 89, "precisions": '["fp8"]'},
            "models.m.precisions: fp8 needs",
            "SM 80",
        ),
        Tiny(
            {"sm": 80, "build": '{ kv_cache_dtype = "fp8" }'},
            {"sm": 89, "build": '{ kv_cache_dtype = "fp8" }'},
            "models.m.build.kv_cache_dtype: fp8 needs SM 89",
            "int8",
        ),
        Tiny(
            {
                "sm": 89,
                "precisions": '["fp8"]',
                "build": "{ use_fp8_context_fmha = true }",
                "calibration": TEXTS,
            },
            {
                "sm": 90,
                "precisions": '["fp8"]',
                "build": "{ use_fp8_context_fmha = true }",
                "calibration": TEXTS,
            },
            "models.m.build.use_fp8_context_fmha: needs SM 90",
            "leave it out",
        ),
        Tiny(
            {"sm": 75, "precisions": '["bf16"]'},
            {"precisions": '["bf16"]'},
            "models.m.precisions: bf16 needs SM 80",
            "fp16",
        ),
        Tiny(
            {"release": "0.19.0", "build": '{ gemm_plugin = "nvfp4" }'},
            {"release": "0.19.0", "build": '{ gemm_plugin = "nvfp4" }', "sm": 100},
            "models.m.build: FP4 needs SM 100",
            "gemm_plugin",
        ),
    ],
    "kv-cache-fits-precision": [
        Tiny(
            {
                "precisions": '["fp16", "fp8"]',
                "build": '{ kv_cache_dtype = "fp8", quantizer = "upstream" }',
                "calibration": '{ data = "file:texts" }',
            },
            {"precisions": '["fp16", "fp8"]', "build": '{ kv_cache_dtype = "fp8" }', "calibration": TEXTS},
            "models.m.build.kv_cache_dtype: fp8 does not go with fp16",
            "an entry of their own",
        ),
        Tiny(
            {"precisions": '["fp8", "bf16"]', "build": '{ kv_cache_dtype = "int8" }'},
            {"precisions": '["int8_wo", "bf16"]', "build": '{ kv_cache_dtype = "int8" }', "calibration": TEXTS},
            "models.m.build.kv_cache_dtype: int8 does not go with fp8",
            "fp16, bf16, int8_wo, int8_sq, int4_awq",
        ),
    ],
    "kv-cache-paged-in-context": [
        Tiny(
            {
                "precisions": '["int8_sq"]',
                "build": '{ kv_cache_dtype = "int8" }',
                "serving": "{ enable_kv_cache_reuse = true }",
                "calibration": TEXTS,
            },
            {"precisions": '["int8_sq"]', "build": '{ kv_cache_dtype = "int8" }', "calibration": TEXTS},
            "models.m.serving.enable_kv_cache_reuse: not with an int8 KV cache of int8_sq",
            '"auto"',
        ),
        Tiny(
            {
                "precisions": '["fp8", "fp16"]',
                "build": '{ kv_cache_dtype = "fp8" }',
                "serving": "{ enable_chunked_context = true }",
                "calibration": TEXTS,
            },
            {
                "precisions": '["fp8"]',
                "build": '{ kv_cache_dtype = "fp8" }',
                "serving": "{ enable_chunked_context = true }",
                "calibration": TEXTS,
            },
            "models.m.serving.enable_chunked_context: not with an fp8 KV cache of fp16",
            '"auto"',
        ),
    ],
    "fp8-attention-of-fp8": [
        Tiny(
            {"precisions": '["fp8", "fp16"]', "build": "{ use_fp8_context_fmha = true }", "calibration": TEXTS},
            {"precisions": '["fp8"]', "build": "{ use_fp8_context_fmha = true }", "calibration": TEXTS},
            "models.m.build.use_fp8_context_fmha: is for fp8, and there is fp16",
            "leave it out",
        ),
    ],
    "ranks-hold-blocks": [
        Tiny(
            {**AWQ, "parallelism": '["tp2"]'},
            {**AWQ, "parallelism": '["tp1"]'},
            "models.m.parallelism: tp 2 splits blocks of 128 columns of int4_awq",
            "lower tp",
        ),
    ],
    "known-bad-pair": [
        Tiny(
            {"precisions": '["fp8"]', "build": '{ kv_cache_dtype = "fp8" }', "calibration": TEXTS},
            {"precisions": '["fp8"]', "calibration": TEXTS},
            "models.m.precisions: a KV cache in fp8 of qwen2: without QK norm",
            "eval",
        ),
        Tiny(
            {"precisions": '["int8_sq", "fp16"]', "calibration": TEXTS},
            {"precisions": '["int8_wo", "fp16"]', "build": '{ quantizer = "upstream" }'},
            "models.m.precisions: int8_sq of llama: code models",
            "eval",
            "llama",
        ),
    ],
    "reuse-of-fp8-cache": [
        Tiny(
            {**FP8, "sm": 89, "serving": "{ enable_kv_cache_reuse = true }"},
            {**FP8, "sm": 90, "serving": "{ enable_kv_cache_reuse = true }"},
            "models.m.serving.enable_kv_cache_reuse: with an FP8 KV cache on SM 89",
            "compare",
        )
    ],
}
