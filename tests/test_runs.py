"""Several at once, and ends before the end: whole doit runs, in parallel, failing and interrupted."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from tests.serving import alive, until
from tests.space import HEAD, SPEC, Space

TWO = SPEC + SPEC.removeprefix(HEAD).replace("models.m", "models.n").replace("qwen2", "llama")
# Waits until two of its kind are there at once; fails when it stays alone.
MEETING = """
import os, sys, time
from pathlib import Path
place = Path({place!r})
place.mkdir(exist_ok=True)
(place / str(os.getpid())).touch()
until = time.monotonic() + {seconds}
while len(list(place.iterdir())) < 2:
    time.sleep(0.01)
    if time.monotonic() > until:
        sys.exit("stayed alone")
"""
SLOW = """
import os, subprocess, sys, time
from pathlib import Path
child = subprocess.Popen(["sleep", "90"])
Path({pids!r}).write_text(f"{{os.getpid()}} {{child.pid}}")
time.sleep(90)
"""


def _meet(space: Space, tool: str, seconds: int = 60) -> None:
    space.write(f"control/{tool}.py", MEETING.format(place=str(space.root / "meeting"), seconds=seconds))


def test_two_independent_actions_really_overlap(workspace: Space) -> None:
    workspace.write("models.toml", TWO)
    _meet(workspace, "openvino_convert")
    workspace.build("-n", "2")
    assert len(list((workspace.root / "meeting").iterdir())) == 2


def test_without_n_they_do_not(workspace: Space) -> None:
    workspace.write("models.toml", TWO)
    _meet(workspace, "openvino_convert", seconds=1)
    assert "stayed alone" in workspace.run("build").out


def test_two_actions_of_one_key_at_once_run_one_command(workspace: Space) -> None:
    workspace.write("models.toml", TWO.replace("llama", "qwen2"))
    workspace.write("control/tiny.py", "import time\ntime.sleep(0.5)\n")
    workspace.build("-n", "2", "source")
    assert workspace.ran() == ["tiny"]


def test_two_doits_at_once_build_one_key_once(workspace: Space) -> None:
    workspace.write("control/tiny.py", "import time\ntime.sleep(1)\n")
    both = [workspace.start("build"), workspace.start("build")]
    assert [(process.communicate(timeout=120), process.returncode)[1] for process in both] == [0, 0]
    tools = workspace.ran()
    assert sorted(tools) == sorted(set(tools))
    assert "everything is up to date" in workspace.build()


def test_two_checkouts_that_share_a_store_build_one_key_once(workspace: Space, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    spaces = (workspace, Space(other, workspace.site))
    for space in spaces:
        space.write("models.toml", SPEC + f'[cache]\ndir = "{tmp_path}/store"\n')
        space.write("control/tiny.py", "import time\ntime.sleep(1)\n")
    both = [space.start("build") for space in spaces]
    assert [(process.communicate(timeout=120), process.returncode)[1] for process in both] == [0, 0]
    assert len(spaces[0].ran() + spaces[1].ran()) == 5


def test_a_failure_is_exit_1_and_shows_what_the_tool_said_and_its_log(workspace: Space) -> None:
    workspace.write("control/openvino_quantize.py", "import sys\nsys.exit('error: no such layer')\n")
    result = workspace.run("build")
    assert result.rc == 1
    assert "ERROR: checkpoint:m_int8_wo failed with exit code 1" in result.out
    assert "error: no such layer" in result.out
    assert f"log  {workspace.root}/artifacts/logs/checkpoint/m_int8_wo.log" in result.out
    assert "1 failed, 2 made, 0 from the store" in result.out
    assert "Traceback" not in result.out + result.err
    assert "up to date (" not in result.out


def test_what_failed_is_tried_again_and_what_succeeded_is_not(workspace: Space) -> None:
    control = workspace.write("control/openvino_quantize.py", "import sys\nsys.exit(1)\n")
    workspace.run("build")
    workspace.ran()
    control.unlink()
    workspace.build()
    assert workspace.ran() == ["openvino_quantize", "openvino_compile", "render"]


def test_with_continue_the_rest_is_made_and_the_dependent_is_named(workspace: Space) -> None:
    workspace.write("models.toml", TWO)
    once = str(workspace.root / "once")
    fail_once = f"import os, sys\nif not os.path.exists({once!r}):\n    open({once!r}, 'w').close()\n    sys.exit(1)\n"
    workspace.write("control/openvino_convert.py", fail_once)
    result = workspace.run("run", "--continue", "build")
    assert result.rc == 1
    assert "engine:m_int8_wo_isl256_osl64_bs8  not tried: an action that it needs failed" in result.out
    assert "build:n_int8_wo_isl256_osl64_bs8  made" in result.out
    assert "UnmetDependency" not in result.out


def _interrupted(space: Space, *args: str, number: int) -> tuple[subprocess.Popen[str], str, str]:
    pids = space.root / "pids"
    space.write("control/openvino_convert.py", SLOW.format(pids=str(pids)))
    process = space.start(*args)
    assert until(lambda: pids.exists() and pids.read_text())
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert until(lambda: not [pid for pid in map(int, pids.read_text().split()) if alive(pid)], 30)
    return process, out, err


@pytest.mark.parametrize("args", [["build"], ["-n", "2", "build"]])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_no_process_no_result_and_no_traceback(
    workspace: Space, args: list[str], number: int
) -> None:
    process, out, err = _interrupted(workspace, *args, number=number)
    assert process.returncode == 128 + number
    assert "Traceback" not in out + err
    assert "up to date (" not in out
    assert "ended early" in out
    assert not (workspace.root / "artifacts/checkpoint/m_fp32.receipt.json").exists()
    assert len(list((workspace.root / "artifacts/store/results").rglob("??" + "?" * 60))) == 1, "the source's only"


def test_after_an_interruption_the_build_goes_on_where_it_was(workspace: Space) -> None:
    _interrupted(workspace, "build", number=signal.SIGINT)
    workspace.ran()
    (workspace.root / "control/openvino_convert.py").unlink()
    workspace.build()
    assert "tiny" not in workspace.ran()


def test_a_doit_killed_outright_is_no_obstacle(workspace: Space) -> None:
    pids = workspace.root / "pids"
    workspace.write("control/openvino_convert.py", SLOW.format(pids=str(pids)))
    process = workspace.start("build")
    assert until(lambda: pids.exists() and pids.read_text())
    process.kill()
    process.communicate()
    (workspace.root / "control/openvino_convert.py").unlink()
    assert "made" in workspace.build()
