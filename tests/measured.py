"""Runs of `bench` and `eval` as files, in the format that both write: what report and recommend read."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

__all__ = ["bench", "evaluated", "point"]

PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)


def statistics(values: list[float], unit: str) -> dict[str, Any]:
    """A metric with all its statistics, by the nearest rank."""
    ordered = sorted(values)
    at = {f"p{p}": ordered[min(len(ordered) - 1, math.floor(p / 100 * len(ordered)))] for p in PERCENTILES}
    return {"unit": unit, "avg": sum(values) / len(values), "min": ordered[0], "max": ordered[-1], "std": 0.0, **at}


def point(value: float, ttft: float, itl: float, rate: float, **more: Any) -> dict[str, Any]:
    """A load point whose median TTFT and ITL (ms) and output tokens/s are these. More: `repeat`, `mode`, `errors`."""
    mode, repeat = more.pop("mode", "concurrency"), more.pop("repeat", 1)
    numbers = random.Random(f"{value} {ttft} {repeat}")
    spread = [numbers.lognormvariate(0, 0.2) for _ in range(64)]
    return {
        "name": f"{mode}{value:g}_{repeat}",
        "folder": f"{mode}{value:g}_{repeat}",
        "repeat": repeat,
        "load": {"mode": mode, "value": value, "arrival": "closed", "requests": 64, "seconds": None, "warmup": 8},
        "partial": more.pop("partial", False),
        "counts": {"requests": 64, "ok": 64, "errors": more.pop("errors", 0)},
        "errors": {},
        "metrics": {
            "time_to_first_token": {**statistics([ttft * one for one in spread], "ms"), "p50": ttft},
            "inter_token_latency": {**statistics([itl * one for one in spread], "ms"), "p50": itl},
            "request_latency": statistics([ttft + 63 * itl * one for one in spread], "ms"),
            "output_token_throughput": {"unit": "tokens/sec", "avg": rate},
            "request_throughput": {"unit": "requests/sec", "avg": rate / 64},
        },
        "server": {"process": {"cpu_seconds": 1.0, "memory_peak_bytes": 3 << 29}},
        **more,
    }


def bench(root: Path, variant: str, points: list[dict[str, Any]], number: int = 1, **more: Any) -> Path:
    """A finished run in artifacts' `root`, with the requests behind each point; `number` orders the runs."""
    folder = root / "bench" / variant / f"20261121T1615{number:02}Z-{number:06x}"
    _write(folder, {**_envelope(variant, number), "kind": "bench", "points": points, **more})
    for one in points:
        _requests(folder / one["folder"], one)
    return folder


def evaluated(root: Path, variant: str, figures: dict[str, float], number: int = 1, **more: Any) -> Path:
    """A finished evaluation."""
    folder = root / "eval" / variant / f"20261121T1615{number:02}Z-{number:06x}"
    scores = {"questions": 32, "failed": 0, "figures": figures, "scores": figures, "standard_errors": {}}
    _write(folder, {**_envelope(variant, number), "kind": "eval", "scores": scores, **more})
    return folder


def _envelope(variant: str, number: int) -> dict[str, Any]:
    model, _, rest = variant.partition("_")
    precision, _, shape = rest.partition("_isl")
    isl, osl, batch = (int(text.lstrip("oslb")) for text in shape.split("_"))
    axes = {"model": model, "precision": precision, "parallelism": "tp1", "tp": 1, "pp": 1, "toolchain": "cpu"}
    sizes = {"shape": {"batch": batch, "isl": isl, "osl": osl}, "backend": "openvino", "platform": None}
    return {
        "version": 1,
        "variant": variant,
        "axes": {**axes, **sizes},
        "keys": {"engine": f"{precision}{isl}".encode().hex().ljust(64, "0"), "build": "b" * 64},
        "revision": f"{number:040x}",
        "started": f"2026-11-21T16:15:{number:02}+00:00",
        "seconds": 5.0,
        "finished": True,
        "host": "bench-host",
        "cpu": "a processor x 2",
        "memory_bytes": 25 << 30,
        "gpus": [],
        "versions": {"openvino": "2026.4.1"},
        "settings": {},
        "points": [],
        "gates": [],
    }


def _requests(folder: Path, one: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    middle = {name: one["metrics"][name]["p50"] for name in ("time_to_first_token", "inter_token_latency")}
    numbers = random.Random(folder.name)
    with (folder / "profile_export.jsonl").open("w") as lines:
        for _ in range(64):
            metrics = {
                name: {"value": value * numbers.lognormvariate(0, 0.2), "unit": "ms"} for name, value in middle.items()
            }
            print(json.dumps({"metadata": {"was_cancelled": False}, "metrics": metrics, "error": None}), file=lines)


def _write(folder: Path, summary: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(summary))
