"""`doit serve` and `doit stop`: the commands around serve.py."""

from __future__ import annotations

import http.client
import json
import os
import socket
from pathlib import Path

import pytest

from rules.commands.serve import detach
from rules.commands.stop import stop_all
from rules.serving import tool_argv
from tests.lane import toml
from tests.serving import echo_repository
from tests.space import HEAD, SPEC, Space

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


def test_a_dry_run_shows_what_would_be_typed_and_builds_nothing(workspace: Space) -> None:
    workspace.write("models.toml", toml("0.11.0", "docker", parallelism='["tp4pp2"]'))
    shown = workspace.build("serve", "m", "--dry-run", "--http-port", "8400", "--gpus=0,1,2,3,4,5,6,7")
    assert shown.startswith("# m_tp4pp2_fp16_isl2048_osl1024_bs8: GPUs 0,1,2,3,4,5,6,7, http 8400, grpc 8001")
    assert "--gpus '\"device=0,1,2,3,4,5,6,7\"' --shm-size=32g" in shown
    assert shown.count("--load-model=tensorrt_llm") == 7
    assert workspace.ran() == []
    assert not (workspace.root / "artifacts" / "server").exists()


def test_the_embedded_lane_has_a_dry_run_and_no_gpus(workspace: Space) -> None:
    assert f"--repository={NAME}=" in workspace.build("serve", "m", "--dry-run")
    refused = workspace.run("serve", "m", "--gpus", "0", "--instances=2")
    assert refused.rc == 3
    assert "--gpus, --instances: these variants run on the CPU" in refused.err
    assert workspace.ran() == []


def test_variants_of_both_lanes_are_not_served_together(workspace: Space) -> None:
    workspace.write("models.toml", SPEC.replace(HEAD, "") + toml("0.11.0", "docker").replace("models.m]", "models.g]"))
    refused = workspace.run("serve", "m", "g")
    assert refused.rc == 3
    assert "one server cannot serve both" in refused.err


@pytest.mark.parametrize("typed", ["--gpus=0,;1", "--gpus=,", "--instances=0"])
def test_what_cannot_be_read_is_refused(workspace: Space, typed: str) -> None:
    workspace.write("models.toml", toml("0.11.0", "docker"))
    refused = workspace.run("serve", "m", "--dry-run", typed)
    assert refused.rc == 3
    assert "--gpus or --instances cannot be read" in refused.err


@pytest.mark.server
def test_a_detached_server_answers_until_it_is_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tmp_path / "server/1"
    assert detach(tool_argv({"a": echo_repository(tmp_path / "a")}, FREE, "127.0.0.1", base), base) == 0
    assert "  curl -s http://127.0.0.1:" in capsys.readouterr().out
    state = json.loads(base.with_suffix(".json").read_text())
    assert os.getsid(state["pid"]) == state["pid"]
    connection = http.client.HTTPConnection("127.0.0.1", state["http_port"], timeout=60)
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
