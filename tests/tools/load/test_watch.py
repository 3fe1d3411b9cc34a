"""The server's own figures."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import watch

TEXT = """# HELP x y
nv_inference_request_success{{model="ensemble",version="1"}} {n}
nv_inference_queue_duration_us{{model="ensemble",version="1"}} {queue}
nv_gpu_utilization{{gpu_uuid="a"}} 0.5
nv_gpu_utilization{{gpu_uuid="b"}} 1
nv_gpu_memory_used_bytes{{gpu_uuid="a"}} 3
nv_gpu_memory_used_bytes{{gpu_uuid="b"}} 4
nv_trt_llm_request_metrics{{model="tensorrt_llm",request_type="active"}} 2
nv_cpu_utilization 0.25
"""


def test_times_are_means_of_the_requests_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = iter([TEXT.format(n=10, queue=1000), *[TEXT.format(n=14, queue=9000)] * 3])
    monkeypatch.setattr(watch, "fetch", lambda _url: next(texts))
    found = watch.Watch("http://x/metrics", 0).found()
    assert found["models"] == {"ensemble": {"requests": 4.0, "queue_ms": 2.0} | dict.fromkeys(
        ("compute_input_ms", "compute_infer_ms", "compute_output_ms", "request_ms"), 0.0)}  # fmt: skip
    assert found["gauges"]["gpu_utilization"]["avg"] == 75.0
    assert found["gauges"]["gpu_memory_used"]["max"] == 7.0
    assert found["gauges"]["requests_active"]["max"] == 2.0
    assert found["gauges"]["cpu_utilization"]["avg"] == 25.0


def test_a_server_without_metrics_has_no_figures() -> None:
    found = watch.Watch("http://127.0.0.1:9/metrics", 0)
    assert (found.found(), found.peak()) == ({}, None)


SMI = """#!/bin/sh
[ "$1" = --query-gpu=utilization.gpu,memory.used,power.draw ] && [ "$3" = --id=2,3 ] && echo "40, 1000, 300.5
60, 2000, [N/A]"
"""


def test_where_the_metrics_say_nothing_of_gpus_the_driver_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "nvidia-smi").write_text(SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    watched = watch.Watch("", os.getpid(), ["2", "3"])
    gauges = {name: one["max"] for name, one in watched.found()["gauges"].items()}
    assert gauges == {"gpu_utilization": 50.0, "gpu_memory_used": 3000.0 * (1 << 20), "gpu_power": 300.5}
    assert watched.peak() == 3000.0 * (1 << 20)


def test_a_gpu_that_cannot_be_asked_is_not_taken_for_host_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    watched = watch.Watch("", os.getpid(), ["0"])
    assert ("gauges" in watched.found(), watched.peak()) == (False, None)


def test_a_process_is_counted_with_its_children() -> None:
    child = "sum(range(4 * 10**6)); print(1, flush=True); input()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        assert len(list(watch.tree(process.pid))) == 2
        assert watch.cpu_seconds(process.pid) > 0
        assert (
            watch.memory_bytes(process.pid)
            > watch.memory_bytes(next(p for p in watch.tree(process.pid) if p != process.pid))
            > 0
        )
        process.communicate(b"\n")
    assert watch.cpu_seconds(process.pid) == 0
    assert os.getpid() in watch.tree(os.getpid())


def test_what_vllm_tells_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its names have colons, and its engine and model are labels."""
    labels = '{engine="0",model_name="m"}'
    gauges = {
        "vllm:num_requests_running": "3.0",
        "vllm:num_requests_waiting": "1.0",
        "vllm:kv_cache_usage_perc": "0.25",
    }
    monkeypatch.setattr(watch, "fetch", lambda _url: "".join(f"{name}{labels} {of}\n" for name, of in gauges.items()))
    found = watch.Watch("http://x/metrics", 0).found()["gauges"]
    assert {name: row["max"] for name, row in found.items()} == {
        "requests_active": 3.0, "requests_waiting": 1.0, "kv_cache_used": 25.0,
    }  # fmt: skip
