"""A model can be cut into the ranks and run at the lengths that are asked for: its config.json says whether.

Each way in which these are known to fail costs a download, a conversion and a build when it is found by trying.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from rules import memory
from rules.checks.entry import Subject
from rules.errors import Problem
from rules.rule import Rule, error, warning

__all__ = ["RULES"]

# 14b in qwen1_5_14b_chat, 0.5B in Qwen2-0.5B; not the 7b of 8x7b and the 3b of 30b_a3b, which count something else.
_BILLIONS = re.compile(r"(?<![0-9a-z])(?:(?P<before>[0-9]+)[._])?(?P<last>[0-9]+)b(?![a-z0-9])")
_RANKS = 1024  # more than one engine has: where a list of what is possible ends
_LEAST, _MOST = 0.75, 1.35  # Qwen1.5-7B has 7.7 billion, gemma-7b 8.5, Qwen2.5-3B 3.1


@error("leave `parallelism` out")
def one_rank_on_a_cpu(subject: Subject) -> Iterator[Problem]:
    """An engine family that runs on the CPU has one rank."""
    for toolchain, family in subject.families():
        for parallelism in subject.entry.parallelisms():
            if family.device == "cpu" and parallelism.world_size > 1:
                what = (
                    f"{subject.path}.parallelism: toolchain {toolchain!r} runs on the CPU and cannot do {parallelism}"
                )
                yield Problem(what=what, hint="leave `parallelism` out")


@error("take a tp that divides both, or a multiple of the KV heads", "TRT-LLM#2200", "TRT-LLM#2198", "vllm#414")
def tp_divides_heads(subject: Subject) -> Iterator[Problem]:
    """Tp divides the attention heads, and the KV heads or is a multiple of them (then they are replicated)."""
    dims = subject.dims
    if dims is None or not dims.heads:
        return
    for parallelism in subject.entry.parallelisms():
        if not dims.divides(parallelism.tp):
            legal = [tp for tp in range(1, min(dims.heads, _RANKS) + 1) if dims.divides(tp)]
            facts = (("attention heads", str(dims.heads)), ("KV heads", str(dims.kv_heads)))
            what = f"{subject.path}.parallelism: tp {parallelism.tp} does not divide the heads"
            yield Problem(what=what, facts=facts, hint=f"tp may be {', '.join(map(str, legal))}")


@warning("a tp up to the number of KV heads keeps each of them once", "TRT-LLM#2310")
def kv_heads_replicated(subject: Subject) -> Iterator[Problem]:
    """A tp beyond the KV heads copies them: the KV cache of all ranks together grows with it."""
    dims = subject.dims
    for parallelism in subject.entry.parallelisms():
        if dims and 0 < dims.kv_heads < parallelism.tp and dims.divides(parallelism.tp):
            times = parallelism.tp // dims.kv_heads
            what = (
                f"{subject.path}.parallelism: tp {parallelism.tp} keeps each of {dims.kv_heads} KV heads {times} times"
            )
            yield Problem(what=what, hint=f"tp{dims.kv_heads}pp{times} needs the memory once on as many GPUs")


@error("lower pp", "TRT-LLM#855")
def pp_within_layers(subject: Subject) -> Iterator[Problem]:
    """There are at least as many layers as pipeline stages."""
    dims = subject.dims
    for parallelism in subject.entry.parallelisms():
        if dims and dims.layers and parallelism.pp > dims.layers:
            what = f"{subject.path}.parallelism: {parallelism.pp} pipeline stages for {dims.layers} layers"
            yield Problem(what=what, hint=f"pp may be up to {dims.layers}")


@error("lower tp x pp, or name a platform with more GPUs", "TRT-LLM#2021", "TRT-LLM#1047", "backend#564")
def ranks_within_platform(subject: Subject) -> Iterator[Problem]:
    """The platform has a GPU for each rank, on one node or on several."""
    platform = subject.spec.platforms.get(subject.entry.platform or "")
    for parallelism in subject.entry.parallelisms():
        if platform and parallelism.world_size > platform.gpus * platform.nodes:
            there = platform.gpus * platform.nodes
            what = f"{subject.path}.parallelism: {parallelism} needs {parallelism.world_size} GPUs"
            facts = (("platform", f"{subject.entry.platform}: {there} GPUs"),)
            yield Problem(what=what, facts=facts, hint=f"tp x pp may be up to {there}")


@error("make tp x pp a multiple of the node's GPUs")
def ranks_fill_nodes(subject: Subject) -> Iterator[Problem]:
    """Ranks on several nodes fill each of them: the nodes of a group are alike."""
    platform = subject.spec.platforms.get(subject.entry.platform or "")
    for parallelism in subject.entry.parallelisms():
        ranks = parallelism.world_size
        if platform and platform.gpus < ranks <= platform.gpus * platform.nodes and ranks % platform.gpus:
            what = f"{subject.path}.parallelism: {parallelism} leaves GPUs of a node without a rank"
            facts = (("platform", f"{subject.entry.platform}: {platform.gpus} GPUs a node"),)
            yield Problem(what=what, facts=facts, hint=f"tp x pp may be a multiple of {platform.gpus}")


@error("lower isl or osl", "TRT-LLM#2702", "TRT-LLM#4641", "backend#130")
def lengths_within_positions(subject: Subject) -> Iterator[Problem]:
    """Isl + osl fits the positions the model was made for, rope scaling included."""
    dims = subject.dims
    for index, shape in enumerate(subject.entry.shapes):
        if dims and dims.max_positions and shape.isl + shape.osl > dims.max_positions:
            facts = (("isl + osl", str(shape.isl + shape.osl)), ("max_position_embeddings", str(dims.max_positions)))
            what = f"{subject.path}.shapes[{index}]: is longer than the model's positions"
            yield Problem(what=what, facts=facts, hint="lower isl or osl")


@error("take another model, or another engine family", "TRT-LLM#2109", "vllm#2652")
def head_size_multiple_of_8(subject: Subject) -> Iterator[Problem]:
    """The attention kernels of engines for GPUs read heads of a multiple of 8 columns."""
    dims = subject.dims
    if dims is None or not dims.heads or all(family.device == "cpu" for _, family in subject.families()):
        return
    said = dims.head_size != dims.hidden // dims.heads  # config.json's own head_dim
    size = dims.head_size if said else dims.hidden / dims.heads
    if size % 8:
        facts = (("head size", f"{size:g}" if said else f"{dims.hidden} / {dims.heads} = {size:g}"),)
        hint = "take another model, or another engine family"
        yield Problem(what=f"{subject.path}.source: the head size is not a multiple of 8", facts=facts, hint=hint)


@warning("take a tp that divides the vocabulary, or know that it is padded", "TRT-LLM#855")
def vocabulary_padded(subject: Subject) -> Iterator[Problem]:
    """A vocabulary that tp does not divide is padded: logits then have more columns than the tokenizer has tokens."""
    dims = subject.dims
    for parallelism in subject.entry.parallelisms():
        missing = -(dims.vocab if dims else 0) % parallelism.tp
        if dims and missing:
            what = f"{subject.path}.parallelism: tp {parallelism.tp} pads the vocabulary by {missing}"
            facts = (("vocabulary", f"{dims.vocab} -> {dims.vocab + missing}"),)
            yield Problem(what=what, facts=facts, hint="who reads logits must not read the last columns")


@warning("name the model that is meant, in `source` or in the entry's name")
def name_says_size(subject: Subject) -> Iterator[Problem]:
    """A model whose name says 14b has about as many parameters: else the wrong checkpoint is built under that name."""
    counted = memory.parameters(subject.dims) / 1e9 if subject.dims else 0
    for where, name in (("", subject.path.removeprefix("models.")), (".source", subject.entry.source.lower())):
        for said in _BILLIONS.finditer(name):
            if counted and not any(_LEAST * one <= counted <= _MOST * one for one in _readings(said)):
                facts = (("source", subject.entry.source), ("parameters", f"{counted:.1f} billion"))
                hint = "is it the right checkpoint?"
                yield Problem(what=f"{subject.path}{where}: says {said[0]}", facts=facts, hint=hint)
                return


RULES: tuple[Rule[Subject], ...] = (
    one_rank_on_a_cpu,
    tp_divides_heads,
    kv_heads_replicated,
    pp_within_layers,
    ranks_within_platform,
    ranks_fill_nodes,
    lengths_within_positions,
    head_size_multiple_of_8,
    vocabulary_padded,
    name_says_size,
)


def _readings(said: re.Match[str]) -> tuple[float, ...]:
    """1_5b may be 5, or 1.5."""
    return (float(said["last"]), *((float(f"{said['before']}.{said['last']}"),) if said["before"] else ()))
