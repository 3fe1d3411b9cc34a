"""What figures mean: gates over load points and repeats, and what was lost against a baseline."""

from __future__ import annotations

from typing import Any

import pytest

from rules import verdicts


def _summary(*points: tuple[str, float, dict[str, float]], **more: Any) -> dict[str, Any]:
    """Points of (mode, value, figures); those of equal loads are repeats."""
    rows = [
        {"load": {"mode": mode, "value": value}, "figures": figures, "partial": False}
        for mode, value, figures in points
    ]
    settings = {"isl": 64, "osl": 32, "stream": True, "fixed": True, "model": "ensemble", "endpoint": "grpc"}
    about = {"version": 1, "variant": "v", "revision": "abc", "started": "", "keys": {}, "cpu": "x", "gpus": []}
    return {**about, "settings": settings, "points": rows, **more}


def _holds(rows: list[dict[str, Any]]) -> dict[str, bool]:
    return {row["gate"]: row["holds"] for row in rows}


TWO = _summary(
    ("concurrency", 1, {"ttft_p99_ms": 10.0, "output_tokens_per_s": 100.0}),
    ("concurrency", 8, {"ttft_p99_ms": 50.0, "output_tokens_per_s": 400.0}),
)


def test_a_ceiling_holds_at_every_load_point_and_a_floor_at_the_best() -> None:
    rows = verdicts.gated(TWO, {"ttft_p99_ms": 40.0, "output_tokens_per_s": 300.0}, ())
    assert _holds(rows) == {"ttft_p99_ms": False, "output_tokens_per_s": True}
    assert rows[0]["text"] == "ttft_p99_ms is 50 ms, must be at most 40 ms (concurrency 8)"


def test_gates_can_be_judged_at_one_load_point() -> None:
    gates = {"ttft_p99_ms": 40.0, "output_tokens_per_s": 300.0}
    assert _holds(verdicts.gated(TWO, gates, [1.0])) == {"ttft_p99_ms": True, "output_tokens_per_s": False}


def test_of_repeats_the_median_counts() -> None:
    repeats = [("concurrency", 8.0, {"ttft_p99_ms": value}) for value in (10.0, 99.0, 12.0)]
    assert _holds(verdicts.gated(_summary(*repeats), {"ttft_p99_ms": 12.0}, ())) == {"ttft_p99_ms": True}


def test_a_gate_without_a_figure_and_a_partial_point_are_not_judged() -> None:
    cut = _summary(("concurrency", 8, {"ttft_p99_ms": 99.0}))
    cut["points"][0]["partial"] = True
    assert verdicts.gated(cut, {"ttft_p99_ms": 1.0, "agreement": 0.9}, ()) == []


def _against(now: list[float], before: list[float], tolerance: float = 0.05) -> list[dict[str, Any]]:
    mine, theirs = (
        _summary(*(("concurrency", 8.0, {"output_tokens_per_s": value}) for value in of)) for of in (now, before)
    )
    return verdicts.against(mine, verdicts.baseline(theirs), tolerance)


@pytest.mark.parametrize(
    ("now", "before", "holds"),
    [
        ([90.0], [100.0], False),
        ([96.0], [100.0], True),  # within the tolerance
        ([120.0], [100.0], True),
        ([88.0, 90.0, 101.0], [99.0, 100.0, 130.0], True),  # worse in the median, but the repeats overlap
        ([88.0, 90.0, 92.0], [99.0, 100.0, 130.0], False),
    ],
)
def test_a_loss_counts_beyond_the_tolerance_and_the_spread_of_repeats(
    now: list[float], before: list[float], holds: bool
) -> None:
    assert [row["holds"] for row in _against(now, before)] == [holds]


def test_a_loss_is_told_with_both_figures() -> None:
    text = "output_tokens_per_s at concurrency 8 was 100 tokens/s and is 80 tokens/s: 20.0 % worse than baseline abc"
    assert [row["text"] for row in _against([80.0], [100.0])] == [text]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"cpu": "y"}, "another machine, cpu y"),
        ({"settings": {"isl": 65}}, "another load, isl 65"),
        ({"points": {"concurrency 4": {}}}, "no load point in common"),
    ],
)
def test_what_cannot_be_compared_is_said_and_breaks_nothing(change: dict[str, Any], reason: str) -> None:
    rows = verdicts.against(TWO, verdicts.baseline(TWO) | change, 0.05)
    assert [(row["holds"], row["skipped"]) for row in rows] == [(True, reason)]


def test_a_run_is_as_good_as_itself() -> None:
    assert [row["text"] for row in verdicts.against(TWO, verdicts.baseline(TWO), 0.0)] == [
        "no figure is more than 0 % worse than baseline abc"
    ]
