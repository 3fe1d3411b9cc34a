"""How much memory a model takes: weights, KV cache and activations, in bytes, from its dimensions.

Sources: config.json's own arithmetic; TensorRT-LLM's docs/source/reference/memory.md for what a runtime allocates. The
tests hold each formula to published figures and to engines that are built there; docs/checks.md says how near they are.
"""

from __future__ import annotations

from dataclasses import dataclass

from rules.source import Dims
from rules.spec import Parallelism

__all__ = [
    "GIB",
    "Cut",
    "activations",
    "cache_bytes",
    "exported",
    "known",
    "linear_bytes",
    "parameters",
    "to_build",
    "to_make",
    "weights",
]

GIB = 1 << 30
# model_type -> how its blocks differ from Llama's: no gate in the MLP; a bias on all or on the QKV projections.
_UNGATED = ("gpt2", "gpt_neox", "gptj", "opt", "bloom", "falcon", "phi", "starcoder2")
_QKV_BIAS = ("qwen2", "qwen2_moe", "chatglm")
_LEARNED_POSITIONS = ("gpt2", "opt")
_SCALE = 2  # bytes
_EXPORTED_GROUP = 64  # rules/backends/openvino.py's group_size, when none is given
# Precision -> bytes of a weight in a linear layer, and how many of them share one scale (0: a scale per row or none).
_LINEAR = {
    "fp32": (4.0, 0),
    "fp16": (2.0, 0),
    "bf16": (2.0, 0),
    "fp8": (1.0, 0),
    "int8_sq": (1.0, 0),
    "int8_wo": (1.0, 0),
    "int4_wo": (0.5, 0),
    "int4_awq": (0.5, 128),
}


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How a model is laid out: its linear layers in `precision`, all else in `width` bytes, split over ranks.

    `embedding_whole`: on every rank of the first stage, as convert_checkpoint.py leaves it without
    --use_parallel_embedding; ModelOpt splits it over tp (measured: benchmarks/results/h200-quantize.txt).
    """

    precision: str
    parallelism: Parallelism
    width: int = 2
    embedding_whole: bool = False


def known(precision: str) -> bool:
    """Whether it is known how many bytes a weight of this precision takes."""
    return precision in _LINEAR


def linear_bytes(precision: str) -> float:
    """Bytes per weight of a linear layer, its share of a scale included."""
    size, group = _LINEAR[precision]
    return size + (_SCALE / group if group else 0)


def parameters(dims: Dims) -> int:
    """All parameters of the model; 0 when its config.json says too little."""
    if not (dims.vocab and dims.hidden and dims.layers and dims.intermediate):
        return 0
    return dims.layers * (_linear(dims, tp=1) + _small(dims)) + _embedding(dims) + _head(dims) + _rest(dims)


def weights(dims: Dims, cut: Cut) -> int:
    """Bytes of the largest rank's weights; 0 when config.json says too little.

    Tp splits linear layers, the output layer and mostly the embedding, pp the layers. Neither of the ends is quantized.
    """
    if not parameters(dims):
        return 0
    tp, pp = cut.parallelism.tp, cut.parallelism.pp
    layer = _linear(dims, tp=tp) * linear_bytes(cut.precision) + _small(dims) * cut.width
    looked_up = _embedding(dims) if cut.embedding_whole else -(-_embedding(dims) // tp)
    first = (looked_up + _rest(dims)) * cut.width
    last = -(-dims.vocab // tp) * dims.hidden * cut.width  # an engine has its own copy of a tied one
    ends = first + last if pp == 1 else max(first, last)
    return int(layer * -(-dims.layers // pp) + ends)


def exported(dims: Dims, precision: str) -> int:
    """Bytes of the embedded engine's weights: embedding and output layer are compressed too, to 8 bits for int4."""
    if not parameters(dims):
        return 0
    linear = linear_bytes(precision) + (_SCALE / _EXPORTED_GROUP if precision == "int4_wo" else 0)
    outer = max(1.0, linear_bytes(precision))
    layers = dims.layers * (_linear(dims, tp=1) * linear + _small(dims) * outer)
    return int(layers + (_embedding(dims) + _head(dims) + _rest(dims)) * outer)


def cache_bytes(dims: Dims, parallelism: Parallelism, width: int) -> int:
    """Bytes that one token takes in the KV cache of one rank, `width` bytes a number: a key and a value per layer."""
    heads = max(1, -(-dims.kv_heads // parallelism.tp))
    return 2 * -(-dims.layers // parallelism.pp) * heads * dims.head_size * width


def to_make(dims: Dims, stage: str, width: int = 2) -> int:
    """Bytes of host memory that making a checkpoint takes: the model whole in `width` bytes, and what becomes of it."""
    return 2 * width * parameters(dims) if stage == "checkpoint" else 0


def to_build(dims: Dims, cut: Cut) -> int:
    """Bytes of host memory that one worker of trtllm-build takes: the rank as read, in the network and serialised.

    triton_cli's README asks for 48 GB for models of 7 to 8 billion parameters in 16 bits, three times their weights.
    """
    return 3 * weights(dims, cut)


def activations(dims: Dims, cut: Cut, tokens: int, *, sequences: int, all_logits: bool = False) -> int:
    """Bytes that TensorRT sets aside for steps of `tokens` tokens of `sequences` sequences (times beams).

    It keeps one block's tensors at a time: the residual, its norm and the attention's output, the gate and the up
    projection; and logits, of the last token of each sequence or of all. FP8 was seen to take twice as much.
    """
    block = tokens * (3 * dims.hidden + 2 * dims.intermediate // cut.parallelism.tp)
    logits = (tokens if all_logits else sequences) * dims.vocab
    return 2 * (block * (2 if cut.precision == "fp8" else 1) + logits)


def _linear(dims: Dims, tp: int) -> int:
    """Weights of one layer's linear layers on one of `tp` ranks."""
    width, kv_heads = dims.head_size, max(1, -(-dims.kv_heads // tp))
    attention = dims.hidden * width * (2 * dims.heads // tp + 2 * kv_heads)
    matrices = 2 if dims.family in _UNGATED else 3
    mlp = matrices * dims.hidden * dims.intermediate * max(1, dims.experts) + matrices * dims.hidden * dims.shared
    return attention + mlp // tp + dims.hidden * dims.experts


def _small(dims: Dims) -> int:
    """Norms and biases of one layer."""
    qkv = dims.head_size * (dims.heads + 2 * dims.kv_heads)
    if dims.family == "gpt2":  # every linear layer and both norms have a bias
        return 4 * dims.hidden + qkv + dims.hidden + dims.intermediate + dims.hidden
    return 2 * dims.hidden + (qkv if dims.family in _QKV_BIAS else 0)


def _embedding(dims: Dims) -> int:
    positions = dims.max_positions if dims.family in _LEARNED_POSITIONS else 0
    return (dims.vocab + positions) * dims.hidden


def _head(dims: Dims) -> int:
    return 0 if dims.tied else dims.vocab * dims.hidden


def _rest(dims: Dims) -> int:
    """The last norm."""
    return dims.hidden * (2 if dims.family == "gpt2" else 1)
