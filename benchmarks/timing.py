"""Runs of commands, measured: wall and CPU seconds, peak memory; contestants take turns, and medians are told.

On a machine with neighbours CPU seconds (user + system, children included) are what can be trusted; wall time is given
beside them. `machine()` describes where a result comes from.
"""

from __future__ import annotations

import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["FIRST", "Run", "alternate", "machine", "median", "run", "table"]

FIRST = "BENCH_FIRST"  # in an environment: the niceness of the run's session, for a machine with neighbours


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run: seconds and the largest resident set, in MB, of any process in it."""

    wall: float
    cpu: float
    peak_mb: float


def run(argv: Sequence[str], cwd: Path, env: Mapping[str, str] | None = None) -> Run:
    """Runs a command to its end. Raises RuntimeError with its output when it fails."""
    log = cwd / ".bench.log"
    with log.open("wb") as output:
        began = time.perf_counter()
        process = subprocess.Popen(
            argv, cwd=cwd, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )  # the kernel shares CPU by session (sched_autogroup): each contestant gets one
        if env and FIRST in env:
            Path(f"/proc/{process.pid}/autogroup").write_text(env[FIRST])
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{shlex.join(argv)} failed in {cwd}:\n{log.read_text(errors='replace')[-3000:]}")
    return Run(wall=wall, cpu=used.ru_utime + used.ru_stime, peak_mb=used.ru_maxrss / 1024)


def alternate(contestants: Mapping[str, Callable[[], Run]], rounds: int) -> dict[str, list[Run]]:
    """A B C A B C ...: what the neighbours do falls on all alike. The first round warms up and is not counted."""
    found: dict[str, list[Run]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, once in contestants.items():
            one = once()
            if number:
                found[name].append(one)
    return found


def median(runs: Iterable[Run]) -> Run:
    """The median of each number apart."""
    runs = list(runs)
    return Run(
        wall=statistics.median(one.wall for one in runs),
        cpu=statistics.median(one.cpu for one in runs),
        peak_mb=statistics.median(one.peak_mb for one in runs),
    )


def table(rows: Iterable[Sequence[object]], head: Sequence[str]) -> str:
    """Rows as aligned text; floats with three digits after the point."""
    cells = [head, *([f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)


def machine() -> str:
    """What the figures were taken on, and with which command; no host name."""
    cpu = next((line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if "model name" in line), "?")
    memory = next((int(line.split()[1]) >> 20 for line in _lines("/proc/meminfo") if "MemTotal" in line), 0)
    load = ", ".join(f"{number:.1f}" for number in os.getloadavg())
    command = shlex.join(["python", *(Path(word).name if word == sys.argv[0] else word for word in sys.argv)])
    return "\n".join(
        [
            f"machine  {os.cpu_count()} x {cpu}, {memory} GiB, {platform.system()} {platform.release()}",
            f"python   {platform.python_version()}",
            f"date     {time.strftime('%Y-%m-%d %H:%M')}, load average {load}",
            f"command  {command}",
        ]
    )


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()
