"""What the real tools make for tests: checkpoints, IRs and engines, each made once per run of the suite.

Ask for the fixture, never for a copy of your own: a tiny Qwen2 is 20 s of CPU, an export 10 s. All are read-only, and
shared by every test file and by the workers of `pytest -n`; copy what you want to change.

    def test_x(engine: Made) -> None:
        folder = engine("llama", "int8_wo")

`source(architecture)`, `converted(architecture)` and `engine(architecture, precision)` are the chain; `make(tool,
*arguments)` is any tool's output; `run_tool(tool, *arguments)` runs one again, for what it says and how it ends.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fakes import PROJECT

__all__ = ["Made", "Run", "converted", "engine", "make", "run_tool", "shape_words", "source"]

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Made = Callable[..., Path]


@pytest.fixture(scope="session")
def run_tool() -> Run:
    """`run_tool(name, *arguments)` runs rules/tools/<name>.py in an isolated Python and captures its text."""

    def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-I", str(PROJECT / "rules" / "tools" / f"{name}.py"), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)

    return run


@pytest.fixture(scope="session")
def make(run_tool: Run, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """`make(name, *arguments)` is the folder that the tool wrote; equal calls share one."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made"
    shared.mkdir(exist_ok=True)

    @functools.cache
    def made(name: str, *arguments: object) -> Path:
        words = "\0".join(map(str, arguments)).encode()
        out = shared / f"{name}-{hashlib.sha256(words).hexdigest()[:12]}"
        with _locked(out.with_suffix(".lock")) as whole:
            if not whole():
                shutil.rmtree(out, ignore_errors=True)
                out.mkdir()
                done = run_tool(name, *arguments, "--out", out)
                assert done.returncode == 0, done.stdout + done.stderr
        return out

    return made


@contextmanager
def _locked(path: Path) -> Iterator[Callable[[], bool]]:
    """Alone among the workers; `whole()` says whether one of them came through before."""
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield lambda: bool(os.fstat(file.fileno()).st_size)
        file.write("whole\n")


@pytest.fixture(scope="session")
def source(make: Made) -> Made:
    """`source(architecture)` is a tiny Hugging Face checkpoint; qwen2 knows its answers."""
    return lambda architecture: make("tiny", "--architecture", architecture, "--seed", 20)


@pytest.fixture(scope="session")
def converted(make: Made, source: Made) -> Made:
    """`converted(architecture)` is its OpenVINO IR."""
    return lambda architecture: make("openvino_convert", "--source", source(architecture))


@pytest.fixture(scope="session")
def engine(make: Made, converted: Made) -> Made:
    """`engine(architecture, precision)` is an engine for 8 requests of 256 + 64 tokens."""
    shape = shape_words(batch_size=8, input_len=256, output_len=64, num_tokens=2048)

    def made(architecture: str, precision: str) -> Path:
        checkpoint = converted(architecture)
        if precision != "fp32":
            checkpoint = make("openvino_quantize", "--checkpoint", checkpoint, "--precision", precision)
        return make("openvino_compile", "--checkpoint", checkpoint, "--precision", precision, *shape)

    return made


def shape_words(**limits: int) -> tuple[str, ...]:
    """openvino_compile's options: `input_len=256` is --max-input-len=256."""
    return tuple(f"--max-{name.replace('_', '-')}={value}" for name, value in limits.items())
