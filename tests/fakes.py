"""The project as an unpacked wheel whose tools are stand-ins: whole doit runs take a second and need no model.

Everything else is real: doit, the rules, the templates, the executor, its processes and the store. A test steers the
tools through files in the folder `control` of its workspace:

    control/trace        each tool that runs appends its name
    control/poison       when there, every tool fails
    control/<tool>.py    Python that the tool runs first
"""

from __future__ import annotations

import shutil
from pathlib import Path

import tomli

__all__ = ["PROJECT", "site"]

PROJECT = Path(__file__).parents[1]


def site(folder: Path, *, real_tools: bool = False) -> Path:
    """Lays out the project in `folder` as a wheel would: importable, with its doit commands, with fake tools."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PROJECT / "rules", folder / "rules", ignore=ignore)
    shutil.copytree(PROJECT / "templates", folder / "rules" / "templates", ignore=ignore)
    for tool in () if real_tools else (folder / "rules" / "tools").glob("*.py"):
        if tool.stem not in ("hub", "places"):  # a hub on loopback is what a test needs there
            shutil.copyfile(PROJECT / "tests" / "fake_tool.py", tool)
    _installed(folder / "doit_engines-0.dist-info")
    return folder


def _installed(info: Path) -> None:
    """What pip would write: the entry points by which doit finds our commands and its database."""
    points = tomli.loads((PROJECT / "pyproject.toml").read_text())["project"]["entry-points"]
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: doit-engines\nVersion: 0\n")
    lines = [line for group, names in points.items() for line in (f"[{group}]", *map(" = ".join, names.items()))]
    (info / "entry_points.txt").write_text("\n".join((*lines, "")))
