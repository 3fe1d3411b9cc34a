"""`doit stop`: ends our servers, and nobody else's."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rules.commands.stop import stop_all
from tests.space import Space


def test_stop_without_a_server_says_so(workspace: Space) -> None:
    assert workspace.build("stop") == "no server is running\n"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"pid": "x"}', '{"pid": 999999999, "repositories": {}, "http_port": 1}']
)
def test_a_stale_state_file_is_removed(tmp_path: Path, text: str) -> None:
    (tmp_path / "1.json").write_text(text)
    assert stop_all(tmp_path) == (["removed 1.json: its server is gone"], True)
    assert not (tmp_path / "1.json").exists()


def test_a_process_that_got_the_number_of_a_dead_server_is_left_alone(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        (tmp_path / "1.json").write_text(json.dumps({"pid": other.pid, "repositories": {"a": "x"}, "http_port": 1}))
        assert stop_all(tmp_path) == (["removed 1.json: its server is gone"], True)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_server_of_another_user_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise PermissionError

    state = tmp_path / "1.json"
    argv = [sys.executable, "-c", "import time; print('here', flush=True); time.sleep(60)", f"--state={state}"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as theirs:
        assert theirs.stdout
        theirs.stdout.readline()
        state.write_text(json.dumps({"pid": theirs.pid, "repositories": {"a": "x"}, "http_port": 1}))
        monkeypatch.setattr("rules.commands.stop.os.kill", refuse)
        assert stop_all(tmp_path) == ([f"error: server {theirs.pid} (a on port 1) is another user's"], False)
        monkeypatch.undo()
        theirs.kill()
    assert state.exists()


def test_a_server_that_will_not_end_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rules.commands.stop._PATIENCE_S", 0.3)
    state = tmp_path / "1.json"
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    argv = [sys.executable, "-c", code, f"--state={state}"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as deaf:
        assert deaf.stdout
        deaf.stdout.readline()
        state.write_text(json.dumps({"pid": deaf.pid, "repositories": {"a": "x"}, "http_port": 1}))
        lines, stopped = stop_all(tmp_path)
        deaf.send_signal(signal.SIGKILL)
    assert not stopped
    assert f"error: server {deaf.pid} (a on port 1) has not ended" in lines[0]
