"""A precision runs on the GPU, can be cut into the ranks, and goes with the model and with the KV cache's type."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rules.case import Case, about
from rules.errors import Problem
from rules.rule import Rule, error
from rules.translate import AWQ_BLOCK, CALIBRATED
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
    """FP8 needs Ada or Hopper (SM 89), and FP8 context attention Hopper (SM 90)."""
    sm = of.setting.platform.sm if of.setting.platform else 0
    facts = (("platform", f"{of.setting.entry.platform}: SM {sm}"),)
    if 0 < sm < 89 and "fp8" in of.precisions:
        yield Problem(what=f"{of.path}.precisions: fp8 needs SM 89", facts=facts, hint="int8_sq runs on SM 80")
    if 0 < sm < 89 and of.kv_cache_dtype == "fp8":
        yield Problem(what=f"{of.path}.build.kv_cache_dtype: fp8 needs SM 89", facts=facts, hint="int8 runs on SM 80")
    if 0 < sm < 90 and of.build.get("use_fp8_context_fmha") in (True, "enable"):
        what = f"{of.path}.build.use_fp8_context_fmha: needs SM 90"
        yield Problem(what=what, facts=facts, hint="leave it out: it is turned on where it can be")


@error("give the precision an entry of its own", "TRT-LLM#2166", "backend#271")
@about
def kv_cache_fits_precision(of: Case) -> Iterator[Problem]:
    """A quantized KV cache needs scales: upstream's scripts have them for calibrated precisions only. INT8 and FP8 do
    not mix, and an INT8 cache cannot be paged in context.
    """
    able = [name for name in _WITH_CACHE.get(str(of.kv_cache_dtype), ()) if name in CALIBRATED or not of.upstream]
    wrong = [name for name in of.precisions if able and name not in able]
    if wrong:
        what = f"{of.path}.build.kv_cache_dtype: {of.kv_cache_dtype} does not go with {', '.join(wrong)}"
        yield Problem(what=what, hint=f"it goes with {', '.join(able)}; other precisions need an entry of their own")
    if of.kv_cache_dtype == "int8":
        for name in of.served("enable_kv_cache_reuse", "enable_chunked_context"):
            what = f"{of.path}.serving.{name}: not with an int8 KV cache"
            yield Problem(what=what, hint='write kv_cache_dtype = "fp8" or "auto"')


@error("lower tp, or take int8_wo or fp8", "TRT-LLM#2198")
@about
def ranks_hold_blocks(of: Case) -> Iterator[Problem]:
    """INT4 AWQ has one scale for 128 columns, which cannot be split over ranks."""
    dims = of.setting.dims
    if "int4_awq" not in of.precisions or not dims or not (dims.hidden and dims.intermediate):
        return
    for parallelism in of.setting.parallelisms():
        for name, columns in (("hidden size", dims.hidden), ("intermediate size", dims.intermediate)):
            if columns % (AWQ_BLOCK * parallelism.tp):
                what = f"{of.path}.parallelism: tp {parallelism.tp} splits blocks of {AWQ_BLOCK} columns of int4_awq"
                yield Problem(what=what, facts=((name, str(columns)),), hint="lower tp, or take int8_wo or fp8")
                break


RULES: tuple[Rule[Setting], ...] = (precision_fits_gpu, kv_cache_fits_precision, ranks_hold_blocks)
