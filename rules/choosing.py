"""Which variant to serve: the best measured one within the limits, and why each other one is not it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rules.findings import Point
from rules.gates import LIMITS, judge

__all__ = ["Candidate", "Verdict", "choose"]

_OF_A_LOAD = ("_ms", "_per_s", "error_rate")
_RATE = "output_tokens_per_s"
_HOUR = 3600.0
_MILLION = 1e6


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A variant with the load points of its latest run.

    `limits` are gates' names with what is asked of this variant. `price` is per hour of the GPUs that it takes, if the
    platform has a price. `missing` says what has to be run before it can be judged at all.
    """

    variant: str
    points: Sequence[Point]
    limits: Mapping[str, float]
    price: float | None = None
    missing: str = ""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of a candidate: its best point within the limits, or None, and why it is not the first.

    `rate` is in output tokens/s; `cost` is the price of a million output tokens.
    """

    candidate: Candidate
    point: Point | None
    reason: str = ""

    @property
    def rate(self) -> float:
        """0 where no point is within the limits."""
        return self.point.figures[_RATE] if self.point else 0.0

    @property
    def cost(self) -> float | None:
        """None without a price, or without a point."""
        price = self.candidate.price
        return price / (self.rate * _HOUR) * _MILLION if price is not None and self.rate else None


def choose(candidates: Sequence[Candidate]) -> list[Verdict]:
    """Every candidate, the best first: by the price of a token where all have one, else by output tokens per second."""
    judged = [_best(candidate) for candidate in candidates]
    able = [one for one in judged if one.point]
    priced = bool(able) and all(one.cost is not None for one in able)
    able.sort(key=lambda one: (one.cost if priced and one.cost is not None else -one.rate, one.candidate.variant))
    rest = sorted((one for one in judged if not one.point), key=lambda one: one.candidate.variant)
    return [*able[:1], *(_behind(one, able[0], priced=priced) for one in able[1:]), *rest]


def _best(candidate: Candidate) -> Verdict:
    whole = [point for point in candidate.points if not point.partial and _RATE in point.figures]
    if candidate.missing or not whole:
        reason = candidate.missing or "has no whole load point"
        return Verdict(candidate=candidate, point=None, reason=reason)
    unknown = [name for name in candidate.limits if all(name not in point.figures for point in whole)]
    if unknown:
        by = "bench" if all(name.endswith(_OF_A_LOAD) for name in unknown) else "eval"
        reason = f"{', '.join(unknown)}: not measured: doit {by}:{candidate.variant}"
        return Verdict(candidate=candidate, point=None, reason=reason)
    within = [point for point in whole if _within(point, candidate.limits)]
    if within:
        return Verdict(candidate=candidate, point=max(within, key=lambda point: point.figures[_RATE]))
    return Verdict(candidate=candidate, point=None, reason=_nearest(whole, candidate.limits))


def _within(point: Point, limits: Mapping[str, float]) -> bool:
    verdicts = judge(limits, point.figures)
    return len(verdicts) == len(limits) and all(verdict.holds for verdict in verdicts)


def _nearest(points: Sequence[Point], limits: Mapping[str, float]) -> str:
    """What breaks everywhere, each at its best; else what breaks at the point that breaks least."""
    everywhere = [text for name in limits if (text := _broken_everywhere(points, name, limits[name]))]
    if everywhere:
        return "; ".join(everywhere)
    few = min(points, key=lambda point: sum(not verdict.holds for verdict in judge(limits, point.figures)))
    broken = "; ".join(str(verdict) for verdict in judge(limits, few.figures) if not verdict.holds)
    return f"no load point is within all limits; at {few.name} {broken}"


def _broken_everywhere(points: Sequence[Point], name: str, limit: float) -> str:
    known = [point for point in points if name in point.figures]
    best = (min if LIMITS[name].best == "low" else max)(known, key=lambda point: point.figures[name])
    (verdict,) = judge({name: limit}, best.figures)
    if verdict.holds:
        return ""
    constant = len({point.figures[name] for point in known}) == 1
    return str(verdict) if constant else f"{verdict} even at {best.name}"


def _behind(one: Verdict, first: Verdict, *, priced: bool) -> Verdict:
    if priced and one.cost and first.cost:
        reason = f"within the limits, and costs {one.cost / first.cost - 1:.0%} more per token"
    else:
        reason = f"within the limits, with {1 - one.rate / first.rate:.0%} less throughput"
    return Verdict(candidate=one.candidate, point=one.point, reason=reason)
