"""What an entry intends, as the command lines of the pinned release of TensorRT-LLM.

Sources of what each release wants: the facts behind rules/releases/ (scripts/releases.py), and its own programs where a
comment names one. A limit whose default drifted between releases (max_batch_size 1, 256, 2048) is always written out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rules.flags import words
from rules.release import Program, Release, number
from rules.spec import Calibration, Parallelism, Shape

__all__ = [
    "AWQ_BLOCK",
    "CALIBRATED",
    "FAMILIES",
    "LIMITS",
    "MAX_NUM_TOKENS",
    "OWN",
    "TIMING_CACHE",
    "Intent",
    "build",
    "build_flags",
    "convert",
    "measured",
    "num_tokens",
    "pageable",
    "quantize",
    "typed",
    "upstream_program",
]

# config.json's model_type -> the family whose convert_checkpoint.py reads it.
FAMILIES: Mapping[str, str] = {"qwen": "qwen", "qwen2": "qwen", "llama": "llama", "mistral": "llama", "gpt2": "gpt"}
# Precisions whose scales are measured on texts, and what quantize.py calls them.
CALIBRATED: Mapping[str, str] = {"fp8": "fp8", "int8_sq": "int8_sq", "int4_awq": "int4_awq"}
WEIGHT_ONLY: Mapping[str, str] = {"int8_wo": "int8", "int4_wo": "int4"}
AWQ_BLOCK = 128
# Flags of trtllm-build that are not the user's: what they come from instead.
OWN: Mapping[str, str] = {
    "checkpoint_dir": "it is the checkpoint stage's output",
    "output_dir": "it is the engine stage's output",
    "model_config": "limits come from `shapes`",
    "build_config": "limits come from `shapes`",
    "max_batch_size": "write `batch` in `shapes`",
    "max_input_len": "write `isl` in `shapes`",
    "max_output_len": "write `osl` in `shapes`",
    "max_seq_len": "write `isl` and `osl` in `shapes`",
    "max_decoder_seq_len": "write `isl` and `osl` in `shapes`",
    "tp_size": "write `parallelism`",
    "pp_size": "write `parallelism`",
    "auto_parallel": "write `parallelism`",
    "weight_only_precision": "write `precisions`",
    "strongly_typed": "follows from the precision",
    "timing_cache": "timing caches are the runner's",
    "input_timing_cache": "timing caches are the runner's",
    "output_timing_cache": "timing caches are the runner's",
    "dry_run": "`doit plan` shows the command without running it",
    # names of 0.7, which guides still have
    "use_gpt_attention_plugin": "write `gpt_attention_plugin`: it is called so since 0.8",
    "use_gemm_plugin": "write `gemm_plugin`: it is called so since 0.8",
    "use_lookup_plugin": "write `lookup_plugin`: it is called so since 0.8",
    "enable_context_fmha": "write `context_fmha`: it is called so since 0.8",
    "enable_context_fmha_fp32_acc": "write `context_fmha_fp32_acc`: it is called so since 0.8",
}
# What of an engine's config.json is compared with what was asked for.
LIMITS = ("max_batch_size", "max_input_len", "max_output_len", "max_seq_len", "max_beam_width", "max_num_tokens")
TIMING_CACHE = "model.cache"  # upstream's own default name, in the folder where the command runs
MAX_NUM_TOKENS = 8192  # the default since 0.11.0: more costs activation memory and gains nothing


@dataclass(frozen=True, kw_only=True)
class Intent:
    """What an engine is wanted for. `sm` is compute capability x 10; `given` are flags written out by the user.

    `paged_context` says that chunked context or KV-cache reuse will be served.
    """

    precision: str
    dtype: str
    kv_cache_dtype: str = "auto"
    parallelism: Parallelism
    sm: int
    paged_context: bool = False
    given: Mapping[str, object] = field(default_factory=dict)


def build(release: Release, intent: Intent, shape: Shape) -> tuple[str, ...]:
    """The command line of trtllm-build. `{checkpoint}` and `{out}` are filled in when it runs."""
    return typed(release, build_flags(release, intent, shape))


def typed(release: Release, values: Mapping[str, object]) -> tuple[str, ...]:
    """The command line of trtllm-build with these flags, in the order of its own table."""
    flags = release.flags("build")
    line = ["trtllm-build", "--checkpoint_dir", "{checkpoint}", "--output_dir", "{out}"]
    return (*line, *(part for name, flag in flags.items() if name in values for part in words(flag, values[name])))


def build_flags(release: Release, intent: Intent, shape: Shape) -> dict[str, object]:
    """Flag -> value, without the two folders. What the user gave wins over what follows from the intent."""
    wanted = {
        **_limits(release, intent, shape),
        **_plugins(release, intent),
        **_caching(release, intent),
        **_kernels(release, intent),
        **_parallel(release, intent),
        # From 0.9.0: 0.8.0 has a --timing_cache, which nothing in its build.py reads.
        **dict.fromkeys(("input_timing_cache", "output_timing_cache"), TIMING_CACHE),
    }
    given = {name: value for name, value in intent.given.items() if name in release.flags("build")}
    if intent.parallelism.world_size == 1:
        given.pop("use_custom_all_reduce", None)
    return {name: value for name, value in wanted.items() if name in release.flags("build")} | given


def num_tokens(intent: Intent, shape: Shape) -> int:
    """Tokens in one step: a whole batch of prompts up to 8192, but at least one prompt and one step of the batch."""
    given = intent.given.get("max_num_tokens")
    if isinstance(given, int):
        return given
    beams = intent.given.get("max_beam_width", 1)
    step = shape.batch * (beams if isinstance(beams, int) else 1)
    return max(shape.isl, step, min(shape.batch * shape.isl, MAX_NUM_TOKENS))


def convert(release: Release, intent: Intent, family: str) -> tuple[str, ...]:
    """The release's convert_checkpoint.py for fp16, bf16 and weight-only precisions; `{script}` and so on as above."""
    program: Program = _convert_program(family)
    values: dict[str, object] = {
        "model_dir": "{source}",
        "output_dir": "{out}",
        "dtype": intent.dtype,
        "tp_size": intent.parallelism.tp,
        "pp_size": intent.parallelism.pp,
    }
    if intent.precision in WEIGHT_ONLY:
        values |= {"use_weight_only": True, "weight_only_precision": WEIGHT_ONLY[intent.precision]}
    if intent.kv_cache_dtype == "int8":
        values["int8_kv_cache"] = True
    return _script(release, program, values)


def quantize(release: Release, intent: Intent, calibration: Calibration | None) -> tuple[str, ...]:
    """The release's quantize.py, for precisions that are calibrated. Before 0.10.0 it could not be given texts."""
    values: dict[str, object] = {
        "model_dir": "{source}",
        "output_dir": "{out}",
        "dtype": intent.dtype,
        "qformat": CALIBRATED[intent.precision],
        "tp_size": intent.parallelism.tp,
        "pp_size": intent.parallelism.pp,
    }
    if intent.precision == "int4_awq":
        values["awq_block_size"] = AWQ_BLOCK
    if intent.kv_cache_dtype != "auto":
        values["kv_cache_dtype"] = intent.kv_cache_dtype
    if calibration:
        values |= {"calib_dataset": "{calibration}", "calib_size": calibration.size}
        values["calib_max_seq_length"] = values["max_seq_length"] = calibration.length
    return _script(release, "quantize", values)


def measured(precision: str, kv_cache_dtype: object) -> bool:
    """Whether scales are measured on texts: those of the weights and activations, or of a quantized KV cache alone."""
    return precision in CALIBRATED or kv_cache_dtype != "auto"


def pageable(precision: str, kv_cache_dtype: object) -> bool:
    """Whether context attention can read the paged KV cache, which chunked context and reuse need.

    builder.py stops, or turns it off, for an INT8 cache and for an FP8 cache of weights that are not FP8.
    """
    return kv_cache_dtype == "auto" or (kv_cache_dtype == "fp8" and precision == "fp8")


def upstream_program(precision: str, family: str) -> Program:
    """Which of the release's programs makes a checkpoint of this precision."""
    return "quantize" if precision in CALIBRATED else _convert_program(family)


def _convert_program(family: str) -> Program:
    programs: Mapping[str, Program] = {"gpt": "convert_gpt", "llama": "convert_llama", "qwen": "convert_qwen"}
    return programs[family]


def _script(release: Release, program: Program, values: Mapping[str, object]) -> tuple[str, ...]:
    flags = release.flags(program)
    return tuple(part for name, flag in flags.items() if name in values for part in words(flag, values[name]))


def _limits(release: Release, intent: Intent, shape: Shape) -> dict[str, object]:
    lengths: dict[str, object] = {"max_input_len": shape.isl}
    if release.flag("build", "max_seq_len"):
        lengths["max_seq_len"] = shape.isl + shape.osl
    else:
        lengths["max_output_len"] = shape.osl
    return {
        "max_batch_size": shape.batch,
        **lengths,
        "max_beam_width": 1,
        "max_num_tokens": num_tokens(intent, shape),
    }


def _plugins(release: Release, intent: Intent) -> dict[str, object]:
    """Up to 0.10.0 a plugin has to be told the checkpoint's type; from 0.11.0 `auto` takes it from there.

    With FP8 the GEMM plugin stays off: TensorRT's own kernels are the faster ones, except for small batches.
    """
    auto = "auto" in release.flags("build")["gpt_attention_plugin"].choices
    dtype = "auto" if auto else intent.dtype
    values: dict[str, object] = {"gpt_attention_plugin": dtype, "gemm_plugin": dtype}
    if intent.precision == "fp8":
        values["gemm_plugin"] = "disable"
        values["strongly_typed"] = True  # a flag up to 0.10.0 (upstream's FP8 examples), always on later
    if intent.parallelism.world_size > 1:
        values["nccl_plugin"] = dtype
    return values


def _caching(release: Release, intent: Intent) -> dict[str, object]:
    """In-flight batching needs a paged KV cache and packed input. Deprecated since 0.13.0: --paged_kv_cache."""
    flags = release.flags("build")
    kind: dict[str, object] = {"kv_cache_type": "paged"} if "kv_cache_type" in flags else {"paged_kv_cache": True}
    return {
        **kind,
        "remove_input_padding": True,
        "tokens_per_block": flags["tokens_per_block"].default,
        "use_paged_context_fmha": pageable(intent.precision, intent.kv_cache_dtype)
        and (intent.paged_context or flags["use_paged_context_fmha"].default == "enable"),
    }


def _kernels(release: Release, intent: Intent) -> dict[str, object]:
    """FP8 in context attention is for FP8 checkpoints on Hopper and later; from 0.19.0 it is on unless turned off.

    The fused MLP is on from 0.13.0, where it became a switch.
    """
    fused = release.flag("build", "use_fused_mlp")
    return {
        "use_fp8_context_fmha": intent.precision == "fp8" and intent.sm >= 90,
        **({"use_fused_mlp": fused.default == "enable"} if fused and fused.switch else {}),
    }


def _parallel(release: Release, intent: Intent) -> dict[str, object]:
    """Ranks are built in parallel; workers beyond the GPUs there are do nothing (build.py takes the minimum)."""
    values: dict[str, object] = {"workers": intent.parallelism.world_size}
    if intent.parallelism.world_size > 1 and number(release.version) < (0, 12, 0):
        values["use_custom_all_reduce"] = True
    return values
