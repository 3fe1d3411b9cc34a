"""What the tests of tools share; what the tools make for them is in tests/made.py."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def one_thread() -> None:
    """torch in this process keeps to one thread: its threads spin, and on a busy machine wait for one another."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The empty folder that a tool writes to."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder
