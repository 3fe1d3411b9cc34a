"""`doit stop`: ends every server that `doit serve` started in this folder, and waits until it has ended."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from rules.commands import EngineCommand

__all__ = ["Stop", "stop", "stop_all"]

_PATIENCE_S = 15.0


class Stop(EngineCommand):
    """The command."""

    name = "stop"
    doc_purpose = "stop the servers that doit serve started here"
    doc_usage = ""
    doc_description = "Servers in the foreground of another terminal are stopped too."

    def execute(self, opt_values: dict[str, Any], pos_args: list[str]) -> int:  # noqa: ARG002
        """Stops them. Returns 1 when one would not end."""
        lines, stopped = stop_all(Path("artifacts/server"))
        print("\n".join(lines))
        return 0 if stopped else 1


def stop_all(folder: Path) -> tuple[list[str], bool]:
    """(a line per state file in `folder`, whether all have ended)."""
    results = [stop(state) for state in sorted(folder.glob("*.json"))]
    lines = [line for line, _ in results] or ["no server is running"]
    return lines, all(ended for _, ended in results)


def stop(state: Path) -> tuple[str, bool]:
    """Ends the server of one state file: (what happened, whether it has ended). A stale file is removed."""
    pid, what = _read(state)
    if not pid or not _is_ours(pid, state):
        state.unlink(missing_ok=True)
        return f"removed {state.name}: its server is gone", True
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        pass  # it has just ended
    except PermissionError:
        return f"error: server {pid} ({what}) is another user's", False
    until = time.monotonic() + _PATIENCE_S
    while _is_ours(pid, state) and time.monotonic() < until:
        time.sleep(0.05)
    if _is_ours(pid, state):
        return f"error: server {pid} ({what}) has not ended in {_PATIENCE_S:.0f} s\n    hint: kill -9 {pid}", False
    return f"stopped server {pid} ({what})", True


def _read(state: Path) -> tuple[int, str]:
    """(pid, variants and port); pid 0 when the file is not what serve.py writes."""
    try:
        data = json.loads(state.read_text(encoding="utf-8"))
        return int(data["pid"]), f"{', '.join(data['repositories'])} on port {data['http_port']}"
    except (OSError, ValueError, TypeError, KeyError):
        return 0, ""


def _is_ours(pid: int, state: Path) -> bool:
    """Whether `pid` still is the program that wrote `state`: numbers are used again. A zombie has no command line."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return f"--state={state.absolute()}".encode() in arguments
