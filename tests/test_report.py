"""What a person sees while doit runs, on a terminal and off one."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from rules import report
from rules.report import Progress
from tests.serving import until
from tests.space import Space


def _stripped(text: str) -> str:
    return re.sub(r"\d+\.\d s|\d+ s", "N s", text)


def test_one_line_per_action_that_did_something_and_the_sum(workspace: Space) -> None:
    assert _stripped(workspace.build()) == (
        "source:m  made in N s\n"
        "checkpoint:m_fp32  made in N s\n"
        "checkpoint:m_int8_wo  made in N s\n"
        "engine:m_int8_wo_isl256_osl64_bs8  made in N s\n"
        "build:m_int8_wo_isl256_osl64_bs8  made in N s\n"
        "    artifacts/build/m_int8_wo_isl256_osl64_bs8\n"
        "5 made, 0 from the store, 0 up to date, N s\n"
    )


def test_what_came_from_the_store_is_told_apart_and_what_is_fresh_only_counted(workspace: Space) -> None:
    workspace.build("source")
    workspace.build("clean", "source")
    workspace.ran()
    assert _stripped(workspace.build("checkpoint")) == (
        "source:m  from the store in N s\n"
        "checkpoint:m_fp32  made in N s\n"
        "checkpoint:m_int8_wo  made in N s\n"
        "2 made, 1 from the store, 0 up to date, N s\n"
    )


def test_the_summary_of_a_tool_is_shown(workspace: Space) -> None:
    assert "    summary.txt " in workspace.build("smoke")


def test_tasks_that_are_not_ours_are_shown_as_doit_shows_them(workspace: Space) -> None:
    workspace.write(
        "dodo.py", workspace.read("dodo.py") + "def task_other():\n    return {'actions': ['echo hello']}\n"
    )
    assert workspace.build("other") == ".  other\nhello\n"


def test_a_failing_task_that_is_not_ours_is_told_as_doit_tells_it(workspace: Space) -> None:
    workspace.write("dodo.py", workspace.read("dodo.py") + "def task_other():\n    return {'actions': ['exit 3']}\n")
    result = workspace.run("other")
    assert result.rc == 1
    assert "TaskFailed - taskid:other" in result.out


def test_off_a_terminal_a_long_action_speaks_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_QUIET_SECONDS", 0.3)
    began = time.monotonic()
    stream = io.StringIO()
    shown = Progress(stream)
    with shown.action("engine:m"):
        shown.line("engine:m", "layer 1 of 2")
        assert until(lambda: stream.getvalue().count("\n") > 2)
    assert stream.getvalue().count("\n") <= (time.monotonic() - began) / 0.3, "not more often"
    assert re.fullmatch(r"   … engine:m  \d+ s  layer 1 of 2", stream.getvalue().splitlines()[0])
    assert until(lambda: "progress" not in {thread.name for thread in threading.enumerate()}), (
        "it stops with the action"
    )


def test_a_build_is_never_silent_for_long(workspace: Space) -> None:
    workspace.write("control/tiny.py", "import time\nprint('training', flush=True)\ntime.sleep(5)\n")
    assert re.search(r"… source:m  \d+ s  training", workspace.build("source"))


def test_a_quick_action_says_nothing_meanwhile() -> None:
    stream = io.StringIO()
    with Progress(stream).action("engine:m"):
        pass
    assert stream.getvalue() == ""


def test_several_actions_at_once_each_speak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_QUIET_SECONDS", 0.1)
    stream = io.StringIO()
    shown = Progress(stream)
    with shown.action("a"), shown.action("b"):
        shown.line("b", "text of b")
        shown.line("gone", "of nobody")
        assert until(lambda: "… a  " in stream.getvalue() and "text of b" in stream.getvalue())
    assert "of nobody" not in stream.getvalue()


def test_on_a_terminal_a_live_line_shows_what_the_tool_says(workspace: Space) -> None:
    """The tool goes on when it has been seen."""
    go = workspace.root / "go"
    wait = f"import pathlib, time\nwhile not pathlib.Path({str(go)!r}).exists(): time.sleep(0.02)\n"
    workspace.write("control/tiny.py", f"print('training', flush=True)\n{wait}")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "doit", "source"],
        cwd=workspace.root,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(workspace.site), "TERM": "xterm", "COLUMNS": "100"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    text = ""
    for part in _drained(ours):
        text += part
        if re.search(r"source:m.*training", text):
            go.touch()
    assert process.wait(60) == 0
    assert go.exists(), text
    assert "made in" in text


def _drained(descriptor: int) -> Iterator[str]:
    """What the terminal shows, until the program has ended or said nothing for a minute."""
    try:
        while select.select([descriptor], [], [], 60)[0] and (part := os.read(descriptor, 65536)):
            yield part.decode(errors="replace")
    except OSError:  # Linux says EIO when the other end is closed
        pass
    finally:
        os.close(descriptor)
