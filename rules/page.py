"""The measurements as one HTML page that opens without a network: data, scripts and styles are all in the file.

The page draws from one JSON object, which `content` makes and templates/report/page.js reads.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import jinja2

from rules import picture, steps, tables
from rules.errors import Misconfigured, Problem
from rules.findings import Findings, Point, Run, front
from rules.gates import LIMITS, SCORES
from rules.picture import Box

__all__ = ["content", "html"]

Commits = Callable[[str, str], list[tuple[str, str, str]]]

LATENCIES = tuple(f"{time}_{of}_ms" for time in ("itl", "ttft", "latency") for of in ("p50", "p99"))
_QUANTILES = 50  # steps of a distribution's curve
_DISTRIBUTIONS = {"ttft": "time_to_first_token", "itl": "inter_token_latency"}
_GIB = 1 << 30
_STATES = {
    "fresh": "up to date",
    "local": "in the store",
    "remote": "in the team's cache",
    "run": "to be made",
    "blocked": "waits for another",
}


def content(
    found: Findings, names: Sequence[str], budgets: dict[str, dict[str, int]], commits: Commits
) -> dict[str, Any]:
    """Everything that the page draws of the variants `names`; `budgets` are bytes by part, as far as they are known."""
    runs = {name: run for name in names if (run := found.latest(name))}
    by_model: dict[str, list[Run]] = {}
    for run in runs.values():
        by_model.setdefault(_model(run), []).append(run)
    return {
        "version": 1,
        "latencies": LATENCIES,
        "scores": [*SCORES, "log_prob_drop", "kl_bound"],
        "units": {name: limit.unit for name, limit in LIMITS.items()},
        "models": [_of_model(found, name, its, budgets, commits) for name, its in by_model.items()],
        "unread": [[str(path), reason] for path, reason in found.unread],
    }


def html(made: dict[str, Any], drawn: Mapping[str, Sequence[Box]], title: str) -> str:
    """The page; `drawn` are the build graphs by model.

    Raises Misconfigured where plotly, which carries the plots' script, is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError as error:
        hint = "./doitw has it; elsewhere: pip install 'doit-engines[measure]'"
        raise Misconfigured(Problem(what="plotly is not installed", hint=hint)) from error
    folder = Path(steps.templates("report").root)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    return environment.get_template("page.html.j2").render(
        title=title,
        made=made,
        data=json.dumps(made).replace("</", "<\\/"),
        plotly=get_plotlyjs(),
        style=(folder / "page.css").read_text(encoding="utf-8"),
        scripts=[(folder / name).read_text(encoding="utf-8") for name in ("plots.js", "page.js")],
        graphs={
            model["name"]: picture.svg(its) if (its := drawn.get(model["name"])) else "" for model in made["models"]
        },
        states=_STATES.items(),
        totals=totals(made),
        about=about(made),
    )


def about(made: dict[str, Any]) -> str:
    """Where and when it was measured: the machines, the newest run and its commit."""
    variants = [variant for model in made["models"] for variant in model["variants"]]
    runs = sorted((run for variant in variants for run in variant["history"]), key=lambda run: str(run["run"]))
    if not runs:
        return ""
    machines = " and ".join(sorted({variant["host"] for variant in variants}))
    commit = f", commit {runs[-1]['revision'][:12]}" if runs[-1]["revision"] else ""
    return f"on {machines}; the newest run of {str(runs[-1]['started'])[:16].replace('T', ' ')} UTC{commit}"


def totals(made: dict[str, Any]) -> list[tuple[str, str]]:
    """(figure, what it is) of the whole page."""
    variants = [variant for model in made["models"] for variant in model["variants"]]
    points = [point for variant in variants for point in variant["points"]]
    gates = [gate for variant in variants for gate in variant["gates"] if not gate.get("skipped")]
    broken = sum(not gate["holds"] for gate in gates)
    best = max((point["figures"].get("output_tokens_per_s", 0.0) for point in points), default=0.0)
    return [
        (str(len(variants)), "variant measured" if len(variants) == 1 else "variants measured"),
        (str(len(points)), "load points"),
        (f"{best:,.0f}", "output tokens/s at best"),
        (f"{len(gates) - broken} of {len(gates)}" if gates else "none", "gates hold" if gates else "gates declared"),
    ]


def _of_model(
    found: Findings, name: str, runs: list[Run], budgets: dict[str, dict[str, int]], commits: Commits
) -> dict[str, Any]:
    points = {run.variant: found.points(run) for run in runs}
    every = [point for its in points.values() for point in its]
    fronts = {latency: {id(point) for point in front(every, latency)} for latency in LATENCIES}
    return {
        "name": name,
        "variants": [
            {
                **_of_variant(found, run, points[run.variant], commits),
                "points": [_of_point(point, fronts) for point in points[run.variant]],
                "budget": budgets.get(run.variant, {}),
            }
            for run in runs
        ],
    }


def _of_variant(found: Findings, run: Run, points: Iterable[Point], commits: Commits) -> dict[str, Any]:
    summary = run.summary
    axes = summary.get("axes") or {}
    shape = axes.get("shape") or {}
    peak = max((point.figures.get("peak_memory_gib", 0.0) for point in points), default=0.0)
    return {
        "name": run.variant,
        "precision": axes.get("precision") or run.variant,
        "parallelism": axes.get("parallelism") or "",
        "shape": f"{shape['isl']}→{shape['osl']} bs{shape['batch']}" if shape else "",
        "engine": run.engine,
        "host": f"{summary.get('host', '?')}: {', '.join(summary.get('gpus') or []) or summary.get('cpu', '?')}",
        "versions": summary.get("versions") or {},
        "finished": bool(summary.get("finished")),
        "gates": found.gates(run),
        "scores": found.scores(run),
        "questions": found.questions(run),
        "peak": peak * _GIB,
        "history": _history(found, run.variant, commits),
    }


def _of_point(point: Point, fronts: dict[str, set[int]]) -> dict[str, Any]:
    return {
        **{name: value for name, value in tables.row(point).items() if name not in point.figures},
        "name": point.name,
        "figures": dict(point.figures),
        "front": [latency for latency, best in fronts.items() if id(point) in best],
        "curves": {name: quantiles(samples(point, metric)) for name, metric in _DISTRIBUTIONS.items()},
    }


def _history(found: Findings, variant: str, commits: Commits) -> list[dict[str, Any]]:
    """Every run of a variant, oldest first, with its best throughput and the commits since the run before."""
    runs = [run for run in found.bench if run.variant == variant and run.summary.get("points")]
    since = [[], *(commits(_revision(one), _revision(two)) for one, two in pairwise(runs))]
    return [_moment(found, run, list(between)) for run, between in zip(runs, since, strict=True)]


def _moment(found: Findings, run: Run, between: list[tuple[str, str, str]]) -> dict[str, Any]:
    points = found.points(run)
    best = max(points, key=lambda point: point.figures.get("output_tokens_per_s", 0.0))
    return {
        "run": run.name,
        "started": run.summary.get("started"),
        "revision": _revision(run),
        "engine": run.engine,
        "host": run.summary.get("host"),
        "load": best.name,
        "figures": {name: value for name, value in best.figures.items() if name in (*LATENCIES, "output_tokens_per_s")},
        "finished": bool(run.summary.get("finished")),
        "commits": between,
    }


def samples(point: Point, metric: str) -> list[float]:
    """What each request of a point measured, over its repeats, in ms; [] where the requests were not kept."""
    values = []
    for folder in point.folders:
        try:
            lines = (folder / "profile_export.jsonl").read_text(encoding="utf-8").split("\n")
        except OSError:
            continue
        for line in filter(None, lines):
            value = json.loads(line).get("metrics", {}).get(metric, {}).get("value")
            values += [float(value)] if isinstance(value, int | float) else []
    return values


def quantiles(values: list[float]) -> list[float]:
    """The smallest, the largest and those between in equal steps, by numpy's linear rule; [] of nothing."""
    ordered = sorted(values)
    found = []
    for step in range(_QUANTILES + 1 if ordered else 0):
        place = step / _QUANTILES * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        found.append(round(ordered[low] + (ordered[high] - ordered[low]) * (place - low), 4))
    return found


def _revision(run: Run) -> str:
    return str(run.summary.get("revision") or "")


def _model(run: Run) -> str:
    return str((run.summary.get("axes") or {}).get("model") or run.variant)
