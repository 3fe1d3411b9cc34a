"""The server's side of a load point: Triton's metrics before, meanwhile and after, and what its processes used.

Metric names are those of Triton's documentation (user_guide/metrics.md), of TensorRT-LLM's backend and of vLLM 0.26.
What Triton tells of GPUs comes from DCGM, which many containers do not have: then the driver is asked.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from asking import Unasked, fetch

_SAMPLE = re.compile(r"^([\w:]+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
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
    ("vllm:num_requests_running", ""): ("requests_active", "requests", 1.0),
    ("vllm:num_requests_waiting", ""): ("requests_waiting", "requests", 1.0),
    ("vllm:kv_cache_usage_perc", ""): ("kv_cache_used", "%", 100.0),
}
_SUMS = {"gpu_memory_used", "gpu_power"}  # of all GPUs; of the others the mean
_PAUSE_S, _PATIENCE_S = 0.9, 5.0
_TICK = os.sysconf("SC_CLK_TCK")

Samples = list[tuple[str, dict[str, str], float]]


class Watch:
    """One load point, from `Watch(...)` to `found()`. `metrics` is a URL or "", `pid` of a server that is ours or 0.

    `gpus` are the server's as the driver numbers them, when they are this machine's.
    """

    def __init__(self, metrics: str, pid: int, gpus: Sequence[str] = ()) -> None:
        self._url, self._pid, self._gpus = metrics, pid, gpus
        self._before = self._samples()
        self._cpu = cpu_seconds(pid)
        self._gauges: dict[str, list[float]] = {}
        self._peak, self._next = 0, 0.0

    def look(self) -> None:
        """Takes the gauges, about once a second however often it is called."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _PAUSE_S
        gauges = _gauges(self._samples())
        if self._gpus and "gpu_memory_used" not in gauges:
            gauges |= asked_driver(self._gpus)
        for name, value in gauges.items():
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
        """Bytes that the server held at most: of its GPUs or, where it has none, of its own processes."""
        own = 0 if self._gpus else self._peak
        return max(self._gauges.get("gpu_memory_used", [0.0])) or float(own) or None

    def _samples(self) -> Samples:
        if not self._url:
            return []
        with contextlib.suppress(Unasked):
            return parse(fetch(self._url))
        return []


def asked_driver(gpus: Sequence[str]) -> dict[str, float]:
    """The same gauges of these GPUs from nvidia-smi, as far as it tells; {} where there is none."""
    fields = {"utilization.gpu": ("gpu_utilization", 1.0), "memory.used": ("gpu_memory_used", 1 << 20),
              "power.draw": ("gpu_power", 1.0)}  # fmt: skip
    ask = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", f"--id={','.join(gpus)}"]
    try:
        told = subprocess.run(ask, capture_output=True, text=True, check=True, timeout=_PATIENCE_S).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    rows = [dict(zip(fields.values(), line.split(","), strict=False)) for line in told.splitlines()]
    values: dict[str, list[float]] = {}
    for (name, scale), text in (pair for row in rows for pair in row.items()):
        with contextlib.suppress(ValueError):  # [N/A]
            number = float(text) * scale
            values.setdefault(name, []).append(number)
    return combined(values)


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
    return combined(values)


def combined(values: dict[str, list[float]]) -> dict[str, float]:
    """One figure of several GPUs or processes."""
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
