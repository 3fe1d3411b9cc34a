"""serve.py: the real Triton server on a small repository, and each thing that can be wrong before it starts."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.serving import SERVE, Server, echo_repository, has_curl, leftovers, until


def _module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("serve_tool", SERVE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


serve = _module()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return echo_repository(tmp_path / "repository")


@pytest.fixture
def server(tmp_path: Path, repository: Path) -> Iterator[Server]:
    running = Server(tmp_path, a=repository)
    running.ready()
    yield running
    running.end(signal.SIGKILL)
    until(lambda: not leftovers(running))


def _refusal(tmp_path: Path, *arguments: str, **repositories: Path) -> str:
    """What serve.py says when it does not start."""
    server = Server(tmp_path, *arguments, **repositories)
    assert server.process.wait(60) == 1
    assert leftovers(server) == []
    error = server.err.read_text()
    assert error.startswith("error: ")
    assert "Traceback" not in error
    return error


def _ask_and_lose(server: Server, body: dict[str, Any]) -> None:
    with suppress(OSError, HTTPException, ValueError):
        server.post("/v2/models/echo/generate", body)


@pytest.mark.server
def test_the_curl_line_works_when_pasted(server: Server) -> None:
    if not has_curl():
        pytest.skip("no curl here")
    line = next(line for line in server.out.read_text().splitlines() if line.startswith("  curl"))
    pasted = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True, timeout=60)
    assert '"text_output":"What does a KV cache keep?"' in pasted.stdout


@pytest.mark.server
def test_the_state_file_says_what_runs(server: Server, repository: Path) -> None:
    state = server.ready()
    assert state["pid"] == server.process.pid
    assert state["host"] == "127.0.0.1"
    assert state["models"] == ["echo", "ensemble"]
    assert state["repositories"] == {"a": str(repository)}
    assert len({state["http_port"], state["grpc_port"], state["metrics_port"]}) == 3


@pytest.mark.server
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_and_leaves_nothing(server: Server, number: int) -> None:
    assert server.end(number) == 0
    assert leftovers(server) == []


@pytest.mark.server
def test_sigkill_leaves_nothing(server: Server) -> None:
    server.end(signal.SIGKILL)
    assert until(lambda: not leftovers(server)), leftovers(server)


@pytest.mark.server
def test_a_request_in_flight_does_not_keep_the_server_alive(server: Server) -> None:
    """The model has it, and would answer in ten minutes."""
    asking = threading.Thread(target=_ask_and_lose, args=(server, {"text_input": "never"}))
    asking.start()
    assert until(lambda: "never began" in server.log.read_text())
    assert server.end() == 0
    asking.join(60)
    assert not asking.is_alive()
    assert leftovers(server) == []


@pytest.mark.server
def test_a_server_that_dies_is_an_error_with_its_log(server: Server) -> None:
    os.kill(server.server_pid(), signal.SIGKILL)
    assert server.process.wait(60) == 1
    assert "error: tritonserver ended by itself" in server.err.read_text()
    assert str(server.log) in server.err.read_text()
    assert leftovers(server) == []


@pytest.mark.server
def test_the_repository_is_not_written_to(server: Server, repository: Path) -> None:
    server.post("/v2/models/echo/generate", {"text_input": "x"})
    assert sorted(path.name for path in repository.rglob("*.*")) == ["config.pbtxt", "config.pbtxt", "model.py"]


@pytest.mark.server
def test_several_variants_share_a_server(tmp_path: Path) -> None:
    shout = echo_repository(tmp_path / "shout")
    code = (shout / "echo/1/model.py").read_text()
    (shout / "echo/1/model.py").write_text(
        code.replace('Tensor("text_output", text)', 'Tensor("text_output", text * 2)')
    )
    server = Server(tmp_path, quiet=echo_repository(tmp_path / "quiet"), loud=shout)
    try:
        assert server.ready()["models"] == ["echo__quiet", "ensemble__quiet", "echo__loud", "ensemble__loud"]
        assert server.post("/v2/models/ensemble__quiet/generate", {"text_input": "x"})["text_output"] == "x"
        assert server.post("/v2/models/ensemble__loud/generate", {"text_input": "x"})["text_output"] == "xx"
        assert server.out.read_text().count("  curl -s") == 2
    finally:
        server.end()


@pytest.mark.server
def test_a_model_that_does_not_load_is_named_with_its_own_error(tmp_path: Path) -> None:
    error = _refusal(tmp_path, a=echo_repository(tmp_path / "broken", "import no_such_module"))
    assert "model echo failed to load" in error
    assert "No module named 'no_such_module'" in error
    assert str(tmp_path / "server.log") in error


def test_a_port_in_use_is_named_with_its_process(tmp_path: Path, repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error = _refusal(tmp_path, f"--grpc-port={port}", a=repository)
    assert f"port {port} for grpc cannot be used" in error
    assert f"pid {os.getpid()}: " in error


def test_a_port_that_is_no_port_is_refused(tmp_path: Path, repository: Path) -> None:
    assert "port 99999 for http cannot be used" in _refusal(tmp_path, "--http-port=99999", a=repository)


def test_free_ports_differ() -> None:
    ports = serve.choose_ports("127.0.0.1", {"http": 0, "grpc": 0, "metrics": 0})
    assert len(set(ports.values())) == 3


def test_a_folder_without_models_is_not_a_repository(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "b is not a Triton model repository" in _refusal(tmp_path, b=tmp_path / "empty")


def test_a_malformed_config_is_named_by_file_and_place(tmp_path: Path, repository: Path) -> None:
    (repository / "echo/config.pbtxt").write_text('nme: "echo"')
    error = _refusal(tmp_path, a=repository)
    assert str(repository / "echo/config.pbtxt") in error
    assert 'no field named "nme"' in error


def test_a_python_without_the_wheel_says_so(tmp_path: Path, repository: Path) -> None:
    argv = [sys.executable, "-I", "-S", str(SERVE), f"--repository=a={repository}", "--log=l", "--state=s"]
    result = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=60)
    assert result.returncode == 1
    assert "error: the wheel nvidia-pytriton is not installed" in result.stderr


@pytest.mark.parametrize("version", [None, "musl 1.2", "glibc 2.31", "glibc 2.9"])
def test_an_old_or_other_c_library_is_refused(version: str | None) -> None:
    with pytest.raises(serve.Refused, match=r"needed +glibc 2\.35"):
        serve.require_glibc(version)


@pytest.mark.parametrize("version", ["glibc 2.35", "glibc 2.100", "glibc 3.0"])
def test_a_new_c_library_is_accepted(version: str) -> None:
    serve.require_glibc(version)


def test_numpy_2_is_refused() -> None:
    serve.require_numpy("1.26.4")
    with pytest.raises(serve.Refused, match="numpy 2 corrupts"):
        serve.require_numpy("2.0.0rc1")


@pytest.mark.parametrize("name", ["libpython3.9999.so.1.0", "libpython3.11.a"])
def test_a_python_without_a_shared_library_is_refused(name: str) -> None:
    with pytest.raises(serve.Refused, match=f"has no shared library(.|\n)*{name}"):
        serve.libpython(name)


def test_a_program_without_a_run_bit_is_copied_and_its_source_left_alone(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_text("#!/bin/sh\n")
    source.chmod(0o444)
    target: Path = serve.runnable(source, tmp_path / "target")
    assert target.stat().st_mode & 0o100
    assert not source.stat().st_mode & 0o111
