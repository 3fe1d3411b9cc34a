"""What the tests of tools share: running a tool as the executor does, and checkpoints made once a session."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes import PROJECT

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Made = Callable[..., Path]


@pytest.fixture
def one_thread() -> None:
    """torch in this process keeps to one thread: its threads spin, and on a busy machine wait for one another."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def run_tool() -> Run:
    """`run_tool(name, *arguments)` runs rules/tools/<name>.py in an isolated Python and captures its text."""

    def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-I", str(PROJECT / "rules" / "tools" / f"{name}.py"), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)

    return run


@pytest.fixture(scope="session")
def make(run_tool: Run, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """`make(name, *arguments)` is the folder that the tool wrote; equal calls share one. Read-only."""

    @functools.cache
    def made(name: str, *arguments: object) -> Path:
        out = tmp_path_factory.mktemp(name)
        done = run_tool(name, *arguments, "--out", out)
        assert done.returncode == 0, done.stdout + done.stderr
        return out

    return made


@pytest.fixture(scope="session")
def source(make: Made) -> Made:
    """`source(architecture)` is a tiny Hugging Face checkpoint."""
    return lambda architecture: make("tiny", "--architecture", architecture, "--seed", 20)


@pytest.fixture(scope="session")
def converted(make: Made, source: Made) -> Made:
    """`converted(architecture)` is its OpenVINO IR."""
    return lambda architecture: make("openvino_convert", "--source", source(architecture))


@pytest.fixture(scope="session")
def engine(make: Made, converted: Made) -> Made:
    """`engine(architecture, precision)` is an engine for 8 requests of 256 + 64 tokens."""

    def made(architecture: str, precision: str) -> Path:
        checkpoint = converted(architecture)
        if precision != "fp32":
            checkpoint = make("openvino_quantize", "--checkpoint", checkpoint, "--precision", precision)
        shape = ("--max-batch-size", 8, "--max-input-len", 256, "--max-output-len", 64, "--max-num-tokens", 2048)
        return make("openvino_compile", "--checkpoint", checkpoint, "--precision", precision, *shape)

    return made


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The empty folder that a tool writes to."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder
