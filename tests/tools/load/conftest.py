"""What the tests of the load tool share: its modules by their own names, a server without a model, and runs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import PROJECT

LOAD = PROJECT / "rules" / "tools" / "load"
sys.path.insert(0, str(LOAD))

GOLDEN = PROJECT / "tests" / "golden" / "measure"
SETTINGS: dict[str, Any] = {
    "model": "ensemble", "endpoint": "grpc", "stream": True, "fixed": True, "prompts": None, "column": None,
    "size": None, "isl": 8, "isl_stddev": 0, "isl_max": None, "osl": 4, "osl_stddev": 0, "osl_max": None,
    "concurrency": [4], "request_rate": [], "arrival": "poisson", "requests": 12, "seconds": None, "warmup": 0,
    "repeats": 1, "seed": 0, "timeout_s": 60.0, "processes": 1, "slo": {}, "counting": "server", "tokenizer": None,
    "grpc": None, "http": None, "metrics": "",
}  # fmt: skip


def stub(*arguments: str) -> Iterator[dict[str, int]]:
    """The ports of a server without a model."""
    argv = [sys.executable, str(PROJECT / "benchmarks" / "stub.py"), *arguments]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield json.loads(process.stdout.readline())
        process.kill()


@pytest.fixture(scope="session")
def quick() -> Iterator[dict[str, int]]:
    """A server that answers at once."""
    yield from stub()


@pytest.fixture(scope="session")
def slow() -> Iterator[dict[str, int]]:
    """A server with a response every 100 ms."""
    yield from stub("--first", "100", "--gap", "100")


@pytest.fixture
def run_folder(tmp_path: Path) -> Callable[..., Path]:
    """`run_folder(ports, prompts, **settings)`: a run of these prompts against a stub."""

    def make(ports: dict[str, int], prompts: list[dict[str, Any]], **settings: Any) -> Path:
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        (folder / "prompts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in prompts))
        place = {"grpc": f"127.0.0.1:{ports['grpc']}", "http": f"http://127.0.0.1:{ports['http']}"}
        asked = SETTINGS | place | {"prompts": str(folder / "prompts.jsonl")} | settings
        identity = {"version": 1, "kind": "bench", "variant": "v"}
        (folder / "run.json").write_text(json.dumps({"settings": asked, "identity": identity}))
        return folder

    return make


def load(folder: Path) -> tuple[int, dict[str, Any]]:
    """Runs the tool to its end: (exit code, summary)."""
    done = subprocess.run(command(folder), capture_output=True, text=True, check=False, timeout=300)
    path = folder / "summary.json"
    assert path.exists(), done.stdout + done.stderr
    return done.returncode, json.loads(path.read_text())


def command(folder: Path) -> list[str]:
    """The tool's command line."""
    return [sys.executable, "-I", str(LOAD), f"--run={folder}"]


def recomputed() -> list[Any]:
    """The requests of tests/golden/measure: the export is the real perf_analyzer's of the tiny model, and the summary
    and the table are GenAI-Perf 0.0.16's of that export. A token is a byte there.
    """
    from measures import Timing

    export = json.loads((GOLDEN / "profile_export.json").read_text())
    found = []
    for one in export["experiments"][0]["requests"]:
        text = "".join(output["text_output"] for output in one["response_outputs"])
        asked = one["request_inputs"]["text_input"]
        lengths = len(asked.encode()), len(text.encode())
        found.append(Timing(one["timestamp"], one["response_timestamps"], *lengths))
    return found
