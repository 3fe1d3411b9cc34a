"""A GPU holds the weights, the activations and a KV cache worth serving: told in tokens and full-length requests.

The arithmetic is rules/memory.py's; what it is an estimate of, and how near it comes, is in docs/checks.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from rules import memory, translate
from rules.case import Case, about
from rules.errors import Problem
from rules.memory import GIB, Cut
from rules.rule import Rule, error, warning
from rules.source import Dims
from rules.spec import Parallelism, Platform, Shape
from rules.variant import Setting

__all__ = ["RULES", "Budget"]

_USABLE = 0.98  # of what a GPU is sold as: 79.1 of 80 GiB on an H100, 93.1 of 94 on its larger sister
_RUNTIME = int(0.75 * GIB)  # CUDA context, libraries and decoder, from the log in memory.md
_NCCL = int(0.5 * GIB)  # its buffers, where ranks talk to one another
_FRACTION = 0.9  # kv_cache_free_gpu_mem_fraction when none is set
_MANY_TOKENS = 16384  # trtllm-build warns of more in a step


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What one rank of an engine for `shape` takes of a GPU, in bytes, and what its KV cache then holds."""

    of: Case
    dims: Dims
    platform: Platform
    cut: Cut
    shape: Shape

    @property
    def usable(self) -> int:
        """What there is."""
        return int(self.platform.memory_gib * GIB * _USABLE)

    @property
    def weights(self) -> int:
        """The largest rank's."""
        return memory.weights(self.dims, self.cut)

    @property
    def tokens_a_step(self) -> int:
        """max_num_tokens, as the engine is built with."""
        wanted = translate.Intent(
            precision=self.cut.precision, dtype="", parallelism=self.cut.parallelism, sm=0, given=self.of.build
        )
        return translate.num_tokens(wanted, self.shape)

    @property
    def beams(self) -> int:
        """Sequences that one request keeps while it generates."""
        return self.of.number("build", "max_beam_width") or 1

    @property
    def activations(self) -> int:
        """Set aside for the largest step."""
        every = any(self.of.build.get(f"gather_{of}_logits") is True for of in ("context", "all_token"))
        sequences = self.shape.batch * self.beams
        return memory.activations(self.dims, self.cut, self.tokens_a_step, sequences=sequences, all_logits=every)

    @property
    def runtime(self) -> int:
        """Everything else."""
        return _RUNTIME + (_NCCL if self.cut.parallelism.world_size > 1 else 0)

    @property
    def left(self) -> int:
        """What the KV cache takes its fraction of; not below 0."""
        return max(0, self.usable - self.weights - self.activations - self.runtime)

    @property
    def fraction(self) -> float:
        """The KV cache's, of what is left; the default where what is given is none, which another rule tells."""
        given = self.of.serving.get("kv_cache_free_gpu_mem_fraction")
        return float(given) if isinstance(given, (int, float)) and 0 <= given < 1 else _FRACTION

    @property
    def token(self) -> int:
        """Bytes of one token in the KV cache."""
        return memory.cache_bytes(self.dims, self.cut.parallelism, 1 if self.of.kv_cache_dtype != "auto" else 2)

    @property
    def tokens(self) -> int:
        """Tokens that the KV cache holds."""
        fit = int(self.left * self.fraction) // self.token
        return min(fit, self.of.number("serving", "max_tokens_in_paged_kv_cache") or fit)

    @property
    def request(self) -> int:
        """Tokens that one full-length request keeps there."""
        window = self.of.number("serving", "max_attention_window_size")
        tokens = self.shape.isl + self.shape.osl * self.beams
        return min(tokens, window) if window else tokens

    @property
    def path(self) -> str:
        """Where it stands: the entry, and which point of it."""
        return f"{self.of.path}: {self.cut.precision} on {self.cut.parallelism}"

    def facts(self) -> tuple[tuple[str, str], ...]:
        """The sum, as a person would write it down."""
        return (
            ("a GPU", f"{self.platform.memory_gib} GiB, {_gib(self.usable)} of it to be had"),
            ("weights", f"{_gib(self.weights)} a rank"),
            ("activations", f"about {_gib(self.activations)} for steps of {self.tokens_a_step:,} tokens"),
            ("runtime", f"about {_gib(self.runtime)}"),
            ("KV cache", f"{self.fraction:g} of {_gib(self.left)}, at {self.token / 1024:g} KiB a token"),
        )

    def more_ranks(self) -> str:
        """The smallest tp of the platform on which a batch fits, as a hint; or what else there is. First those that
        fill the node, such as 8 of 8 GPUs before 5.
        """
        gpus = self.platform.gpus
        wider_ones = range(self.cut.parallelism.tp + 1, min(gpus, self.dims.heads) + 1)
        for tp in sorted(wider_ones, key=lambda tp: (gpus % (tp * self.cut.parallelism.pp) != 0, tp)):
            parallelism = Parallelism(tp=tp, pp=self.cut.parallelism.pp)
            wider = replace(self, cut=replace(self.cut, parallelism=parallelism))
            enough = wider.tokens >= self.shape.batch * self.request
            if self.dims.divides(tp) and parallelism.world_size <= gpus and enough:
                return f"{parallelism} holds a batch"
        return "lower the batch or the lengths, or quantize"


@error("more ranks, fewer bytes a weight, or a smaller max_num_tokens", "TRT-LLM#401", "backend#625", estimate=True)
@about
def weights_fit_gpu(of: Case) -> Iterator[Problem]:
    """Weights, activations and the runtime leave room on each GPU."""
    for budgets in _points(of):
        worst = max(budgets, key=lambda one: one.activations)
        if worst.left == 0:
            what = f"{worst.path} does not fit a GPU: nothing is left for the KV cache"
            yield Problem(what=what, facts=worst.facts()[:-1], hint=worst.more_ranks())


@error("more ranks, a quantized KV cache, or shorter requests", "backend#303", "backend#462", estimate=True)
@about
def memory_holds_a_request(of: Case) -> Iterator[Problem]:
    """What is left for the KV cache holds at least one full-length request."""
    for budgets in _points(of):
        worst = max(budgets, key=lambda one: one.request)
        if worst.left and worst.tokens < worst.request and not _capped(worst):
            what = (
                f"{worst.path}: {worst.tokens:,} tokens fit the KV cache; one full-length request is {worst.request:,}"
            )
            yield Problem(what=what, facts=worst.facts(), hint=worst.more_ranks())


@warning("more ranks, a quantized KV cache, or a smaller batch", "backend#293", "TRT-LLM#1188", "TRT-LLM#2398")
@about
def memory_holds_a_batch(of: Case) -> Iterator[Problem]:
    """What is left for the KV cache holds a batch of full-length requests; else they wait, or are paused."""
    for budgets in _points(of):
        worst = max(budgets, key=lambda one: one.shape.batch * one.request)
        if worst.request <= worst.tokens < worst.shape.batch * worst.request and not _capped(worst):
            held = f"{worst.tokens:,} tokens = {worst.tokens / worst.request:.1f} full-length requests"
            what = f"{worst.path}: {held}; the batch is {worst.shape.batch}"
            yield Problem(what=what, facts=worst.facts(), hint=worst.more_ranks())


@warning("leave max_num_tokens out: 8192 is where throughput stops to grow", "TRT-LLM#1543", "TRT-LLM#2451")
@about
def step_of_many_tokens(of: Case) -> Iterator[Problem]:
    """Activations grow with max_num_tokens, and what they take the KV cache does not get."""
    tokens = of.number("build", "max_num_tokens")
    for budgets in _points(of) if tokens and tokens > _MANY_TOKENS else ():
        worst = max(budgets, key=lambda one: one.activations)
        what = f"{worst.path}: steps of {tokens:,} tokens take about {_gib(worst.activations)} from the KV cache"
        yield Problem(what=what, hint="leave build.max_num_tokens out")


RULES: tuple[Rule[Setting], ...] = (weights_fit_gpu, memory_holds_a_request, memory_holds_a_batch, step_of_many_tokens)


def _points(of: Case) -> Iterator[list[Budget]]:
    """The budgets of each precision and parallelism: one for each shape."""
    dims, platform = of.setting.dims, of.setting.platform
    if dims is None or platform is None or not memory.parameters(dims) or not dims.head_size:
        return
    for precision in of.precisions:
        for parallelism in of.setting.entry.parallelisms():
            cut = Cut(precision=precision, parallelism=parallelism, embedding_whole=of.upstream)
            if memory.known(precision) and dims.divides(parallelism.tp):
                shapes = of.setting.entry.shapes
                yield [Budget(of=of, dims=dims, platform=platform, cut=cut, shape=shape) for shape in shapes]


def _capped(budget: Budget) -> bool:
    """Whether the cap on tokens is the reason; rules/checks/serving.py tells of it."""
    return budget.tokens == budget.of.number("serving", "max_tokens_in_paged_kv_cache")


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
