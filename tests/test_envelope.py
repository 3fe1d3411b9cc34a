"""What stands around figures; what a whole run's summary holds is in test_evaluation.py."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path

from rules import envelope


def test_runs_of_one_second_have_places_of_their_own_in_the_order_of_time(tmp_path: Path) -> None:
    places = [envelope.begin(tmp_path, "eval", "m") for _ in range(20)]
    assert len(set(places)) == 20
    assert {place.parent for place in places} == {tmp_path / "eval" / "m"}
    assert sorted(place.name[:16] for place in places) == [place.name[:16] for place in places]


def test_a_finished_run_says_so_and_how_long_it_took(tmp_path: Path) -> None:
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    envelope.finish(tmp_path, {"started": started, "finished": False, "seconds": 0.0})
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["finished"] is True
    assert 0 <= summary["seconds"] < 3600
