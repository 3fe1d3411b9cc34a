"""What a bench run's figures mean: its gates, and what it lost against an earlier run.

Pure: from summaries (docs/measuring.md) to the rows of `gates` in a summary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from rules.gates import LIMITS, judge, regressions

__all__ = ["against", "baseline", "gated", "point_name"]

Summary = Mapping[str, Any]
_MACHINE = ("cpu", "gpus")
_LOAD = ("prompts", "isl", "osl", "isl_stddev", "osl_stddev", "fixed", "model", "endpoint", "stream", "counting")


def point_name(point: Summary) -> str:
    """`concurrency 8`: a load point without its repeat."""
    return f"{str(point['load']['mode']).replace('_', ' ')} {point['load']['value']:g}"


def gated(summary: Summary, gates: Mapping[str, float], only: Sequence[float]) -> list[dict[str, Any]]:
    """A row per gate that has a figure: ceilings at the worst load point, floors at the best, of repeats the median.

    `only` are the values of the load points that count; () is all of them.
    """
    found: dict[str, tuple[float, str]] = {}
    for at, figures in _whole(summary, only).items():
        for name, values in figures.items():
            value = median(values)
            if name in LIMITS and (name not in found or value > found[name][0]):
                found[name] = value, at
    rows = []
    for verdict in judge(gates, {name: value for name, (value, _) in found.items()}):
        at = found[verdict.gate][1]
        rows.append(
            {
                "gate": verdict.gate,
                "limit": verdict.limit,
                "value": verdict.figure,
                "at": at,
                "against": None,
                "holds": verdict.holds,
                "skipped": "",
                "text": f"{verdict} ({at})",
            }
        )
    return rows


def baseline(summary: Summary) -> dict[str, Any]:
    """What is kept of a run to compare later ones with: who, where, how it was asked, and each repeat's figures."""
    kept = ("version", "variant", "revision", "started", "keys", *_MACHINE)
    settings = {name: summary["settings"].get(name) for name in _LOAD}
    return {**{name: summary[name] for name in kept}, "settings": settings, "points": _whole(summary, ())}


def against(summary: Summary, before: Summary, tolerance: float) -> list[dict[str, Any]]:
    """A row per figure that is worse than in the baseline `before`, or one that says that all is as good, or why
    the two cannot be compared.
    """
    name = f"baseline {str(before.get('revision', ''))[:12]}".rstrip()
    row = {"gate": "baseline", "limit": tolerance, "value": 0.0, "at": "", "against": name, "holds": True}
    if differ := _incomparable(summary, before):
        return [{**row, "skipped": differ, "text": f"not compared with {name}: {differ}"}]
    points = _whole(summary, ())
    lost = regressions(points, before["points"], tolerance)
    if not lost:
        return [{**row, "skipped": "", "text": f"no figure is more than {100 * tolerance:g} % worse than {name}"}]
    return [
        {**row, "gate": one.figure, "value": one.now, "limit": one.before, "at": one.at, "holds": False, "skipped": ""}
        | {"text": f"{one} than {name}"}
        for one in lost
    ]


def _incomparable(summary: Summary, before: Summary) -> str:
    """Why two runs say nothing about one another, or ""."""
    for name in _MACHINE:
        if summary[name] != before.get(name):
            return f"another machine, {name} {before.get(name)}"
    asked, was = summary["settings"], before.get("settings", {})
    for name in _LOAD:
        if asked.get(name) != was.get(name):
            return f"another load, {name} {was.get(name)}"
    return "" if set(_whole(summary, ())) & set(before["points"]) else "no load point in common"


def _whole(summary: Summary, only: Sequence[float]) -> dict[str, dict[str, list[float]]]:
    """Load point -> figure -> its value in each repeat, of the points that were measured whole."""
    found: dict[str, dict[str, list[float]]] = {}
    for point in summary["points"]:
        if not point["partial"] and (not only or point["load"]["value"] in only):
            figures = found.setdefault(point_name(point), {})
            for name, value in point["figures"].items():
                figures.setdefault(name, []).append(value)
    return found
