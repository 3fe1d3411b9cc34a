"""One builder per key, and the second knows whom it waits for."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

from rules.lock import alone
from tests.serving import until

HOLDER = """
import sys, time
from pathlib import Path
from rules.lock import alone
with alone(Path(sys.argv[1]), "engine:held", print):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_second_waits_and_says_for_whom(tmp_path: Path) -> None:
    told: list[str] = []
    with alone(tmp_path / "key", "engine:first", print):
        second = threading.Thread(target=lambda: alone(tmp_path / "key", "engine:x", told.append).__enter__())
        second.start()
        assert until(lambda: told)
        assert second.is_alive()
    second.join(60)
    assert not second.is_alive()
    assert set(told) == {f"waiting for process {os.getpid()} on {os.uname().nodename}, which makes engine:first"}


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "key")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.kill()
    told: list[str] = []
    with alone(tmp_path / "key", "engine:next", told.append):
        assert told == []
