"""What was measured, as rows: load points of `bench` runs, joined with the scores of `eval` runs of the same engine.

Reads `artifacts/{bench,eval}/<variant>/<run>/summary.json`, version 1. Figures bear the names of rules/gates.py.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

__all__ = ["Findings", "Point", "Run", "front", "load"]

_TIMES = {
    "time_to_first_token": "ttft",
    "time_to_second_token": "ttst",
    "inter_token_latency": "itl",
    "inter_chunk_latency": "icl",
    "request_latency": "latency",
}
_RATES = {
    "output_token_throughput": "output_tokens_per_s",
    "input_token_throughput": "input_tokens_per_s",
    "output_token_throughput_per_user": "output_tokens_per_s_per_user",
    "request_throughput": "requests_per_s",
    "request_goodput": "goodput_per_s",
}
_STATISTICS = ("avg", "p50", "p75", "p90", "p95", "p99")
_GIB = 1 << 30
_Figure = Annotated[float, Field(allow_inf_nan=False)]


class _Part(BaseModel):
    """What is relied on of a part of a summary; it may hold more."""

    model_config = ConfigDict(extra="allow", strict=True)


class _Load(_Part):
    mode: str
    value: _Figure


class _Metric(_Part):
    __pydantic_extra__: dict[str, _Figure]
    unit: str = ""


class _Counts(_Part):
    requests: int = 0
    errors: int = 0


class _Process(_Part):
    memory_peak_bytes: _Figure | None = None


class _Server(_Part):
    process: _Process = _Process()


class _LoadPoint(_Part):
    load: _Load
    name: str
    folder: str = ""
    metrics: dict[str, _Metric] = {}
    counts: _Counts = _Counts()
    server: _Server = _Server()


class _Shape(_Part):
    isl: int
    osl: int
    batch: int


class _Axes(_Part):
    shape: _Shape | None = None


class _Gate(_Part):
    gate: str
    holds: bool
    text: str


class _Scores(_Part):
    figures: dict[str, _Figure]
    questions: int = 0


class _Settings(_Part):
    questions_in_all: int | None = None


class _Summary(_Part):
    version: Literal[1]
    variant: str = ""
    started: str
    axes: _Axes | None = None
    keys: dict[str, str | None] | None = None
    gpus: list[str] | None = None
    points: list[_LoadPoint] = []
    gates: list[_Gate] = []
    scores: _Scores | None = None
    settings: _Settings | None = None


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run folder and its summary. `name` is the folder's: runs sort by it in the order of time."""

    folder: Path
    summary: Mapping[str, Any]

    @property
    def name(self) -> str:
        """<UTC>-<id>."""
        return self.folder.name

    @property
    def variant(self) -> str:
        """The variant's name, or url_... of a server that was not ours."""
        return str(self.summary["variant"])

    @property
    def engine(self) -> str:
        """The engine's key; "" of a server that was not ours."""
        return str((self.summary.get("keys") or {}).get("engine") or "")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One load on one variant: the medians of its repeats within a run, and the scores of the same engine.

    `spread` is (largest - smallest) / median of the output throughput over the repeats; 0 of a single one.
    """

    run: Run
    mode: str
    value: float
    repeats: int
    partial: bool
    spread: float
    figures: Mapping[str, float]
    folders: tuple[Path, ...]

    @property
    def name(self) -> str:
        """`concurrency 8`, `request_rate 2.5`."""
        return f"{self.mode} {self.value:g}"


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All runs, oldest first, and the summaries that could not be read as (path, reason)."""

    bench: tuple[Run, ...] = ()
    evals: tuple[Run, ...] = ()
    unread: tuple[tuple[Path, str], ...] = ()
    _scores: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict, compare=False, repr=False)

    def variants(self) -> list[str]:
        """Those that were put under load, in the order of their names."""
        return sorted({run.variant for run in self.bench})

    def latest(self, variant: str) -> Run | None:
        """The newest finished run of a variant, else the newest with a load point."""
        runs = [run for run in self.bench if run.variant == variant and run.summary.get("points")]
        whole = [run for run in runs if run.summary.get("finished")]
        return next(reversed(whole or runs), None)

    def points(self, run: Run) -> list[Point]:
        """The load points of a run, by mode and value."""
        by_load: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
        for point in run.summary["points"]:
            by_load.setdefault((point["load"]["mode"], float(point["load"]["value"])), []).append(point)
        scores = self.scores(run)
        return [_point(run, mode, value, same, scores) for (mode, value), same in sorted(by_load.items())]

    def current(self, names: Iterable[str] | None = None) -> list[Point]:
        """The load points of the latest run of each of these variants, or of all."""
        runs = (self.latest(variant) for variant in (self.variants() if names is None else names))
        return [point for run in runs if run for point in self.points(run)]

    def scores(self, run: Run) -> dict[str, float]:
        """The scores of the same variant with the same engine, each of the newest evaluation that has it."""
        key = run.variant, run.engine
        if key not in self._scores:
            alike = (it for it in self._evaluations(run) if it.summary.get("scores"))
            self._scores[key] = {name: value for it in alike for name, value in it.summary["scores"]["figures"].items()}
        return self._scores[key]

    def gates(self, run: Run) -> list[Mapping[str, Any]]:
        """The verdicts of the run, and of each gate on scores that of the newest evaluation of the same engine."""
        scored = {gate["gate"]: gate for it in self._evaluations(run) for gate in it.summary.get("gates", [])}
        return [*run.summary.get("gates", []), *scored.values()]

    def questions(self, run: Run) -> int:
        """How many the newest of these evaluations asked, 0 without any."""
        asked = [it.summary["scores"].get("questions", 0) for it in self._evaluations(run) if it.summary.get("scores")]
        return int(asked[-1]) if asked else 0

    def _evaluations(self, run: Run) -> list[Run]:
        """Of the same variant with the same engine, the newest last; one that asked but a part of the questions, as
        under a short load, counts less than any that asked them all.
        """
        alike = [it for it in self.evals if (it.variant, it.engine) == (run.variant, run.engine)]
        return sorted(alike, key=lambda it: not _partly(it.summary))


def _partly(summary: Mapping[str, Any]) -> bool:
    asked = (summary.get("scores") or {}).get("questions", 0)
    return bool(asked < ((summary.get("settings") or {}).get("questions_in_all") or 0))


def load(root: Path) -> Findings:
    """Everything below artifacts' `root`. What is not a summary of version 1 is left out, and told in `unread`."""
    unread: list[tuple[Path, str]] = []
    bench, evals = (tuple(sorted(_runs(root / kind, unread), key=lambda run: run.name)) for kind in ("bench", "eval"))
    return Findings(bench=bench, evals=evals, unread=tuple(unread))


def front(points: Iterable[Point], latency: str, throughput: str = "output_tokens_per_s") -> list[Point]:
    """The points that no other one beats in both figures (Pareto), by rising throughput."""
    found: list[Point] = []
    known = [point for point in points if latency in point.figures and throughput in point.figures]
    for point in sorted(known, key=lambda it: (-it.figures[throughput], it.figures[latency])):
        if not found or point.figures[latency] < found[-1].figures[latency]:
            found.append(point)
    return found[::-1]


def _runs(folder: Path, unread: list[tuple[Path, str]]) -> Iterator[Run]:
    for path in folder.glob("*/*/summary.json"):
        try:
            summary = json.loads(path.read_text(encoding="utf-8"))
            _Summary.model_validate(summary)
            yield Run(folder=path.parent, summary={"variant": path.parts[-3], "points": [], **summary})
        except ValidationError as error:
            first = error.errors()[0]
            unread.append((path, f"{'.'.join(map(str, first['loc']))}: {first['msg']}"))
        except (OSError, ValueError) as error:
            unread.append((path, f"{type(error).__name__}: {error}"))


def _point(run: Run, mode: str, value: float, same: list[Mapping[str, Any]], scores: Mapping[str, float]) -> Point:
    each = [_figures(point) for point in same]
    names = dict.fromkeys(name for figures in each for name in figures)
    medians = {name: statistics.median(it[name] for it in each if name in it) for name in names}
    rates = [figures["output_tokens_per_s"] for figures in each if "output_tokens_per_s" in figures]
    middle = statistics.median(rates) if rates else 0.0
    return Point(
        run=run,
        mode=mode,
        value=value,
        repeats=len(same),
        partial=any(point.get("partial") for point in same),
        spread=(max(rates) - min(rates)) / middle if middle else 0.0,
        figures={**medians, **scores},
        folders=tuple(run.folder / point.get("folder", point["name"]) for point in same),
    )


def _figures(point: Mapping[str, Any]) -> dict[str, float]:
    metrics = point.get("metrics", {})
    found: dict[str, float] = {}
    for metric, name in _TIMES.items():
        found |= {f"{name}_{of}_ms": metrics[metric][of] for of in _STATISTICS if of in metrics.get(metric, {})}
    found |= {name: metrics[metric]["avg"] for metric, name in _RATES.items() if "avg" in metrics.get(metric, {})}
    counts = point.get("counts", {})
    if counts.get("requests"):
        found["error_rate"] = counts.get("errors", 0) / counts["requests"]
    peak = point.get("server", {}).get("process", {}).get("memory_peak_bytes")
    return {**found, **({"peak_memory_gib": peak / _GIB} if peak else {})}
