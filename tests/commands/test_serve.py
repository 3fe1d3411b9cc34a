"""`doit serve` and `doit stop`: the commands around serve.py."""

from __future__ import annotations

import http.client
import json
import os
import socket
from pathlib import Path

import pytest

from rules.commands.serve import detach, tool_argv
from rules.commands.stop import stop_all
from tests.serving import echo_repository
from tests.space import Space

NAME = "m_int8_wo_isl256_osl64_bs8"
FREE = {"http": 0, "grpc": 0, "metrics": 0}


def test_serve_builds_what_is_stale_and_becomes_the_tool(tmp_path: Path, own_site: Path) -> None:
    (own_site / "rules/tools/serve.py").write_text("import sys\nprint(*sys.argv[1:], sep='\\n')\nsys.exit(7)\n")
    (tmp_path / "space").mkdir()
    space = Space(tmp_path / "space", own_site)
    result = space.run("serve", "m", "--http-port", "0")
    assert "render" in space.ran()
    assert result.rc == 7, "the exit code is the tool's"
    assert f"--repository={NAME}={space.root}/artifacts/build/{NAME}\n" in result.out
    assert "--http-port=0\n--grpc-port=8001\n" in result.out
    space.run("serve", "m")
    assert space.ran() == []


def test_a_build_that_fails_is_not_served(workspace: Space) -> None:
    workspace.poison()
    result = workspace.run("serve", "m")
    assert result.rc == 1
    assert "serve" not in workspace.ran()


def test_an_unknown_variant_is_an_error(workspace: Space) -> None:
    result = workspace.run("serve", "m_int8_wp")
    assert result.rc == 3
    assert "there is no 'build:m_int8_wp'" in result.err


def test_a_command_line_names_every_variant_and_port() -> None:
    chosen = {"a": Path("/x/a"), "b": Path("/x/b")}
    argv = tool_argv(chosen, {"http": 1, "grpc": 2, "metrics": 3}, "::1", Path("/y/7"))
    assert [argument for argument in argv if argument.startswith("--")] == [
        "--repository=a=/x/a",
        "--repository=b=/x/b",
        "--host=::1",
        "--http-port=1",
        "--grpc-port=2",
        "--metrics-port=3",
        "--log=/y/7.log",
        "--state=/y/7.json",
    ]


@pytest.mark.server
def test_a_detached_server_answers_until_it_is_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tmp_path / "server/1"
    assert detach(tool_argv({"a": echo_repository(tmp_path / "a")}, FREE, "127.0.0.1", base), base) == 0
    assert "  curl -s http://127.0.0.1:" in capsys.readouterr().out
    state = json.loads(base.with_suffix(".json").read_text())
    assert os.getsid(state["pid"]) == state["pid"]
    connection = http.client.HTTPConnection("127.0.0.1", state["http_port"], timeout=5)
    connection.request("GET", "/v2/health/ready")
    assert connection.getresponse().status == 200
    connection.close()
    lines, stopped = stop_all(base.parent)
    assert stopped
    assert lines == [f"stopped server {state['pid']} (a on port {state['http_port']})"]
    assert not base.with_suffix(".json").exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", state["http_port"]), 1)


def test_a_detached_server_that_cannot_start_shows_its_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "server/1"
    assert detach(tool_argv({"a": tmp_path}, FREE, "127.0.0.1", base), base) == 1
    assert "error: a is not a Triton model repository" in capsys.readouterr().out
