"""The tasks of this project: the engines of models.toml, and its own tests."""

import os
import sys
from typing import Any

from rules.tasks import DOIT_CONFIG, task_engines

__all__ = ["DOIT_CONFIG", "task_engines", "task_test"]


def task_test() -> dict[str, Any]:
    """Format, lint, types and every test, the real server's too."""
    python = f'"{sys.executable}" -m'
    workers = min(4, len(os.sched_getaffinity(0)))
    return {
        "actions": [
            f"{python} ruff format --check .",
            f"{python} ruff check .",
            f'"{sys.executable}" scripts/typecheck.py',
            f"{python} pytest -n {workers} --dist loadfile --no-loadscope-reorder",
        ],
        "verbosity": 2,
    }
