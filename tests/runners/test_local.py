"""Commands on this machine: their environment, their output, and that all of them ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from rules.errors import StepFailed
from rules.pins import PINS
from rules.runners import local
from tests.fakes import PROJECT
from tests.serving import alive, until


def _command(tmp_path: Path, code: str, **more: object) -> local.Command:
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    fields: dict[str, object] = {"env": {}, "log": tmp_path / "log", "scratch": scratch, **more}
    return local.Command(argv=[sys.executable, "-c", textwrap.dedent(code)], **fields)  # type: ignore[arg-type]


def _gone(pid: int) -> bool:
    return until(lambda: not alive(pid))


def test_output_is_heard_line_by_line_and_kept_in_the_log(tmp_path: Path) -> None:
    heard: list[str] = []
    code = "import sys; print('one'); print('two', file=sys.stderr); print('模型 🙂')"
    assert local.run(_command(tmp_path, code), heard.append) == 0
    assert sorted(heard) == ["one", "two", "模型 🙂"]
    assert sorted((tmp_path / "log").read_text(encoding="utf-8").splitlines()) == sorted(heard)


def test_a_line_is_heard_at_once(tmp_path: Path) -> None:
    """The command waits for whoever hears it."""
    code = """
    import os, sys, time
    print("now", flush=True)
    for _ in range(6000):
        if os.path.exists("heard"):
            sys.exit()
        time.sleep(0.01)
    sys.exit("nobody heard it")
    """
    assert local.run(_command(tmp_path, code), lambda _: (tmp_path / "scratch" / "heard").touch()) == 0


def test_output_that_is_no_text_is_kept_as_far_as_it_goes(tmp_path: Path) -> None:
    heard: list[str] = []
    assert local.run(_command(tmp_path, r"import os; os.write(1, b'a\xffb\n\x00')"), heard.append) == 0
    assert heard[0] == "a\ufffdb"


def test_a_progress_bar_is_heard_as_lines(tmp_path: Path) -> None:
    heard: list[str] = []
    local.run(_command(tmp_path, r"print('1 %\r2 %\r3 %')"), heard.append)
    assert heard == ["1 %", "2 %", "3 %"]


def test_megabytes_of_output_do_not_stop_it(tmp_path: Path) -> None:
    count = 0

    def hear(_: str) -> None:
        nonlocal count
        count += 1

    assert local.run(_command(tmp_path, "for n in range(100_000): print('x' * 50)"), hear) == 0
    assert count == 100_000


@pytest.mark.parametrize("code", [0, 1, 3, 255])
def test_the_exit_code_is_returned(tmp_path: Path, code: int) -> None:
    assert local.run(_command(tmp_path, f"raise SystemExit({code})"), print) == code


def test_a_signal_is_a_negative_exit_code(tmp_path: Path) -> None:
    assert local.run(_command(tmp_path, "import os; os.kill(os.getpid(), 9)"), print) == -9


def test_nothing_of_the_users_environment_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "PYTHONPATH", "LD_PRELOAD_X", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "secret")
    heard: list[str] = []
    code = "import json, os; print(json.dumps(dict(os.environ)))"
    local.run(_command(tmp_path, code, env={"MODE": "a"}), heard.append)
    seen = json.loads(heard[0])
    assert "secret" not in heard[0]
    assert seen.pop("MODE") == "a"
    assert set(seen) - {"LC_CTYPE"} == set(local._base_env(tmp_path))
    assert seen["HOME"] == seen["TMPDIR"] == str(tmp_path / "scratch")


def test_a_command_reads_nothing_from_the_terminal_and_starts_in_its_scratch_folder(tmp_path: Path) -> None:
    heard: list[str] = []
    local.run(_command(tmp_path, "import os, sys; print(repr(sys.stdin.read()), os.getcwd())"), heard.append)
    assert heard == [f"'' {tmp_path / 'scratch'}"]


def test_a_program_that_there_is_not_fails_as_in_a_shell(tmp_path: Path) -> None:
    command = local.Command(argv=["/no/such/program"], env={}, log=tmp_path / "log", scratch=tmp_path)
    heard: list[str] = []
    assert local.run(command, heard.append) == 127
    assert heard == ["/no/such/program: No such file or directory"]


HOLDER = """
import sys
from pathlib import Path
from rules.runners import local
scratch = Path(sys.argv[1])
code = (
    "import os, subprocess, time; child = subprocess.Popen(['sleep', '60']); "
    "print(os.getpid(), child.pid, flush=True); time.sleep(60)"
)
command = local.Command(argv=[sys.executable, "-c", code], env={}, log=scratch / "log", scratch=scratch)
local.run(command, lambda line: print(line, flush=True))
"""


def test_a_command_ends_with_us_even_when_we_are_killed(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=PROJECT) as holder:
        assert holder.stdout is not None
        pids = [int(word) for word in holder.stdout.readline().split()]
        holder.kill()
    assert len(pids) == 2
    assert all(_gone(pid) for pid in pids)


def test_what_a_command_inherits_stays_open_until_it_has_ended_and_is_not_its_own(tmp_path: Path) -> None:
    lock = (tmp_path / "lock").open("w")
    code = "import os; print(sorted(os.listdir('/proc/self/fd')))"
    heard: list[str] = []
    with lock:
        local.run(replace(_command(tmp_path, code), inherit=(lock.fileno(),)), heard.append)
    assert heard == ["['0', '1', '2', '3']"]  # 3 is the listing's own


STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, lambda *_: open("told", "w").close())
code = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(90)"
child = subprocess.Popen([sys.executable, "-c", code])
print(os.getpid(), child.pid, flush=True)
"""


def test_a_timeout_ends_the_whole_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what ignores SIGTERM, and its children. It gets more time where a second is not enough to begin."""
    monkeypatch.setattr(local, "_TERM_SECONDS", 0.2)
    heard: list[str] = []
    for timeout_s in (1.0, 5.0, 30.0):
        with pytest.raises(TimeoutError):
            local.run(_command(tmp_path, STUBBORN + "time.sleep(90)", timeout_s=timeout_s), heard.append)
        if heard:
            break
    assert all(_gone(int(pid)) for pid in heard[0].split())


def test_a_command_may_have_time_of_its_own_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_TERM_SECONDS", 0.0)
    code = """
        import pathlib, signal, sys, time
        def end(*_):
            time.sleep(0.3)
            pathlib.Path("ended").write_text("")
            sys.exit()
        signal.signal(signal.SIGTERM, end)
        print("ready", flush=True)
        signal.pause()
    """

    def heard(line: str) -> None:
        raise InterruptedError(line)

    with pytest.raises(InterruptedError, match="ready"):
        local.run(_command(tmp_path, code, grace_s=60.0), heard)
    assert (tmp_path / "scratch" / "ended").exists()


def test_what_the_leader_left_running_ends_with_it(tmp_path: Path) -> None:
    """It holds the pipe open: without an end of it the build would wait for ever."""
    heard: list[str] = []
    assert local.run(_command(tmp_path, STUBBORN, timeout_s=60.0), heard.append) == 0
    assert all(_gone(int(pid)) for pid in heard[0].split())


def test_a_command_in_time_is_no_timeout(tmp_path: Path) -> None:
    assert local.run(_command(tmp_path, "print(1)", timeout_s=60.0), print) == 0
    assert not [thread for thread in threading.enumerate() if isinstance(thread, local._Watch)]


PROGRAM = """
import sys
from pathlib import Path
from rules.runners import local
local.end_on_signals()
local._TERM_SECONDS = 600.0
code = sys.argv[1]
command = local.Command(argv=[sys.executable, "-c", code], env={}, log=Path("log"), scratch=Path("."))
local.run(command, lambda line: print(line, flush=True))
"""


def _program(tmp_path: Path, code: str) -> tuple[subprocess.Popen[str], list[int]]:
    """A program of ours that runs a command; the pids that the command printed."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    return process, [int(pid) for pid in process.stdout.readline().split()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_and_us_with_128_and_its_number(tmp_path: Path, number: int) -> None:
    process, pids = _program(tmp_path, "import os, time; print(os.getpid(), flush=True); time.sleep(60)")
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert not err
    assert all(_gone(pid) for pid in pids)


def test_a_second_signal_ends_at_once_what_ignores_the_first(tmp_path: Path) -> None:
    """The first is known to have arrived by what it does to the command, which is given ten minutes to end."""
    process, pids = _program(tmp_path, STUBBORN + "time.sleep(90)")
    process.send_signal(signal.SIGINT)
    assert until((tmp_path / "told").exists)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert all(_gone(pid) for pid in pids)


def test_nothing_is_started_once_all_was_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_ending", threading.Event())
    local.end_all()
    assert local.ending()
    with pytest.raises(StepFailed, match="not started"):
        local.run(_command(tmp_path, "print(1)"), print)


def test_the_installed_versions_match() -> None:
    assert not local.mismatches([("jinja2", PINS["jinja2"])])


@pytest.mark.parametrize(("name", "installed"), [("jinja2", PINS["jinja2"]), ("no-such-package", "none")])
def test_another_version_than_the_key_declares_is_a_problem(name: str, installed: str) -> None:
    (problem,) = local.mismatches([(name, "0.0")])
    assert dict(problem.facts)["declared"] == "0.0"
    assert dict(problem.facts)["installed"] == installed
    assert "doitw" in problem.hint


def test_a_package_of_the_containers_own_python_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside an image its packages are not in our environment, and its programs run with its Python."""
    folder = tmp_path / "packages" / "tensorrt_llm_for_tests-0.10.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: tensorrt_llm_for_tests\nVersion: 0.10.0\n")
    program = tmp_path / "python3"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={folder.parent} exec {sys.executable} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setattr(local, "_SYSTEM", str(tmp_path))
    assert not local.mismatches([("tensorrt_llm_for_tests", "0.10.0")])
    assert [dict(it.facts)["installed"] for it in local.mismatches([("tensorrt_llm_for_tests", "1.0")])] == ["0.10.0"]
