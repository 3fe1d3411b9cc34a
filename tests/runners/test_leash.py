"""The leash itself; what it is for is tested with the runner that holds it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes import PROJECT

LEASH = PROJECT / "rules" / "runners" / "leash.py"


def leashed(*argv: str, powers: bool = False) -> subprocess.CompletedProcess[str]:
    reading, writing = os.pipe()
    try:
        command = [sys.executable, "-I", "-S", str(LEASH), *(["--powers"] * powers), str(reading), *argv]
        return subprocess.run(
            command,
            pass_fds=(reading,),
            capture_output=True,
            text=True,
            timeout=60,
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


WRITE = "open(__import__('sys').argv[1], 'r+').write('evil')"


def test_not_even_root_writes_into_a_read_only_file(tmp_path: Path) -> None:
    """Such as an input, which is a hard link into the store."""
    file = tmp_path / "blob"
    file.write_text("good")
    file.chmod(0o444)
    assert "PermissionError" in leashed(sys.executable, "-c", WRITE, str(file)).stderr
    assert file.read_text() == "good"


@pytest.mark.skipif(os.geteuid() != 0, reason="asks what root may do")
def test_root_may_do_all_else_and_with_its_powers_that_too(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "file").write_text("readable")
    os.chown(foreign, 65534, 65534)
    foreign.chmod(0o700)
    assert leashed("cat", str(foreign / "file")).stdout == "readable"
    assert leashed("chown", "0", str(foreign)).returncode == 0
    (foreign / "file").chmod(0o444)
    assert leashed(sys.executable, "-c", WRITE, str(foreign / "file"), powers=True).returncode == 0
    assert (foreign / "file").read_text() == "evilable"
