"""What a load test says in numbers: the definitions, from timestamps in nanoseconds to percentiles. Nothing else here.

With t0 a request's sending, r[i] its responses from the first with text on, and n its output tokens:

    time_to_first_token    r[0] - t0                     time_to_second_token   r[1] - r[0]
    inter_token_latency    (r[-1] - r[0]) / (n - 1)      request_latency        r[-1] - t0
    inter_chunk_latency    each r[i] - r[i-1]            throughputs            sums / (max r[-1] - min t0)

as GenAI-Perf has them (its llm_profile_data_parser.py, 0.0.16), so that its numbers come out of its files. vLLM's TPOT
is the inter-token latency here, and vLLM's ITL the inter-chunk latency. A metric that a request does not have, such as
an ITL of one token, is left out of the statistics, not taken as 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)
TIMES = (
    "time_to_first_token",
    "time_to_second_token",
    "request_latency",
    "inter_token_latency",
    "time_per_output_token",
    "inter_chunk_latency",
)
LARGER_IS_BETTER = ("output_token_throughput_per_user",)
_SHORT = {"ttft": TIMES[0], "ttst": TIMES[1], "latency": TIMES[2], "itl": TIMES[3], "icl": TIMES[5]}
_FIGURES = {
    "output_tokens_per_s": "output_token_throughput",
    "input_tokens_per_s": "input_token_throughput",
    "output_tokens_per_s_per_user": "output_token_throughput_per_user",
    "requests_per_s": "request_throughput",
    "goodput_per_s": "request_goodput",
}

Metrics = dict[str, dict[str, Any]]


@dataclass(slots=True)
class Timing:
    """One request that was measured; times are monotonic nanoseconds.

    `times` are of the responses from the first with text on, `error` is the kind of failure ("" for none). The token
    counts are None where nobody can count them.
    """

    sent: int
    times: list[int]
    input_tokens: int | None = None
    output_tokens: int | None = None
    error: str = ""
    cancelled: bool = False
    streamed: bool = True
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def usable(self) -> bool:
        """Whether it was answered."""
        return bool(self.times) and not self.error and not self.cancelled


def measure(one: Timing) -> dict[str, Any]:
    """The metrics of one request that was answered: ms, tokens, tokens/s. Keeps them in `one.values`."""
    first, last, tokens = one.times[0], one.times[-1], one.output_tokens
    found: dict[str, Any] = {"request_latency": (last - one.sent) / 1e6}
    if one.streamed:
        found["time_to_first_token"] = (first - one.sent) / 1e6
    if len(one.times) > 1:
        found["time_to_second_token"] = (one.times[1] - first) / 1e6
        pairs = zip(one.times, one.times[1:], strict=False)
        found["inter_chunk_latency"] = [(after - before) / 1e6 for before, after in pairs]
    if len(one.times) > 1 and tokens is not None and tokens > 1:
        gap = round((last - first) / (tokens - 1))  # whole nanoseconds, as GenAI-Perf
        found["inter_token_latency"] = found["time_per_output_token"] = gap / 1e6
        if gap:
            found["output_token_throughput_per_user"] = 1e9 / gap
    if tokens is not None:
        found["output_sequence_length"] = tokens
    if one.input_tokens is not None:
        found["input_sequence_length"] = one.input_tokens
    one.values = found
    return found


def statistics(values: Sequence[float], unit: str) -> dict[str, Any]:
    """Mean, extremes, population standard deviation, and percentiles by numpy's linear rule."""
    import numpy as np

    array = np.asarray(values, dtype=float)
    marks = np.percentile(array, PERCENTILES)
    found = {"unit": unit, "avg": float(array.mean()), "min": float(array.min()), "max": float(array.max())}
    found["std"] = float(array.std())
    return found | {f"p{mark}": float(value) for mark, value in zip(PERCENTILES, marks, strict=True)}


def summarise(requests: Sequence[Timing], slo: Mapping[str, float] | None = None) -> Metrics:
    """Every metric of a load point under GenAI-Perf's names; {} when no request was answered.

    `slo` are limits by metric: a request is good when it was answered and has each of them within its limit.
    """
    done = [one for one in requests if one.usable]
    if not done:
        return {}
    pooled: dict[str, list[float]] = {}
    for one in done:
        for name, value in measure(one).items():
            pooled.setdefault(name, []).extend(value if isinstance(value, list) else [value])
    found = {name: statistics(values, unit(name)) for name, values in pooled.items()}
    seconds = duration(done)
    for kind in ("output", "input"):
        total = sum(pooled.get(f"{kind}_sequence_length", ()))
        if total and seconds:
            found[f"{kind}_token_throughput"] = {"unit": "tokens/sec", "avg": total / seconds}
    if seconds:
        found["request_throughput"] = {"unit": "requests/sec", "avg": len(done) / seconds}
    if slo and seconds:
        met = sum(good(one, slo) for one in done)
        found["request_goodput"] = {"unit": "requests/sec", "avg": met / seconds}
    return found | {"request_count": {"unit": "count", "avg": float(len(done))}}


def duration(done: Iterable[Timing]) -> float:
    """Seconds from the first sending to the last response."""
    spans = [(one.sent, one.times[-1]) for one in done]
    return (max(last for _, last in spans) - min(sent for sent, _ in spans)) / 1e9


def good(one: Timing, slo: Mapping[str, float]) -> bool:
    """Whether it was answered within every limit; lacking a limited metric is not good, as AIPerf has it."""
    return one.usable and all(name in one.values and _within(name, one.values[name], slo[name]) for name in slo)


def errors(requests: Iterable[Timing]) -> dict[str, int]:
    """How often each kind of failure came, the most frequent first."""
    return dict(Counter(one.error for one in requests if one.error).most_common())


def figures(found: Metrics, requests: int, failed: int, peak_memory: float | None = None) -> dict[str, float]:
    """The numbers that gates are written about, under their names there (rules/gates.py)."""
    flat = {
        f"{short}_{of}_ms": found[name][of]
        for short, name in _SHORT.items()
        if name in found
        for of in ("avg", "p50", "p75", "p90", "p95", "p99")
    }
    flat |= {short: found[name]["avg"] for short, name in _FIGURES.items() if name in found}
    flat["error_rate"] = failed / requests if requests else 0.0
    return flat | ({"peak_memory_gib": peak_memory / 2**30} if peak_memory else {})


def unit(name: str) -> str:
    """Of a metric that each request has."""
    if name in TIMES:
        return "ms"
    return "tokens/sec/user" if name == "output_token_throughput_per_user" else "tokens"


def _within(name: str, value: Any, limit: float) -> bool:
    if isinstance(value, list):
        return all(one <= limit for one in value)
    return bool(value >= limit if name in LARGER_IS_BETTER else value <= limit)
