"""serve_engine.py: a repository of an engine behind a server that listens, as the smoke test starts it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rules import plan
from tests.fakes import PROJECT
from tests.lane import toml
from tests.serving import until
from tests.standins import triton
from tests.test_built import engine

TOOLS = PROJECT / "rules" / "tools"
CONFIG = 'parameters {{ key: "gpt_model_path" value {{ string_value: "/repository/{model}/1/engine" }} }}\n'
PROMPTLY = 60


class Run:
    """The tool with what the action of an entry of tp2 gives it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state = folder, folder / "state.json"
        triton.install(folder / "standins", folder / "path", gpus=2)
        for model in ("ensemble", "tensorrt_llm"):
            (folder / "repository" / model / "1").mkdir(parents=True)
            (folder / "repository" / model / "config.pbtxt").write_text(CONFIG.format(model=model))
        self.engine = engine(folder / "repository" / "tensorrt_llm" / "1" / "engine", tp=2)
        action = plan.load(toml(parallelism='["tp2"]'), folder).actions["smoke:m_tp2_fp16_isl2048_osl1024_bs8"]
        places = {"{launcher}/launch.py": str(TOOLS / "launch" / "launch.py")}
        self.env = {name: places.get(value, value) for name, value in action.env}
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> subprocess.Popen[str]:
        argv = [
            sys.executable,
            "-I",
            str(TOOLS / "serve_engine.py"),
            f"--repository=smoke={self.folder / 'repository'}",
        ]
        argv += [f"--log={self.folder / 'server.log'}", f"--state={self.state}", "--http-port=0", "--grpc-port=0"]
        env = {**os.environ, **self.env, "PATH": f"{self.folder / 'path'}:{os.environ['PATH']}"}
        env["CUDA_VISIBLE_DEVICES"] = "0,1"
        errors, pipe = subprocess.STDOUT, subprocess.PIPE
        self.process = subprocess.Popen([*argv, "--metrics-port=0"], env=env, stdout=pipe, stderr=errors, text=True)
        return self.process

    def refused(self) -> str:
        """What it says when it does not start."""
        out, _ = self.start().communicate(timeout=PROMPTLY)
        assert self.process
        assert self.process.returncode == 1
        assert "Traceback" not in out
        return out


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    made = Run(tmp_path)
    yield made
    if made.process and made.process.poll() is None:
        made.process.send_signal(signal.SIGTERM)
        made.process.communicate(timeout=PROMPTLY)


def test_both_ranks_run_on_free_ports_and_configs_name_where_the_repository_is(run: Run) -> None:
    process = run.start()
    assert until(lambda: run.state.exists() or process.poll() is not None, PROMPTLY)
    state: dict[str, Any] = json.loads(run.state.read_text())
    assert process.stdout
    assert "tritonserver: ready\n" in [process.stdout.readline() for _ in range(3)], "what probe.py waits for"
    connection = http.client.HTTPConnection(state["host"], state["http_port"], timeout=60)
    connection.request("GET", "/v2/models/tensorrt_llm/ready")
    assert connection.getresponse().status == 200
    connection.close()
    ranks = [json.loads(line) for line in (run.folder / "standins/ranks.jsonl").read_text().splitlines()]
    assert sorted(one["rank"] for one in ranks) == [0, 1]
    (laid,) = {word.partition("=")[2] for one in ranks for word in one["argv"] if word.startswith("--model-repo")}
    assert f'"{laid}/tensorrt_llm/1/engine"' in Path(laid, "tensorrt_llm", "config.pbtxt").read_text()
    assert Path(laid, "tensorrt_llm/1/engine/rank1.engine").is_symlink(), "no copy of what may be 40 GB"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PROMPTLY)
    assert process.returncode == 0
    assert not Path(laid).exists()
    assert '"/repository/' in (run.folder / "repository/tensorrt_llm/config.pbtxt").read_text(), "the artifact"
    assert not list(Path("/dev/shm").glob(f"doit_trtllm_{process.pid}_*"))


def test_an_engine_of_another_world_size_is_refused(run: Run) -> None:
    engine(run.engine, tp=4)
    assert "error: the engine has another world size\n    engine   4\n    command  2 ranks" in run.refused()


def test_an_engine_without_one_of_its_ranks_is_refused(run: Run) -> None:
    (run.engine / "rank1.engine").unlink()
    assert "error: the engine has not all of its ranks\n    missing  rank1.engine" in run.refused()


def test_a_repository_without_an_engine_is_refused(run: Run) -> None:
    (run.engine / "config.json").unlink()
    assert "error: the engine's config.json cannot be read" in run.refused()
