"""What a server's last words mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import logs
import pytest


def _server(folder: Path, *lines: str) -> dict[str, Any]:
    (folder / "a.log").write_text("\n".join(["I1121 1 server.cc:1] begins", *lines, ""]))
    return {"name": "a", "log": str(folder / "a.log")}


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (
            "[TRT] [E] expecting library version 9.2.0.5 got 10.0.1.6, please rebuild.",
            "the engine is of another version",
        ),
        ("what(): [TensorRT-LLM][ERROR] CUDA out of memory. Tried to allocate", "GPU memory ended"),
        (
            "E0118 1 backend_model.cc:635] [TensorRT-LLM][ERROR] CUDA runtime error in cudaMallocAsync: out of memory",
            "GPU memory ended",
        ),
        (
            "maxTokensInPagedKvCache (29184) must be large enough to process at least 1 sequence to completion",
            "the KV cache has no room for one full request",
        ),
        ("mpirun noticed that process rank 1 with PID 7 on node a exited on signal 9 (Killed).", "host memory ended"),
        ("Failed, NCCL error /app/tensorrt_llm/cpp/a.cpp:59 'unhandled system error'", "the ranks could not reach one"),
        ("[TensorRT-LLM][WARNING] this may run out of memory", "ended before it was ready"),
        ("There are not enough slots available in the system to satisfy the 8", "mpirun has fewer slots than ranks"),
        ("Failed to initialize Python stub: No space left on device", "shared memory ended"),
        ("E1121 1 model_lifecycle.cc:621] failed to load 'tensorrt_llm' version 1: Internal", "a model failed to load"),
        ("something else", "ended before it was ready"),
    ],
)
def test_the_line_that_tells_is_found_among_the_others(tmp_path: Path, line: str, what: str) -> None:
    text = str(logs.died(_server(tmp_path, line, "I1121 1 server.cc:2] exiting"), 1))
    assert f"error: a: {what}" in text or f"error: a {what}" in text
    assert line in text
    assert str(tmp_path / "a.log") in text


def test_gpu_memory_is_told_before_the_signal_that_followed(tmp_path: Path) -> None:
    lines = ("mpirun noticed that process rank 1 exited on signal 9 (Killed).", "[TRT] [E] Error Code 2: OutOfMemory")
    assert "GPU memory ended" in str(logs.died(_server(tmp_path, *lines), 1))


@pytest.mark.parametrize("status", [-9, 137])
def test_who_was_killed_without_a_word_may_have_been_out_of_host_memory(tmp_path: Path, status: int) -> None:
    assert "hint: engines are read through host memory" in str(logs.died(_server(tmp_path), status))
    assert "hint" not in str(logs.died(_server(tmp_path), 1))


def test_the_end_of_a_log_is_its_last_lines_that_are_not_empty(tmp_path: Path) -> None:
    rows = logs.last(_server(tmp_path, *(f"{number} {'x' * 400}" for number in range(20)), "", " "))
    assert [str(text).split()[0] for name, text in rows if not name] == [str(number) for number in range(12, 20)]
    assert max(len(str(text)) for name, text in rows if not name) == logs.WIDE
    assert rows[-1] == ("log", str(tmp_path / "a.log"))
