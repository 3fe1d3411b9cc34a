"""Serving options that a release parses and does not heed, or takes literally: nothing fails, and nothing works.

Read in the C++ and Python sources of each release's Triton backend.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rules.case import Case, about
from rules.errors import Problem
from rules.release import number
from rules.rule import Rule, warning
from rules.variant import Setting

__all__ = ["RULES"]

_Version = tuple[int, ...]
_EVER: _Version = (99,)


@dataclass(frozen=True, kw_only=True)
class Unheeded:
    """`option` does nothing from release `first` up to `last`, with this `triton_backend`, and `why`."""

    option: str
    backend: str
    first: _Version
    last: _Version
    why: str


_UNHEEDED = (
    *(
        Unheeded(option=option, backend="tensorrtllm", first=(0, 12, 0), last=(0, 14, 0), why=f"it reads {key} instead")
        for option, key in (
            ("multi_block_mode", "multiBlockMode"),
            ("enable_context_fmha_fp32_acc", "enableContextFMHAFP32Acc"),
        )
    ),
    *(
        Unheeded(option=option, backend="python", first=(0, 10, 0), last=_EVER, why="the Python model does not read it")
        for option in ("participant_ids", "num_nodes", "speculative_decoding_fast_logits")
    ),
)


@warning("leave it out, or change `release`", "backend#293", "backend#532")
@about
def option_heeded(of: Case) -> Iterator[Problem]:
    """Some releases have a placeholder for an option and read another name, or none."""
    version, backend = number(of.release.version), of.serving.get("triton_backend", "tensorrtllm")
    for one in _UNHEEDED:
        if one.option in of.serving and one.backend == backend and one.first <= version <= one.last:
            what = f"{of.path}.serving.{one.option}: does nothing in {of.release.version}"
            yield Problem(what=what, facts=(("why", one.why),), hint="leave it out, or change `release`")


@warning("write one list of GPUs", "backend#166", "server#7255")
@about
def gpu_lists_understood(of: Case) -> Iterator[Problem]:
    """Lists of GPUs for several instances, 0,1;2,3, are read from 0.12.0 on, and never by the Python model."""
    given, python = of.serving.get("gpu_device_ids"), of.serving.get("triton_backend") == "python"
    if isinstance(given, str) and ";" in given and (python or number(of.release.version) < (0, 12, 0)):
        who = "the Python model" if python else of.release.version
        what = f"{of.path}.serving.gpu_device_ids: {who} takes one list, and reads {given!r} as such"
        yield Problem(what=what, hint="write 0,1: `doit serve --gpus` places several servers")


@warning("as many BLS instances as the batch, or serve the ensemble", "backend#293", "backend#532")
@about
def bls_instances_for_batch(of: Case) -> Iterator[Problem]:
    """An instance of tensorrt_llm_bls answers one request at a time: fewer than the batch leave the engine idle."""
    count = of.number("serving", "bls_instance_count")
    largest = max(shape.batch for shape in of.setting.entry.shapes)
    if count and count < largest:
        what = f"{of.path}.serving.bls_instance_count: {count} requests at a time of a batch of {largest}"
        yield Problem(what=what, hint=f"write {largest}, or send requests to `ensemble`")


@warning("leave accumulate_tokens out, or generate with one beam", "backend#332", "backend#606")
@about
def accumulation_of_one_beam(of: Case) -> Iterator[Problem]:
    """Accumulated text, which keeps CJK and emoji whole in streams, is made for one beam only."""
    beams = of.number("build", "max_beam_width") or 1
    if of.served("accumulate_tokens") and beams > 1:
        what = f"{of.path}.serving.accumulate_tokens: not with {beams} beams"
        yield Problem(what=what, hint="leave it out, or max_beam_width")


@warning("leave batching_strategy out", "backend#293", "TRT-LLM#1255")
@about
def batching_in_flight(of: Case) -> Iterator[Problem]:
    """V1 batching waits for a whole batch to end: chunked context, KV-cache reuse and policies are in-flight's."""
    if of.serving.get("batching_strategy") not in ("V1", "v1"):
        return
    lost = of.served("enable_chunked_context", "enable_kv_cache_reuse")
    lost += [name for name in ("batch_scheduler_policy",) if name in of.serving]
    if lost:
        what = f"{of.path}.serving.batching_strategy: V1 does not heed {', '.join(lost)}"
        yield Problem(what=what, hint="leave it out: inflight_fused_batching is what is rendered then")


RULES: tuple[Rule[Setting], ...] = (
    option_heeded,
    gpu_lists_understood,
    bls_instances_for_batch,
    accumulation_of_one_beam,
    batching_in_flight,
)
