"""What a measurement must reach, as `gates = {...}` of a model says it: one table of names, one judgement.

`bench` and `eval` hand over the figures that they measured under these names; a gate whose figure was not measured in
that pass is not judged by it. How each figure is defined: docs/measuring.md and docs/evaluation.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

__all__ = ["LIKELIHOOD", "LIMITS", "SCORES", "Limit", "Regression", "Verdict", "judge", "regressions"]

_TIMES = ("ttft", "ttst", "itl", "icl", "latency")
_STATISTICS = ("avg", "p50", "p75", "p90", "p95", "p99")
SCORES: Mapping[str, str] = {
    "exact_match": "",
    "contains": "",
    "regex": "",
    "numeric": "",
    "rouge_l": "",
    "chrf": "points",
    "bleu": "points",
    "agreement": "",
    "agreement_identical": "",
    "agreement_prefix": "tokens",
}
# of the expected answers, where `eval` says likelihood = true
LIKELIHOOD: Mapping[str, str] = {
    "expected_perplexity": "",
    "expected_log_prob_drop": "nats/token",
    "expected_kl": "nats/token",
}


@dataclass(frozen=True, kw_only=True)
class Limit:
    """Which way a figure is better, and its unit."""

    best: Literal["low", "high"]
    unit: str = ""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One gate against its figure."""

    gate: str
    limit: float
    figure: float

    @property
    def holds(self) -> bool:
        """Whether the figure is within the limit; the limit itself is."""
        if LIMITS[self.gate].best == "low":
            return self.figure <= self.limit
        return self.figure >= self.limit

    def __str__(self) -> str:
        limit = LIMITS[self.gate]
        must = "at most" if limit.best == "low" else "at least"
        unit = f" {limit.unit}" if limit.unit else ""
        return f"{self.gate} is {self.figure:.6g}{unit}, must be {must} {self.limit:.6g}{unit}"


LIMITS: Mapping[str, Limit] = {
    **{f"{time}_{of}_ms": Limit(best="low", unit="ms") for time in _TIMES for of in _STATISTICS},
    "output_tokens_per_s": Limit(best="high", unit="tokens/s"),
    "input_tokens_per_s": Limit(best="high", unit="tokens/s"),
    "output_tokens_per_s_per_user": Limit(best="high", unit="tokens/s"),
    "requests_per_s": Limit(best="high", unit="1/s"),
    "goodput_per_s": Limit(best="high", unit="1/s"),
    "error_rate": Limit(best="low"),
    "peak_memory_gib": Limit(best="low", unit="GiB"),
    **{name: Limit(best="high", unit=unit) for name, unit in SCORES.items()},
    **{f"{name}_drop": Limit(best="low", unit=unit) for name, unit in SCORES.items() if "agreement" not in name},
    "log_prob_drop": Limit(best="low", unit="nats/token"),
    "kl_bound": Limit(best="low", unit="nats/token"),
    **{name: Limit(best="low", unit=unit) for name, unit in LIKELIHOOD.items()},
}


_COMPARED = ("ttft_p50_ms", "ttft_p99_ms", "itl_p50_ms", "latency_p50_ms", "output_tokens_per_s", "requests_per_s")


@dataclass(frozen=True, kw_only=True)
class Regression:
    """A figure at one load point that is worse than before; `lost` is the part by which, of what it was."""

    figure: str
    at: str
    before: float
    now: float
    lost: float

    def __str__(self) -> str:
        unit = f" {LIMITS[self.figure].unit}"
        was = f"{self.figure} at {self.at} was {self.before:.6g}{unit} and is {self.now:.6g}{unit}"
        return f"{was}: {100 * self.lost:.1f} % worse"


Repeats = Mapping[str, Sequence[float]]  # figure -> its value in each repeat


def regressions(now: Mapping[str, Repeats], before: Mapping[str, Repeats], tolerance: float) -> tuple[Regression, ...]:
    """The figures, by load point, that are worse than before by more than `tolerance` (a part of what they were).

    The spread of repeats is respected: where the best repeat now is no worse than the worst one before, it is noise.
    """
    found = []
    for at, figures in now.items():
        for name in _COMPARED:
            mine, theirs = figures.get(name, ()), before.get(at, {}).get(name, ())
            lost = _lost(name, mine, theirs)
            if lost > tolerance:
                found.append(Regression(figure=name, at=at, before=median(theirs), now=median(mine), lost=lost))
    return tuple(found)


def _lost(name: str, now: Sequence[float], before: Sequence[float]) -> float:
    """The part that was lost; 0 where there is nothing to compare or the repeats overlap."""
    if not now or not before or not median(before):
        return 0.0
    change = (median(now) - median(before)) / median(before)
    if LIMITS[name].best == "low":
        return change if min(now) > max(before) else 0.0
    return -change if max(now) < min(before) else 0.0


def judge(gates: Mapping[str, float], figures: Mapping[str, float]) -> tuple[Verdict, ...]:
    """Every gate that has a figure, in the order of `gates`. KeyError for a gate that LIMITS does not name."""
    for name in gates:
        LIMITS[name]
    return tuple(
        Verdict(gate=name, limit=limit, figure=figures[name]) for name, limit in gates.items() if name in figures
    )
