"""The server's side of a load point: Triton's metrics before, meanwhile and after, and what its processes used.

Metric names are those of Triton's documentation (user_guide/metrics.md) and of TensorRT-LLM's backend.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asking import Unasked, fetch

_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_TIMES = {
    "nv_inference_queue_duration_us": "queue_ms",
    "nv_inference_compute_input_duration_us": "compute_input_ms",
    "nv_inference_compute_infer_duration_us": "compute_infer_ms",
    "nv_inference_compute_output_duration_us": "compute_output_ms",
    "nv_inference_request_duration_us": "request_ms",
}
_COUNT = "nv_inference_request_success"
_GAUGES: dict[tuple[str, str], tuple[str, str, float]] = {  # (metric, a label's value) -> name, unit, scale
    ("nv_cpu_utilization", ""): ("cpu_utilization", "%", 100.0),
    ("nv_cpu_memory_used_bytes", ""): ("cpu_memory_used", "bytes", 1.0),
    ("nv_gpu_utilization", ""): ("gpu_utilization", "%", 100.0),
    ("nv_gpu_memory_used_bytes", ""): ("gpu_memory_used", "bytes", 1.0),
    ("nv_gpu_power_usage", ""): ("gpu_power", "W", 1.0),
    ("nv_trt_llm_request_metrics", "active"): ("requests_active", "requests", 1.0),
    ("nv_trt_llm_request_metrics", "waiting"): ("requests_waiting", "requests", 1.0),
    ("nv_trt_llm_kv_cache_block_metrics", "used"): ("kv_cache_used_blocks", "blocks", 1.0),
}
_SUMS = {"gpu_memory_used", "gpu_power"}  # of all GPUs; of the others the mean
_PAUSE_S = 0.9
_TICK = os.sysconf("SC_CLK_TCK")

Samples = list[tuple[str, dict[str, str], float]]


class Watch:
    """One load point, from `Watch(...)` to `found()`. `metrics` is a URL or "", `pid` of a server that is ours or 0."""

    def __init__(self, metrics: str, pid: int) -> None:
        self._url, self._pid = metrics, pid
        self._before = self._samples()
        self._cpu = cpu_seconds(pid)
        self._gauges: dict[str, list[float]] = {}
        self._peak, self._next = 0, 0.0

    def look(self) -> None:
        """Takes the gauges, about once a second however often it is called."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _PAUSE_S
        for name, value in _gauges(self._samples()).items():
            self._gauges.setdefault(name, []).append(value)
        self._peak = max(self._peak, memory_bytes(self._pid))

    def found(self) -> dict[str, Any]:
        """The `server` of a load point's summary; {} where nothing can be known."""
        self._next = 0.0
        self.look()
        models = _models(self._before, self._samples())
        units = {name: unit for name, unit, _ in _GAUGES.values()}
        gauges = {
            name: {"unit": units[name], "avg": sum(values) / len(values), "max": max(values)}
            for name, values in self._gauges.items()
        }
        found: dict[str, Any] = {"models": models, "gauges": gauges} if models or gauges else {}
        if self._pid:
            used = cpu_seconds(self._pid) - self._cpu
            found["process"] = {"cpu_seconds": round(used, 3), "memory_peak_bytes": self._peak}
        return found

    def peak(self) -> float | None:
        """Bytes that the server held at most: of the GPUs where it says so, else of its own processes."""
        return max(self._gauges.get("gpu_memory_used", [0.0])) or float(self._peak) or None

    def _samples(self) -> Samples:
        if not self._url:
            return []
        with contextlib.suppress(Unasked):
            return parse(fetch(self._url))
        return []


def parse(text: str) -> Samples:
    """Prometheus's text form: (name, labels, value) of each sample."""
    return [(name, dict(_LABEL.findall(labels)), float(value)) for name, labels, value in _SAMPLE.findall(text)]


def tree(pid: int) -> Iterator[int]:
    """A process and all its descendants."""
    yield pid
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                for child in (task / "children").read_text().split():
                    yield from tree(int(child))


def cpu_seconds(pid: int) -> float:
    """What a process and its descendants used until now (proc(5), stat); 0 for no process."""
    total = 0
    for one in tree(pid) if pid else ():
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total / _TICK


def memory_bytes(pid: int) -> int:
    """What a process and its descendants hold, shared pages counted once (proc(5), smaps_rollup)."""
    total = 0
    for one in tree(pid) if pid else ():
        with contextlib.suppress(OSError):
            found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{one}/smaps_rollup").read_text(), re.MULTILINE)
            total += 1024 * int(found[1]) if found else 0
    return total


def _gauges(samples: Samples) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for metric, labels, value in samples:
        for word in ("", *labels.values()):
            if found := _GAUGES.get((metric, word)):
                values.setdefault(found[0], []).append(value * found[2])
    return {name: sum(of) / (1 if name in _SUMS else len(of)) for name, of in values.items()}


def _models(before: Samples, after: Samples) -> dict[str, dict[str, float]]:
    """Per model, its requests and the mean milliseconds that each spent in every part of the server."""
    earlier = {(name, labels.get("model")): value for name, labels, value in before}
    grown = {
        (name, labels["model"]): value - earlier.get((name, labels["model"]), 0.0)
        for name, labels, value in after
        if "model" in labels and (name in _TIMES or name == _COUNT)
    }
    counts = {model: value for (name, model), value in grown.items() if name == _COUNT and value}
    return {
        model: {"requests": count}
        | {short: grown.get((name, model), 0.0) / 1000 / count for name, short in _TIMES.items()}
        for model, count in counts.items()
    }
