"""Measured points as tables for people and programs: Markdown for a CI comment, CSV and JSON with every figure."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any

from rules.findings import Findings, Point

__all__ = ["as_csv", "as_json", "as_markdown", "row"]

# Figure -> (heading, decimals) of the tables that people read.
COLUMNS = {
    "output_tokens_per_s": ("tokens/s", 0),
    "requests_per_s": ("requests/s", 2),
    "ttft_p50_ms": ("TTFT p50 ms", 1),
    "ttft_p99_ms": ("TTFT p99 ms", 1),
    "itl_p50_ms": ("ITL p50 ms", 2),
    "itl_p99_ms": ("ITL p99 ms", 2),
    "goodput_per_s": ("goodput/s", 2),
    "error_rate": ("errors", 3),
    "exact_match": ("exact match", 3),
    "rouge_l": ("ROUGE-L", 3),
    "agreement": ("agreement", 4),
}


def row(point: Point) -> dict[str, Any]:
    """A point flat: where it lies on the axes, whose it is, and every figure."""
    summary = point.run.summary
    axes = summary.get("axes") or {}
    shape = axes.get("shape") or {}
    return {
        "variant": point.run.variant,
        **{name: axes.get(name) for name in ("model", "precision", "parallelism", "toolchain", "platform")},
        **{name: shape.get(name) for name in ("isl", "osl", "batch")},
        "mode": point.mode,
        "value": point.value,
        "repeats": point.repeats,
        "spread": round(point.spread, 4),
        "partial": point.partial,
        "engine": point.run.engine,
        "run": point.run.name,
        "started": summary.get("started"),
        "revision": summary.get("revision"),
        "host": summary.get("host"),
        **point.figures,
    }


def as_json(found: Findings, points: Iterable[Point]) -> str:
    """`{"version": 1, "points": [...], "gates": {variant: [...]}, "unread": [...]}`."""
    points = list(points)
    runs = {point.run.variant: point.run for point in points}
    whole = {
        "version": 1,
        "points": [row(point) for point in points],
        "gates": {name: found.gates(run) for name, run in runs.items()},
        "unread": [{"path": str(path), "reason": reason} for path, reason in found.unread],
    }
    return json.dumps(whole, indent=1) + "\n"


def as_csv(points: Iterable[Point]) -> str:
    """A line per point; the columns are all that any point has."""
    rows = [row(point) for point in points]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(name for one in rows for name in one)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def as_markdown(found: Findings, points: Iterable[Point]) -> str:
    """A table per model, and the gates that do not hold."""
    by_model: dict[str, list[Point]] = {}
    for point in points:
        model = (point.run.summary.get("axes") or {}).get("model") or point.run.variant
        by_model.setdefault(str(model), []).append(point)
    parts = [f"### {model}\n\n{_table(its)}\n{_gates(found, its)}" for model, its in by_model.items()]
    parts += [f"> not read: {path} ({reason})\n" for path, reason in found.unread]
    return "\n".join(parts) or "Nothing has been measured yet: `doit bench`.\n"


def _table(points: Sequence[Point]) -> str:
    shown = [name for name in COLUMNS if any(name in point.figures for point in points)]
    head = ["variant", "load", *(COLUMNS[name][0] for name in shown), "engine"]
    align = ["---", "---", *("---:" for _ in shown), "---"]
    lines = [head, align, *(_cells(point, shown) for point in points)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _cells(point: Point, shown: Sequence[str]) -> list[str]:
    load = point.name + (" (partial)" if point.partial else "")
    figures = [f"{point.figures[name]:.{COLUMNS[name][1]}f}" if name in point.figures else "" for name in shown]
    return [f"`{point.run.variant}`", load, *figures, f"`{point.run.engine[:12]}`"]


def _gates(found: Findings, points: Sequence[Point]) -> str:
    runs = {point.run.variant: point.run for point in points}
    judged = [(name, gate) for name, run in runs.items() for gate in found.gates(run) if not gate.get("skipped")]
    broken = [f"- **{name}**: {gate['text']}\n" for name, gate in judged if not gate["holds"]]
    return "".join(["\n", *broken]) if broken else (f"\nAll {len(judged)} gates hold.\n" if judged else "")
