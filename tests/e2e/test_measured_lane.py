"""bench:X and eval:X of the TensorRT-LLM lane: each starts its server on GPUs that it holds, and leaves nothing behind.

Stand-ins for docker, mpirun and tritonserver take what the real ones would; what asks and starts is the real thing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rules.gpu import Gpus
from tests.machine import NAME, Machine
from tests.serving import until
from tests.space import Result
from tests.tools.test_probe import canned_repository

LONG = 60
OTHER = NAME.replace("fp16", "bf16")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, shared_site: Path) -> Machine:
    """With two GPUs. Its engines are built by the first test that wants them."""
    folder = tmp_path_factory.mktemp("machine")
    (folder / "space").mkdir()
    return Machine(folder, Path(shutil.copytree(shared_site, folder / "site")))


@pytest.fixture(autouse=True)
def _clean(machine: Machine) -> Iterator[None]:
    for name in ("fails", "behind", "ranks.jsonl"):
        (machine.standins / name).unlink(missing_ok=True)
    shutil.rmtree(machine.space.root / "artifacts" / "bench", ignore_errors=True)
    yield
    assert until(lambda: not machine.left(), LONG), machine.left()


def _run(machine: Machine, *arguments: str) -> Result:
    return machine.space.run(*arguments, **machine.env)


def _measuring(machine: Machine) -> subprocess.Popen[str]:
    """A bench that goes on for long and has had answers."""
    process = machine.space.start("bench", NAME, "--seconds=600", "--concurrency=1", **machine.env)
    logs = machine.space.root / "artifacts/bench" / NAME
    answered = re.compile(r": (?:[2-9]|\d\d+) answered")  # the last of them may still be on its way
    assert until(lambda: any(answered.search(path.read_text()) for path in logs.glob("*/load.log")), LONG)
    return process


def _summaries(machine: Machine, name: str = NAME) -> list[dict[str, Any]]:
    folder = machine.space.root / "artifacts/bench" / name
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*/summary.json"))]


def _started(machine: Machine) -> list[list[str]]:
    """The command lines of the containers that served, in order."""
    calls = [json.loads(line) for line in (machine.standins / "calls.jsonl").read_text().splitlines()]
    return [call for call in calls if call[0] == "run" and any("--publish" in word for word in call)]


def test_every_variant_is_measured_behind_a_container_of_its_own_that_is_started_once(machine: Machine) -> None:
    machine.entry(precisions='"fp16", "bf16"', more="gates = { error_rate = 0, requests_per_s = 1e9 }")
    machine.stub("--gap", "1")
    done = _run(machine, "bench", "m")
    assert done.rc == 1, done.out + done.err
    assert (done.out + done.err).count("breaks 1 of 2 gates") == 2
    assert machine.ranks() == [(0, "0,1"), (0, "0,1"), (1, "0,1"), (1, "0,1")]
    for name in (NAME, OTHER):
        (summary,) = _summaries(machine, name)
        assert [point["counts"]["ok"] for point in summary["points"]] == [4, 4]
        assert summary["points"][0]["server"]["models"]["ensemble"]["requests"] == 4.0
        assert "process" not in summary["points"][0]["server"], "a container's processes are not ours to count"
        assert (summary["finished"], summary["server"]["gpus"]) == (True, ["0", "1"])
        gauges = summary["points"][0]["server"]["gauges"]
        assert gauges["gpu_memory_used"] == {"unit": "bytes", "avg": 3118 << 20, "max": 3118 << 20}, "both GPUs'"
        assert (gauges["gpu_utilization"]["avg"], "gpu_power" in gauges) == (50.0, False)
        assert (summary["gpus"], summary["versions"]["driver"]) == (["NVIDIA H100 80GB HBM3 x 2"], "550.54.15")
    for call in _started(machine):
        published = [word.partition("=")[2].split(":") for word in call if word.startswith("--publish=")]
        assert [(address, inside) for address, _, inside in published] == [
            ("127.0.0.1", "8000"), ("127.0.0.1", "8001"), ("127.0.0.1", "8002"),
        ]  # fmt: skip
        assert '"device=0,1"' in call
        assert [word for word in call if "target=/repository,readonly" in word]


def test_here_ranks_run_under_mpirun_and_their_own_use_is_told(machine: Machine) -> None:
    machine.entry("local")
    machine.stub("--gap", "1")
    done = _run(machine, "bench", NAME, "--concurrency=2")
    assert done.rc == 0, done.out + done.err
    assert machine.ranks() == [(0, "0,1"), (1, "0,1")]
    (summary,) = _summaries(machine)
    (point,) = summary["points"]
    assert (point["counts"]["ok"], point["server"]["process"]["memory_peak_bytes"] > 0) == (4, True)
    (log,) = (machine.space.root / "artifacts/bench" / NAME).glob("*/bench-*.0.log")
    assert log.exists()


def test_gpus_that_another_doit_holds_are_waited_for(machine: Machine) -> None:
    machine.entry()
    machine.stub()
    _run(machine, "build:m")
    others = Gpus(("0", "1"), Path(machine.env["TMPDIR"]) / "doit-engines-gpus")
    others.hold(["1"])
    heard = []
    with machine.space.start("bench", NAME, **machine.env) as process:
        assert process.stdout
        for line in process.stdout:
            heard.append(line)
            if "waiting for 2 of 2 GPUs" in line:
                assert machine.ranks() == []
                others.let_go()
    assert process.returncode == 0, heard
    assert any("waiting for 2 of 2 GPUs" in line for line in heard)
    assert machine.ranks() == [(0, "0,1"), (1, "0,1")]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_however_it_is_ended_what_was_measured_is_kept_and_nothing_runs(
    machine: Machine, number: int, code: int
) -> None:
    machine.entry()
    machine.stub("--gap", "20")
    process = _measuring(machine)
    process.send_signal(number)
    out, err = process.communicate(timeout=LONG)
    assert process.returncode == code, out + err
    assert until(lambda: not machine.left()), machine.left()
    (summary,) = _summaries(machine)
    assert [(point["partial"], point["counts"]["ok"] > 0) for point in summary["points"]] == [(True, True)]
    gpus = Gpus(("0", "1"), Path(machine.env["TMPDIR"]) / "doit-engines-gpus")
    assert until(lambda: gpus.idle() == ("0", "1")), "held until the last of it is gone"


def test_a_server_that_ends_while_it_is_measured_is_told_and_the_point_is_not_taken_for_whole(machine: Machine) -> None:
    machine.entry()
    machine.stub("--gap", "20")
    process = _measuring(machine)
    (container,) = (machine.standins / "containers").iterdir()
    os.kill(json.loads(container.read_text())["pid"], signal.SIGTERM)
    out, err = process.communicate(timeout=LONG)
    assert process.returncode == 1
    assert "the server ended while it was measured" in out + err
    (log,) = (machine.space.root / "artifacts/bench" / NAME).glob("*/load.log")
    assert not re.search(r"-\d+ answered", log.read_text()), "refused connections are failures alone"
    (summary,) = _summaries(machine)
    assert (summary["finished"], [point["partial"] for point in summary["points"]]) == (False, [True])


@pytest.mark.parametrize("kind", ["bench", "eval"])
def test_a_server_that_cannot_start_is_told_in_the_words_of_its_log_which_is_kept(machine: Machine, kind: str) -> None:
    machine.entry(more='eval = { data = "file:q.jsonl", metrics = ["exact_match"], max_tokens = 32 }')
    oom = "[TensorRT-LLM][ERROR] CUDA runtime error in ::cudaMallocAsync(ptr, n, stream): out of memory"
    (machine.standins / "fails").write_text(oom)
    done = _run(machine, f"{kind}:m")
    assert done.rc == 1
    assert "GPU memory ended" in done.out + done.err
    assert oom in done.out + done.err
    (log,) = (machine.space.root / "artifacts").rglob({"bench": "bench-*.0.log", "eval": "*.server.log"}[kind])
    assert oom in log.read_text()


@pytest.mark.server
def test_questions_are_asked_inside_the_toolchain_and_scored(machine: Machine, tmp_path: Path) -> None:
    machine.entry(more='eval = { data = "file:q.jsonl", metrics = ["exact_match"], max_tokens = 32 }')
    machine.triton(canned_repository(tmp_path / "canned"))
    done = _run(machine, "eval:m")
    assert done.rc == 0, done.out + done.err
    assert machine.ranks() == [(0, "0,1"), (1, "0,1")]
    (answers,) = (machine.space.root / "artifacts/eval" / NAME).glob("*/answers.jsonl")
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [row["text"] for row in rows] == [" Bees make honey 🐝🍯", "蜜蜂酿蜂蜜🐝"]
    assert [len(row["ids"]) for row in rows] == [19, 6]
