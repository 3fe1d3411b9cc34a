"""modelopt_quantize.py: so far only its command line, and that it says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ARGUMENTS = ["--precision=fp8", "--dtype=float16", "--kv-cache-dtype=auto", "--tp-size=1", "--pp-size=1"]


def test_it_says_that_it_cannot_yet_and_what_can(project: Path, tmp_path: Path) -> None:
    tool = project / "rules" / "tools" / "modelopt_quantize.py"
    argv = [
        sys.executable,
        "-I",
        str(tool),
        *ARGUMENTS,
        "--release=0.11.0",
        f"--source={tmp_path}",
        f"--out={tmp_path}",
    ]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: a checkpoint in fp8 cannot be made")
    assert 'hint: write build = { quantizer = "upstream" }' in done.stderr
    assert not list(tmp_path.iterdir())
