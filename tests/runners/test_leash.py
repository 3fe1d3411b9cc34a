"""The leash itself; what it is for is tested with the runner that holds it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.fakes import PROJECT

LEASH = PROJECT / "rules" / "runners" / "leash.py"


def leashed(*argv: str) -> subprocess.CompletedProcess[str]:
    reading, writing = os.pipe()
    try:
        command = [sys.executable, "-I", "-S", str(LEASH), str(reading), *argv]
        return subprocess.run(
            command,
            pass_fds=(reading,),
            capture_output=True,
            text=True,
            timeout=30,
            start_new_session=True,
            check=False,
        )
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("code", [0, 1, 3, 255])
def test_an_exit_code_is_passed_on(code: int) -> None:
    assert leashed("sh", "-c", f"exit {code}").returncode == code


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGUSR1])
def test_a_signal_is_passed_on(number: signal.Signals) -> None:
    assert leashed("sh", "-c", f"kill -{number.value} $$").returncode == -number


def test_a_program_that_there_is_not_is_named() -> None:
    result = leashed("/no/such/program")
    assert (result.returncode, result.stderr) == (127, "/no/such/program: No such file or directory\n")


def test_arguments_arrive_as_they_are() -> None:
    words = ["a b", "", "--x={y}", "模型", "new\nline"]
    result = leashed(sys.executable, "-c", "import sys; print(sys.argv[1:])", *words)
    assert result.stdout == f"{words}\n"
