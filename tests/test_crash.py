"""kill -9 at random moments: the next build is right, and the store never holds a part of a result for the whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from rules import digest
from rules.action import Entry, Receipt
from rules.store import Store
from tests.crash import torture, wrong_results


@pytest.mark.slow
def test_fifty_kills_at_random_moments_leave_no_half_result(tmp_path: Path) -> None:
    patient = torture(tmp_path, rounds=50, seed=7)
    assert patient.killed_while_running > 25


def test_the_look_after_a_kill_sees_half_a_result(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("whole")
    store.put("ab" * 32, tmp_path / "out", {})
    assert wrong_results(store) == []
    store.keep("cd" * 32, Receipt((Entry("b", digest.of_text("lost"), 4),)))
    assert wrong_results(store) == ["cd" * 31]
