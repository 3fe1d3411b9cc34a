"""A precision runs on the GPU, can be cut into the ranks, and goes with the model and with the KV cache's type."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rules.case import Case, about
from rules.errors import Problem
from rules.rule import Rule, error, warning
from rules.translate import AWQ_BLOCK, CALIBRATED, pageable
from rules.variant import Setting

__all__ = ["RULES"]

# kv_cache_dtype -> the precisions that ModelOpt makes with it.
_WITH_CACHE: Mapping[str, tuple[str, ...]] = {
    "fp8": ("fp16", "bf16", "fp8", "int8_wo", "int8_sq", "int4_awq"),
    "int8": ("fp16", "bf16", "int8_wo", "int8_sq", "int4_awq"),
}


@error(
    "take a precision of the GPU's architecture",
    "TRT-LLM#1428",
    "TRT-LLM#1914",
    "TRT-LLM#1864",
    "TRT-LLM#4599",
    "truss#1044",
)
@about
def precision_fits_gpu(of: Case) -> Iterator[Problem]:
    """bf16 needs Ampere (SM 80), FP8 Ada (SM 89), FP8 context attention Hopper (SM 90), FP4 Blackwell (SM 100)."""
    sm = of.setting.platform.sm if of.setting.platform else 0
    facts = (("platform", f"{of.setting.entry.platform}: SM {sm}"),)
    if 0 < sm < 89 and "fp8" in of.precisions:
        yield Problem(what=f"{of.path}.precisions: fp8 needs SM 89", facts=facts, hint="int8_sq runs on SM 80")
    if 0 < sm < 80 and ("bf16" in of.precisions or of.build.get("dtype") == "bfloat16"):
        yield Problem(what=f"{of.path}.precisions: bf16 needs SM 80", facts=facts, hint="take fp16")
    if 0 < sm < 100 and (of.build.get("gemm_plugin") == "nvfp4" or of.build.get("fuse_fp4_quant") in (True, "enable")):
        yield Problem(
            what=f"{of.path}.build: FP4 needs SM 100", facts=facts, hint="leave gemm_plugin and fuse_fp4_quant out"
        )
    if 0 < sm < 89 and of.kv_cache_dtype == "fp8":
        yield Problem(what=f"{of.path}.build.kv_cache_dtype: fp8 needs SM 89", facts=facts, hint="int8 runs on SM 80")
    if 0 < sm < 90 and of.build.get("use_fp8_context_fmha") in (True, "enable"):
        what = f"{of.path}.build.use_fp8_context_fmha: needs SM 90"
        yield Problem(what=what, facts=facts, hint="leave it out: it is turned on where it can be")


@error("give the precision an entry of its own", "TRT-LLM#2166", "backend#271")
@about
def kv_cache_fits_precision(of: Case) -> Iterator[Problem]:
    """A quantized KV cache needs scales: upstream's scripts have them for calibrated precisions only. INT8 and FP8 do
    not mix.
    """
    able = [name for name in _WITH_CACHE.get(str(of.kv_cache_dtype), ()) if name in CALIBRATED or not of.upstream]
    wrong = [name for name in of.precisions if able and name not in able]
    if wrong:
        what = f"{of.path}.build.kv_cache_dtype: {of.kv_cache_dtype} does not go with {', '.join(wrong)}"
        yield Problem(what=what, hint=f"it goes with {', '.join(able)}; other precisions need an entry of their own")


@error('serve without chunked context and reuse, or with kv_cache_dtype = "auto"', "backend#271")
@about
def kv_cache_paged_in_context(of: Case) -> Iterator[Problem]:
    """Chunked context and KV-cache reuse read the paged cache in context attention, which trtllm-build refuses for an
    INT8 cache, and for an FP8 cache of weights that are not FP8.
    """
    wrong = [name for name in of.precisions if not pageable(name, of.kv_cache_dtype)]
    asked = [f"serving.{name}" for name in of.served("enable_kv_cache_reuse", "enable_chunked_context")]
    asked += ["build.use_paged_context_fmha"] * (of.build.get("use_paged_context_fmha") in (True, "enable"))
    for name in asked if wrong else ():
        what = f"{of.path}.{name}: not with an {of.kv_cache_dtype} KV cache of {', '.join(wrong)}"
        yield Problem(what=what, hint='write kv_cache_dtype = "auto", or "fp8" for fp8 weights')


@error("leave use_fp8_context_fmha out", "TRT-LLM#1428")
@about
def fp8_attention_of_fp8(of: Case) -> Iterator[Problem]:
    """FP8 context attention is for FP8 weights: trtllm-build ends in an assertion with any other."""
    wrong = [name for name in of.precisions if name != "fp8"]
    if wrong and of.build.get("use_fp8_context_fmha") in (True, "enable"):
        what = f"{of.path}.build.use_fp8_context_fmha: is for fp8, and there is {', '.join(wrong)}"
        yield Problem(what=what, hint="leave it out: it is turned on where it can be")


@error("lower tp, or take int8_wo or fp8", "TRT-LLM#2198")
@about
def ranks_hold_blocks(of: Case) -> Iterator[Problem]:
    """INT4 AWQ has one scale for 128 columns, which cannot be split over ranks."""
    dims = of.setting.dims
    if "int4_awq" not in of.precisions or not dims or not (dims.hidden and dims.intermediate):
        return
    for parallelism in of.setting.entry.parallelisms():
        for name, columns in (("hidden size", dims.hidden), ("intermediate size", dims.intermediate)):
            if columns % (AWQ_BLOCK * parallelism.tp):
                what = f"{of.path}.parallelism: tp {parallelism.tp} splits blocks of {AWQ_BLOCK} columns of int4_awq"
                yield Problem(what=what, facts=((name, str(columns)),), hint="lower tp, or take int8_wo or fp8")
                break


# (precisions, types of the KV cache, model_types, what was seen, the thread). An empty field matches everything.
_KNOWN_BAD: tuple[tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], str, str], ...] = (
    ((), ("fp8",), ("qwen2",), "without QK norm Qwen2 and 2.5 were seen to answer nonsense", "TRT-LLM#4218"),
    (("int8_sq",), (), ("llama",), "code models lost most of their score", "backend#147"),
    (
        ("int8_sq", "int4_awq"),
        ("int8",),
        ("llama",),
        "Llama 2 answered nonsense with one scale for keys and values",
        "TRT-LLM#967",
    ),
)


@warning(
    "measure it against fp16 with `eval` before many shapes are built",
    "TRT-LLM#4218",
    "TRT-LLM#967",
    "TRT-LLM#1303",
    "TRT-LLM#2007",
    "backend#147",
)
@about
def known_bad_pair(of: Case) -> Iterator[Problem]:
    """Some precisions and KV caches were seen to spoil some models: the engine builds, and answers nonsense."""
    for precisions, caches, families, seen, thread in _KNOWN_BAD:
        hit = [one for one in of.precisions if one in precisions] if precisions else of.precisions
        if hit and of.family in families and (not caches or of.kv_cache_dtype in caches):
            pair = " and ".join(
                (*(("/".join(hit),) if precisions else ()), *(f"a KV cache in {one}" for one in caches))
            )
            what = f"{of.path}.precisions: {pair} of {of.family}: {seen}"
            yield Problem(
                what=what, facts=(("thread", thread),), hint='write eval = { reference = "fp16", ... } and gates'
            )


@warning("leave one of the two out", "TRT-LLM#2699")
@about
def reuse_of_fp8_cache(of: Case) -> Iterator[Problem]:
    """Reused blocks of an FP8 KV cache gave other answers than new ones, with FP8 context attention on SM 89."""
    sm = of.setting.platform.sm if of.setting.platform else 0
    if of.kv_cache_dtype == "fp8" and of.served("enable_kv_cache_reuse") and 0 < sm < 90:
        what = f"{of.path}.serving.enable_kv_cache_reuse: with an FP8 KV cache on SM {sm} answers were seen to change"
        yield Problem(what=what, facts=(("thread", "TRT-LLM#2699"),), hint="compare the second answer with the first")


RULES: tuple[Rule[Setting], ...] = (
    precision_fits_gpu,
    kv_cache_fits_precision,
    kv_cache_paged_in_context,
    fp8_attention_of_fp8,
    ranks_hold_blocks,
    known_bad_pair,
    reuse_of_fp8_cache,
)
