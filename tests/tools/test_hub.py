"""hub.py: a source that can be planned says honestly that it cannot be brought here yet."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_it_fails_with_a_message_and_a_way_out_and_writes_nothing(project: Path, tmp_path: Path) -> None:
    tool = project / "rules" / "tools" / "hub.py"
    argv = [sys.executable, "-I", str(tool), "--repository=org/name", "--revision=main", f"--out={tmp_path}"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: org/name cannot be downloaded")
    assert 'hint: download it by hand (hf download) and write source = "file:FOLDER"' in done.stderr
    assert not list(tmp_path.iterdir())
