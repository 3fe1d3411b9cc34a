"""A folder with a models.toml and a two-line dodo.py, in which a test runs the real doit."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rules import host

__all__ = ["HEAD", "SPEC", "Result", "Space", "of_the_build", "texts"]

DODO = 'from rules.tasks import DOIT_CONFIG, task_engines\n__all__ = ["DOIT_CONFIG", "task_engines"]\n'
HEAD = '[toolchains.cpu]\nbackend = "openvino"\n'
SPEC = f"""{HEAD}
[models.m]
source = "tiny:qwen2"
toolchain = "cpu"
precisions = ["int8_wo"]
shapes = [{{ batch = 8, isl = 256, osl = 64 }}]
"""


@dataclass(frozen=True)
class Result:
    """What a finished doit left: exit code, standard output and standard error."""

    rc: int
    out: str
    err: str


class Space:
    """Paths are below `root`; `site` is the folder that the subprocess imports rules from.

    `under` is the command that doit runs under, such as one that makes a small disk first.
    """

    def __init__(self, root: Path, site: Path) -> None:
        self.root = root
        self.site = site
        self.under: tuple[str, ...] = ()
        self.write("dodo.py", DODO)
        self.write("models.toml", SPEC)

    def write(self, path: str, text: str) -> Path:
        """Writes a file, its folders included."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        return target

    def read(self, path: str) -> str:
        return (self.root / path).read_text(encoding="utf-8")

    def start(self, *args: str, **env: str) -> subprocess.Popen[str]:
        """`doit ARGS` in the folder, running."""
        return subprocess.Popen(
            [*self.under, sys.executable, "-m", "doit", *args],
            cwd=self.root,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(self.site), "HOME": str(self.root), **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *args: str, **env: str) -> Result:
        """`doit ARGS` in the folder, to its end."""
        process = self.start(*args, **env)
        out, err = process.communicate(timeout=300)
        return Result(process.returncode, out, err)

    def build(self, *args: str) -> str:
        """`doit ARGS`, which must succeed; returns its output."""
        result = self.run(*args)
        assert result.rc == 0, result.out + result.err
        return result.out

    def ran(self) -> list[str]:
        """The tools that ran since the last call, in order."""
        trace = self.root / "control" / "trace"
        tools = trace.read_text().split() if trace.exists() else []
        trace.unlink(missing_ok=True)
        return tools

    def poison(self) -> None:
        """From now on every tool fails."""
        self.write("control/poison", "")

    def record(self, action: str) -> dict[str, object]:
        """The run record of an action."""
        loaded: dict[str, object] = json.loads(self.read(f"artifacts/{action.replace(':', '/')}.record.json"))
        return loaded


def of_the_build(err: str) -> str:
    """Standard error but for warnings about the machine that runs the tests, such as one with little shared memory."""
    here = "|".join(rule.id for rule in host.RULES)
    return re.sub(rf"warning: .*\n(?:    .*\n)*?    rule: (?:{here})\n", "", err)


def texts(root: Path) -> Iterator[tuple[str, str]]:
    """Every text below `root` as (path, text)."""
    for path in sorted(root.rglob("*")):
        if path.is_file():
            yield path.relative_to(root).as_posix(), path.read_bytes().decode(errors="replace")
