"""What can be known to be wrong, or unwise, with what an entry of the TensorRT-LLM lane serves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rules.case import Case, about
from rules.errors import Problem
from rules.flags import setting_problems, unknown_setting
from rules.release import number
from rules.rule import Rule, error, warning
from rules.variant import Setting

__all__ = ["PLACED", "RULES"]

PLACED = ("engine_dir", "tokenizer_dir")  # render.py says where they are
_OFF = (False, "disable", "disabled", "continuous")  # a switch that is turned off, and KV caches that are not paged
_DERIVED: Mapping[str, str] = {
    "triton_max_batch_size": "it is the `batch` of `shapes`, in all models",
    "decoupled_mode": "write `streaming`: it holds for all models",
    "engine_dir": "the repository knows where its engine is",
    "tokenizer_dir": "the repository knows where its tokenizer is",
    # what config.pbtxt calls them
    "decoupled": "write `streaming`: it holds for all models",
    "gpt_model_type": "write `batching_strategy`",
    "gpt_model_path": "the repository knows where its engine is",
    "max_batch_size": "it is the `batch` of `shapes`, in all models",
}


@error("write a placeholder of the release's templates", "server#8592", "backend#210", "backend#207", "backend#500")
@about
def settings_known(of: Case) -> Iterator[Problem]:
    """`serving` holds `streaming` and placeholders that the release's templates have, with values that they take."""
    path, there = f"{of.path}.serving", of.release.placeholders()
    free = {name: placeholder for name, placeholder in there.items() if name not in _DERIVED}
    for name in of.serving:
        if name in _DERIVED:
            yield Problem(what=f"{path}.{name}: is not set here", hint=_DERIVED[name])
        elif name not in ("streaming", *free):
            yield unknown_setting(path, name, of.release, ("streaming", *free))
    yield from setting_problems(path, free, of.serving)


@error(
    "turn it on in `build` too, or leave it out of `serving`", "backend#271", "backend#251", "backend#323", "truss#1099"
)
@about
def serving_fits_engine(of: Case) -> Iterator[Problem]:
    """What is served is not turned off in the engine: paged context, paged KV cache, packed input, beams, logits."""
    yield from _paged_context_off(of)
    yield from _paged_cache_off(of)
    beams, most = of.number("serving", "max_beam_width"), of.number("build", "max_beam_width") or 1
    if beams and beams > most:
        what = f"{of.path}.serving.max_beam_width: {beams} beams of an engine for {most}"
        yield Problem(what=what, hint=f"write max_beam_width = {beams} in `build`")
    half = of.build.get("logits_dtype") == "float16"
    if "logits_datatype" in of.release.placeholders() and half != (of.serving.get("logits_datatype") == "TYPE_FP16"):
        what = f"{of.path}.serving.logits_datatype: is not what build.logits_dtype makes"
        yield Problem(what=what, hint="float16 and TYPE_FP16 go together; so do float32 and TYPE_FP32")


def _paged_context_off(of: Case) -> Iterator[Problem]:
    for name in of.served("enable_kv_cache_reuse", "enable_chunked_context"):
        if of.build.get("use_paged_context_fmha") in _OFF:
            what = f"{of.path}.serving.{name}: needs build.use_paged_context_fmha, which is turned off"
            yield Problem(what=what, hint="leave use_paged_context_fmha out: it is turned on where it is needed")


def _paged_cache_off(of: Case) -> Iterator[Problem]:
    for name in ("kv_cache_type", "paged_kv_cache", "remove_input_padding"):
        if of.build.get(name) in _OFF and of.serving.get("batching_strategy") not in ("V1", "v1"):
            what = f"{of.path}.build.{name}: in-flight batching needs a paged KV cache and packed input"
            yield Problem(what=what, hint='leave it out, or write batching_strategy = "V1" in `serving`')


@error("build with gather_context_logits, serve without reuse", "Model-Optimizer#1577", "backend#530")
@about
def logits_returned(of: Case) -> Iterator[Problem]:
    """An evaluation of likelihoods asks for the logits of whole prompts, which the engine must return."""
    asked = of.setting.entry.eval
    if not asked or not asked.likelihood:
        return
    if True not in (of.build.get("gather_context_logits"), of.build.get("gather_all_token_logits")):
        what = f"{of.path}.eval.likelihood: needs build.gather_context_logits"
        yield Problem(what=what, hint="write build = { gather_context_logits = true }")
    if of.serving.get("enable_kv_cache_reuse", number(of.release.version) >= (0, 19, 0)) is True:
        what = f"{of.path}.eval.likelihood: logits of tokens in the cache are left out"
        yield Problem(what=what, hint="write serving = { enable_kv_cache_reuse = false }")


@error("raise build.max_num_tokens, or serve with chunked context", "TRT-LLM#718", "TRT-LLM#1780")
@about
def tokens_hold_a_prompt(of: Case) -> Iterator[Problem]:
    """Without chunked context a prompt is one step: max_num_tokens holds at least one."""
    tokens = of.number("build", "max_num_tokens")
    if tokens is None or of.served("enable_chunked_context"):
        return
    for index, shape in enumerate(of.setting.entry.shapes):
        if tokens < shape.isl:
            what = f"{of.path}.shapes[{index}]: a prompt of {shape.isl} tokens in steps of max_num_tokens = {tokens}"
            hint = "raise build.max_num_tokens, or write enable_chunked_context = true in `serving`"
            yield Problem(what=what, hint=hint)


@error("leave the cap out: memory decides then", "backend#59", "backend#303")
@about
def cache_holds_a_request(of: Case) -> Iterator[Problem]:
    """The KV cache holds at least one full request, and leaves the GPU some memory."""
    for index, need, cap, _ in _full_requests(of):
        if cap < need:
            what = f"{of.path}.serving.max_tokens_in_paged_kv_cache: shapes[{index}] needs {need} for one request"
            yield Problem(what=what, facts=(("got", str(cap)),), hint="leave it out: memory decides then")
    fraction = of.serving.get("kv_cache_free_gpu_mem_fraction")
    if isinstance(fraction, (int, float)) and not isinstance(fraction, bool) and not 0 < fraction < 1:
        what = f"{of.path}.serving.kv_cache_free_gpu_mem_fraction: {fraction} leaves nothing for activations"
        yield Problem(what=what, hint="0.9 is upstream's default; 0 is no cache at all")


@warning("leave the cap out: memory decides then", "backend#183", "backend#293")
@about
def cache_holds_a_batch(of: Case) -> Iterator[Problem]:
    """The KV cache holds a batch of full requests; else they wait, or are paused."""
    for index, need, cap, batch in _full_requests(of):
        if need <= cap < need * batch:
            what = f"{of.path}.serving.max_tokens_in_paged_kv_cache: {cap / need:.1f} of {batch} full requests fit"
            facts = (("got", str(cap)), (f"shapes[{index}]", f"{batch} x (isl + osl) = {need * batch}"))
            yield Problem(what=what, facts=facts, hint="leave it out: memory decides then")


@warning("leave use_paged_context_fmha out", "backend#271")
@about
def paged_context_used(of: Case) -> Iterator[Problem]:
    """Paged context attention costs a little; it is for chunked context and KV-cache reuse."""
    asked = of.build.get("use_paged_context_fmha") in (True, "enable")
    if asked and not of.served("enable_kv_cache_reuse", "enable_chunked_context"):
        what = f"{of.path}.build.use_paged_context_fmha: nothing that is served needs it"
        yield Problem(what=what, hint="write enable_chunked_context or enable_kv_cache_reuse = true in `serving`")


@warning("serve with chunked context, or without streaming", "backend#293")
@about
def policy_kept(of: Case) -> Iterator[Problem]:
    """Up to 0.11.0 a streaming engine without chunked context overrules max_utilization."""
    asked = of.serving.get("batch_scheduler_policy") == "max_utilization" and of.serving.get("streaming", True)
    if asked and number(of.release.version) <= (0, 11, 0) and not of.served("enable_chunked_context"):
        what = f"{of.path}.serving.batch_scheduler_policy: {of.release.version} will use guaranteed_no_evict"
        yield Problem(what=what, hint="write enable_chunked_context = true, or streaming = false")


RULES: tuple[Rule[Setting], ...] = (
    settings_known,
    serving_fits_engine,
    logits_returned,
    tokens_hold_a_prompt,
    cache_holds_a_request,
    cache_holds_a_batch,
    paged_context_used,
    policy_kept,
)


def _full_requests(of: Case) -> Iterator[tuple[int, int, int, int]]:
    """(index of the shape, tokens of one full request, tokens that the KV cache is capped to, batch)."""
    cap = of.number("serving", "max_tokens_in_paged_kv_cache")
    if cap is not None:
        for index, shape in enumerate(of.setting.entry.shapes):
            yield index, shape.isl + shape.osl, cap, shape.batch
