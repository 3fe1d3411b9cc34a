#!/usr/bin/env python3
"""mypy --strict over everything: what pyproject.toml names, then doitw, then each Triton model's folder on its own.

A model's folder is its own world: every one has a model.py, and its siblings are found beside it, where the rendered
repository puts them together with templates/triton/shared.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT / "templates" / "triton" / "shared" / "1"


def check(files: list[Path], beside: Path | None = None) -> int:
    """The exit status of mypy for some files, or for the configured ones when there are none."""
    path = os.pathsep.join(str(folder) for folder in dict.fromkeys((beside, SHARED)) if beside)
    env = {**os.environ, "MYPYPATH": path}
    print("mypy", beside.relative_to(ROOT) if beside else " ".join(file.name for file in files), flush=True)
    return subprocess.run([sys.executable, "-m", "mypy", *files], cwd=ROOT, env=env, check=False).returncode


def main() -> None:
    """Checks all, so that all mistakes are seen at once; exit status 1 when there is one."""
    folders = sorted({path.parent for path in ROOT.glob("templates/*/*/1/*.py")})
    results = [check([]), check([ROOT / "doitw"]), *(check(sorted(folder.glob("*.py")), folder) for folder in folders)]
    sys.exit(any(results))


if __name__ == "__main__":
    main()
