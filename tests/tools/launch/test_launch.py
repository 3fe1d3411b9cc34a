"""The launcher with servers that really listen: it waits, tells what a log means, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rules.launcher import Launch, argv
from rules.release import load
from tests.fakes import PROJECT
from tests.serving import free, until
from tests.standins import triton

LAUNCH = PROJECT / "rules" / "tools" / "launch" / "launch.py"
PROMPTLY = 60


class Run:
    """The launcher in a folder, with stand-ins for all that it starts."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state, self.out = folder, folder / "state.json", folder / "out"
        triton.install(folder / "standins", folder / "path", gpus=4)
        self.process: subprocess.Popen[bytes] | None = None

    def server(self, name: str = "a", ranks: int = 1, **more: object) -> dict[str, Any]:
        """What is told of a server of `ranks` ranks, whose repository has two models."""
        for model in ("ensemble", "tensorrt_llm"):
            config = self.folder / name / model / "config.pbtxt"
            config.parent.mkdir(parents=True, exist_ok=True)
            config.write_text(f'name: "{model}"\n')
        ports = dict(zip(("http", "grpc", "metrics"), free(), strict=True))
        http, grpc, metrics = ports.values()
        prefix = f"doit_trtllm_{{pid}}_{name}_rank"
        where = str(self.folder / name)
        launch = Launch(world_size=ranks, repository=where, ports=(http, grpc, metrics), prefix=prefix)
        env = {"CUDA_VISIBLE_DEVICES": "0"}
        text = {"name": name, "argv": argv(load("0.11.0"), launch), "env": env, "host": "127.0.0.1", "ports": ports}
        paths = {"log": str(self.folder / f"{name}.log"), "folder": str(self.folder / f"{name}.0")}
        return {**text, **paths, "models": ["ensemble"], "repositories": {name: where}, "prefix": prefix, **more}

    def start(self, *servers: dict[str, Any], more: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        named = [f"--server={json.dumps(server)}" for server in servers]
        path = {**os.environ, "PATH": f"{self.folder / 'path'}:{os.environ['PATH']}"}
        with self.out.open("wb") as out:
            argv = [sys.executable, "-I", str(LAUNCH), *named, *more, f"--state={self.state}"]
            self.process = subprocess.Popen(argv, env=path, stdout=out, stderr=out)
        return self.process

    def ready(self) -> dict[str, Any]:
        assert self.process
        until(lambda: self.state.exists() or self.process.poll() is not None, PROMPTLY)
        assert self.state.exists(), self.out.read_text()
        state: dict[str, Any] = json.loads(self.state.read_text())
        return state

    def ranks(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "standins/ranks.jsonl").read_text().splitlines()]

    def left(self) -> list[str]:
        """Processes, regions and files that should be gone."""
        assert self.process
        found = [str(path) for path in Path("/dev/shm").glob(f"doit_trtllm_{self.process.pid}_*")]
        found += [str(self.state)] if self.state.exists() else []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            found += [text] if str(self.folder / "standins") in text else []
        return found


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    made = Run(tmp_path)
    yield made
    if made.process and made.process.poll() is None:
        made.process.kill()
        made.process.wait()
    assert until(lambda: not made.process or not made.left(), PROMPTLY), made.left()


def test_two_servers_of_several_ranks_are_ready_and_end_without_leftovers(run: Run) -> None:
    run.start(run.server("a", ranks=4), run.server("b"))
    state = run.ready()
    assert until(lambda: "tritonserver: ready\n" in run.out.read_text(), PROMPTLY)
    assert [server["name"] for server in state["servers"]] == ["a", "b"]
    assert "/v2/models/ensemble/generate -d '{" in run.out.read_text()
    assert sorted(one["rank"] for one in run.ranks()) == [0, 0, 1, 2, 3]
    assert run.process
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(PROMPTLY) == 0
    assert "tritonserver: stopped" in run.out.read_text()
    assert run.left() == []


def test_killed_itself_it_leaves_no_rank_and_no_region(run: Run) -> None:
    run.start(run.server("a", ranks=2))
    run.ready()
    assert run.process
    run.process.kill()
    run.process.wait()
    assert until(lambda: not run.left(), PROMPTLY), run.left()


def test_one_that_dies_ends_the_others_and_is_named(run: Run) -> None:
    server = run.server("a", ranks=2)
    run.start(server, run.server("b"))
    run.ready()
    rank = next(pid for pid in _pids(run) if f"--http-port={server['ports']['http']}" in pid[1])
    os.kill(rank[0], signal.SIGKILL)
    assert run.process
    assert run.process.wait(PROMPTLY) == 1
    assert "error: a ended by itself" in run.out.read_text()


def _pids(run: Run) -> list[tuple[int, str]]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it ended meanwhile
            continue
        if f"{run.folder / 'standins'} tritonserver" in text:
            found.append((int(path.parent.name), text))
    return found


def test_a_server_that_cannot_start_is_told_in_the_words_of_its_log(run: Run) -> None:
    line = "E1121 1 model_lifecycle.cc:621] failed to load 'tensorrt_llm' version 1: Internal"
    (run.folder / "standins" / "fails").write_text(line)
    assert run.start(run.server("a")).wait(PROMPTLY) == 1
    text = run.out.read_text()
    assert "error: a: a model failed to load" in text
    assert line in text
    assert str(run.folder / "a.log") in text
    assert "Traceback" not in text


def test_a_port_in_use_is_told_before_anything_starts(run: Run) -> None:
    server = run.server("a")
    with socket.socket() as other:
        other.bind(("127.0.0.1", server["ports"]["grpc"]))
        other.listen()
        assert run.start(server).wait(PROMPTLY) == 1
    assert "error: a port cannot be used" in run.out.read_text()
    assert f"a, grpc  {server['ports']['grpc']}: pid {os.getpid()}" in run.out.read_text()
    assert not (run.folder / "standins" / "ranks.jsonl").exists()


def test_ports_that_nobody_chose_are_free_ones_that_the_kernel_gives_to_nobody_else(run: Run) -> None:
    server = run.server("a")
    argv = [re.sub(r"--(http|grpc|metrics)-port=\d+", r"--\1-port={\1}", word) for word in server["argv"]]
    run.start({**server, "argv": argv, "ports": dict.fromkeys(server["ports"], 0)})
    state = run.ready()
    given = state["servers"][0]["ports"]
    assert len(set(given.values())) == 3
    assert all(10_000 <= port < 32_768 for port in given.values())
    (rank,) = run.ranks()
    assert {f"--{name}-port={port}" for name, port in given.items()} <= set(rank["argv"])


def test_a_server_that_never_is_ready_is_given_up_with_the_end_of_its_log(run: Run) -> None:
    server = run.server("a", models=["never"])
    assert run.start(server, more=("--load-seconds=2",)).wait(PROMPTLY) == 1
    text = run.out.read_text()
    assert "error: a was not ready after 2 s" in text
    assert "load_timeout_s in [serve] of models.toml" in text
    assert str(run.folder / "a.log") in text


def test_without_mpirun_the_container_is_named(run: Run) -> None:
    (run.folder / "path" / "mpirun").unlink()
    server = run.server("a")
    server["argv"][0] = "mpirun-of-nowhere"
    assert run.start(server).wait(PROMPTLY) == 1
    assert "hint: run inside the release's container" in run.out.read_text()


def test_regions_of_a_server_that_was_killed_together_with_its_janitor_are_swept(run: Run) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    old = Path(f"/dev/shm/doit_trtllm_{dead.pid}_0_rank0_x")
    mine = Path(f"/dev/shm/doit_trtllm_{os.getpid()}_0_rank0_x")
    try:
        for region in (old, mine):
            region.write_text("")
        run.start(run.server("a"))
        run.ready()
        assert not old.exists()
        assert mine.exists(), "its server is alive"
    finally:
        mine.unlink()


def test_servers_that_share_a_gpu_start_one_after_the_other(run: Run) -> None:
    run.start(run.server("a"), run.server("b"), more=("--one-by-one",))
    run.ready()
    lines = [line.strip() for line in run.out.read_text().splitlines() if "starting" in line or " is ready" in line]
    assert [line.split(",")[0].split(" (")[0] for line in lines] == [
        "tritonserver: starting a",
        "a is ready",
        "tritonserver: starting b",
        "b is ready",
    ]
