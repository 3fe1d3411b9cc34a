"""doitw makes the project's environment: from the lock, once, whole, or with one clear error.

The end-to-end tests run the real script, venv and pip on a project in a temporary folder, whose lock
names one small wheel made here, that pretends to be doit; so they need neither network nor time.
"""

import ast
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.serving import until

ROOT = Path(__file__).resolve().parent.parent
FIT = {
    "version": "3.11.7",
    "series": "3.11",
    "library": "libpython3.11.so.1.0",
    "kind": "CPython",
    "system": "linux",
    "machine": "x86_64",
    "shared": True,
    "bits": 64,
    "glibc": "2.36",
    "venvs": True,
}
SAYS = "import os, sys\ndef main():\n    print({word!r}, os.getcwd(), *sys.argv[1:])\n    return len(sys.argv) - 1\n"


class Project:
    """A project of doitw, a lock and a folder of wheels."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.wheels = root.parent / "wheels"  # not below root: PIP_FIND_LINKS cannot hold a space
        for folder in (self.root, self.wheels):
            folder.mkdir()
        shutil.copy(ROOT / "doitw", root)
        self.lock("hello")

    def lock(self, word: str) -> None:
        """Locks a doit that prints `word`, its folder and its arguments, and exits with their number."""
        digest = hashlib.sha256(self.wheel(word).read_bytes()).hexdigest()
        series = "{}.{}".format(*sys.version_info)
        lines = [f"# complete for Python: {series}", "doit==1.0 \\", f"    --hash=sha256:{digest}"]
        (self.root / "requirements.lock").write_text("\n".join(lines) + "\n")
        (self.root / "requirements-dev.lock").write_text("# nothing more\n")

    def wheel(self, word: str) -> Path:
        """A wheel as pip wants it: a module, metadata, a console script, a record."""
        path = self.wheels / "doit-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            wheel.writestr("doit.py", SAYS.format(word=word))
            wheel.writestr("doit-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: doit\nVersion: 1.0\n")
            wheel.writestr("doit-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr("doit-1.0.dist-info/entry_points.txt", "[console_scripts]\ndoit = doit:main\n")
            wheel.writestr("doit-1.0.dist-info/RECORD", "")
        return path

    def start(self, *arguments: str, **settings: str) -> subprocess.Popen[str]:
        """./doitw, from another folder, with only the folder of wheels as pip's index."""
        env = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
        env |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels), "PIP_CONFIG_FILE": os.devnull, **settings}
        argv = [sys.executable, str(self.root / "doitw"), *arguments]
        return subprocess.Popen(
            argv, cwd="/", env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
        )

    def run(self, *arguments: str, **settings: str) -> tuple[int, str, str]:
        """(exit status, stdout, stderr) of one ./doitw."""
        process = self.start(*arguments, **settings)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "a project")


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project that was made, under settings of the user that would lead pip elsewhere. Shared: read-only."""
    project = Project(tmp_path_factory.mktemp("ready") / "a project")
    elsewhere = str(project.root.parent / "elsewhere")
    status, out, err = project.run(PIP_TARGET=elsewhere, PIP_USER="1", PYTHONPATH="/nowhere")
    assert (status, out) == (0, f"hello {project.root}\n"), err
    assert "installed requirements.lock" in err
    return project


@pytest.fixture(scope="module")
def doitw() -> ModuleType:
    loader = SourceFileLoader("doitw", str(ROOT / "doitw"))
    spec = importlib.util.spec_from_loader("doitw", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.mark.slow
def test_doit_gets_the_arguments_in_the_projects_root_and_its_exit_status_comes_back(ready: Project) -> None:
    assert ready.run("smoke:tiny", "-n", "2") == (3, f"hello {ready.root} smoke:tiny -n 2\n", "")


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_to_be_told_what_it_is_installs_nothing(project: Project, word: str) -> None:
    status, out, err = project.run(word)
    assert (status, err) == (0, "")
    assert "makes the environment, .venv" in out
    assert not (project.root / ".venv").exists()


@pytest.mark.slow
def test_once_it_is_there_doits_own_help_is_told(ready: Project) -> None:
    assert ready.run("--help") == (1, f"hello {ready.root} help\n", "")


@pytest.mark.slow
def test_a_ready_environment_is_used_as_it_is(ready: Project) -> None:
    assert ready.run(PIP_FIND_LINKS="/nowhere") == (0, f"hello {ready.root}\n", "")


@pytest.mark.slow
def test_settings_that_mislead_pip_are_not_followed(ready: Project) -> None:
    assert not (ready.root.parent / "elsewhere").exists()


@pytest.mark.slow
def test_rules_of_the_clone_can_be_imported_even_isolated(ready: Project) -> None:
    (ready.root / "rules.py").write_text("WORD = 'ours'")
    python = str(ready.root / ".venv" / "bin" / "python")
    argv = [python, "-I", "-c", "import rules; print(rules.WORD)"]
    assert subprocess.check_output(argv, cwd="/", text=True) == "ours\n"


@pytest.mark.slow
def test_a_ready_doitw_adds_less_to_doit_than_three_starts_of_python(ready: Project) -> None:
    """Seconds of the CPU, the least of ten: a start takes 15 ms where doitw adds 18."""

    def cost(argv: list[str]) -> float:
        _, _, usage = os.wait4(os.posix_spawn(argv[0], argv, os.environ), 0)
        return usage.ru_utime + usage.ru_stime

    bare, direct = [sys.executable, "-c", ""], [str(ready.root / ".venv" / "bin" / "doit")]
    rounds = [[cost(argv) for argv in (bare, direct, [sys.executable, str(ready.root / "doitw")])] for _ in range(10)]
    start, doit, doitw = map(min, zip(*rounds, strict=True))
    assert doitw - doit < 3 * start


@pytest.mark.slow
def test_a_changed_lock_makes_the_environment_again(ready: Project, project: Project) -> None:
    shutil.copytree(ready.root / ".venv", project.root / ".venv", symlinks=True)
    stamp = project.root / ".venv" / "requirements.lock.installed"
    stamp.write_text(stamp.read_text().replace(str(ready.root), str(project.root)))
    project.lock("goodbye")
    assert project.run()[:2] == (0, f"goodbye {project.root}\n")


@pytest.mark.slow
def test_an_install_that_was_killed_is_made_again(project: Project) -> None:
    process = project.start()
    assert until((project.root / ".venv" / "bin").exists)
    process.kill()
    process.communicate()
    assert project.run()[:2] == (0, f"hello {project.root}\n")


@pytest.mark.slow
def test_two_at_once_install_once_and_the_second_says_that_it_waits(project: Project) -> None:
    ends = [process.communicate(timeout=300) for process in (project.start(), project.start())]
    assert [out for out, _ in ends] == [f"hello {project.root}\n"] * 2
    said = "".join(err for _, err in ends)
    assert said.count("installed requirements.lock") == 1
    assert said.count("waiting for another ./doitw") == 1


@pytest.mark.slow
def test_a_moved_project_makes_its_environment_again(ready: Project, project: Project) -> None:
    shutil.copytree(ready.root / ".venv", project.root / ".venv", symlinks=True)
    status, out, err = project.run()
    assert (status, out) == (0, f"hello {project.root}\n")
    assert "installed requirements.lock" in err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("break_it", "settings", "what"),
    [
        ("wheel", {}, "a package is not the one that is locked"),
        ("gone", {}, "a locked package is not on the registry"),
        ("", {"PIP_NO_INDEX": "0", "PIP_INDEX_URL": "http://127.0.0.1:9/x"}, "the package registry cannot be reached"),
    ],
)
def test_a_failed_install_is_one_error_with_pips_log(
    project: Project, break_it: str, settings: dict[str, str], what: str
) -> None:
    if break_it == "wheel":
        project.wheel("forged")
    elif break_it == "gone" or settings:
        (project.wheels / "doit-1.0-py3-none-any.whl").unlink()
    status, out, err = project.run(PIP_RETRIES="1", **settings)
    assert (status, out) == (3, "")
    assert f"\nerror: {what}\n" in err
    assert f"\n    log: {project.root}/.venv.log\n" in err
    assert "ERROR" in (project.root / ".venv.log").read_text()
    assert re.search(r"\nhint: .+\n\Z", err)
    assert "Traceback" not in err


def test_a_fit_python_has_nothing_against_it(doitw: Any) -> None:
    assert doitw.unfit(FIT) == ""


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"series": "3.13"}, "is not one of 3.11, 3.12, 3.10"),
        ({"series": "3.9"}, "is not one of 3.11, 3.12, 3.10"),
        ({"shared": False}, "has no shared library libpython3.11.so.1.0, which Triton's Python backend loads"),
        ({"glibc": "2.31"}, "runs on glibc 2.31, not 2.35 or newer"),
        ({"glibc": "none"}, "runs on glibc none, not 2.35 or newer"),
        ({"machine": "aarch64"}, "is not for Linux x86_64"),
        ({"bits": 32}, "is not a 64-bit CPython"),
        ({"kind": "PyPy"}, "is not a 64-bit CPython"),
        ({"venvs": False}, "cannot make environments: its modules venv and ensurepip are missing"),
    ],
)
def test_an_unfit_python_is_told_why(doitw: Any, change: dict[str, object], why: str) -> None:
    assert doitw.unfit({**FIT, **change}) == why


def test_the_running_python_is_probed_as_it_is(doitw: Any) -> None:
    facts = doitw.probe(sys.executable)
    assert facts["series"] == "{}.{}".format(*sys.version_info)
    assert doitw.unfit(facts) == ""


def test_no_usable_python_is_one_error_that_names_each(
    doitw: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("python3", "python3.11"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python3"))
    with pytest.raises(SystemExit) as end:
        doitw.interpreter()
    assert end.value.code == 3
    err = capsys.readouterr().err
    assert err.startswith("error: no usable Python found\n")
    assert f"{tmp_path}/python3 (no version): does not run" in err
    assert f"{tmp_path}/python3.11 (no version): does not run" in err
    assert "\nhint: install Python 3.11" in err


def test_too_little_space_is_said_before_anything_is_downloaded(
    doitw: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doitw, "INSTALLED", 1e18)
    with pytest.raises(SystemExit):
        doitw.check_space()
    assert re.search(r"error: not enough disk space\n    .*: [\d.]+ GB free, 10000000\d\d", capsys.readouterr().err)


def test_doitw_parses_on_an_old_python_so_that_it_can_say_so() -> None:
    ast.parse((ROOT / "doitw").read_text(), feature_version=(3, 6))
