"""The best within the limits wins, and every other one is told why it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rules.choosing import Candidate, choose
from rules.findings import Point, load
from tests.measured import bench, point

NAMES = {short: f"m_{short}_isl256_osl64_bs8" for short in ("fp16", "int8_wo", "int4_wo")}


def _points(root: Path, name: str, *points: dict[str, Any]) -> list[Point]:
    bench(root, name, list(points))
    return [it for it in load(root).current() if it.run.variant == name]


def _candidate(root: Path, short: str, *points: dict[str, Any], **more: Any) -> Candidate:
    limits = more.pop("limits", {"ttft_p50_ms": 50.0})
    return Candidate(variant=NAMES[short], points=_points(root, NAMES[short], *points), limits=limits, **more)


def test_the_highest_throughput_within_the_limits_wins_at_its_own_best_load(tmp_path: Path) -> None:
    one = _candidate(
        tmp_path, "fp16", point(1, 10.0, 1.0, 100.0), point(8, 49.0, 2.0, 400.0), point(16, 51.0, 2, 900.0)
    )
    other = _candidate(tmp_path, "int8_wo", point(1, 10.0, 1.0, 300.0))
    first, second = choose([other, one])
    assert (first.candidate.variant, first.point and first.point.value) == (NAMES["fp16"], 8)
    assert second.reason == "within the limits, with 25% less throughput"


def test_with_prices_the_cheapest_token_wins(tmp_path: Path) -> None:
    fast = _candidate(tmp_path, "fp16", point(8, 40.0, 2.0, 400.0), price=8.0)
    cheap = _candidate(tmp_path, "int8_wo", point(8, 40.0, 2.0, 300.0), price=3.0)
    first, second = choose([fast, cheap])
    assert first.candidate.variant == NAMES["int8_wo"]
    assert first.cost is not None
    assert abs(first.cost - 3.0 / (300 * 3600) * 1e6) < 1e-9
    assert second.reason == "within the limits, and costs 100% more per token"


def test_a_price_that_only_some_have_decides_nothing(tmp_path: Path) -> None:
    fast = _candidate(tmp_path, "fp16", point(8, 40.0, 2.0, 400.0))
    cheap = _candidate(tmp_path, "int8_wo", point(8, 40.0, 2.0, 300.0), price=0.01)
    assert choose([cheap, fast])[0].candidate.variant == NAMES["fp16"]


def test_who_breaks_a_limit_at_every_load_is_told_its_best(tmp_path: Path) -> None:
    slow = _candidate(tmp_path, "fp16", point(1, 80.0, 1.0, 100.0), point(8, 90.0, 2.0, 400.0))
    (verdict,) = choose([slow])
    assert verdict.point is None
    assert verdict.reason == "ttft_p50_ms is 80 ms, must be at most 50 ms even at concurrency 1"


def test_who_breaks_one_limit_here_and_another_there_is_told_so(tmp_path: Path) -> None:
    limits = {"ttft_p50_ms": 50.0, "itl_p50_ms": 5.0}
    torn = _candidate(tmp_path, "fp16", point(1, 40.0, 9.0, 100.0), point(8, 60.0, 2.0, 400.0), limits=limits)
    assert choose([torn])[0].reason.startswith(
        "no load point is within all limits; at concurrency 1 itl_p50_ms is 9 ms"
    )


def test_accuracy_is_a_limit_as_any_other(tmp_path: Path) -> None:
    points = [point(1, 10.0, 1.0, 100.0)]
    (verdict,) = choose([_candidate(tmp_path, "int4_wo", *points, limits={"exact_match": 0.9})])
    assert verdict.reason == f"exact_match: not measured: doit eval:{verdict.candidate.variant}"


def test_a_partial_point_never_wins(tmp_path: Path) -> None:
    torn = _candidate(tmp_path, "fp16", point(8, 10.0, 1.0, 900.0, partial=True))
    whole = _candidate(tmp_path, "int8_wo", point(8, 10.0, 1.0, 100.0))
    first, second = choose([torn, whole])
    assert first.candidate.variant == NAMES["int8_wo"]
    assert second.reason == "has no whole load point"


def test_what_is_missing_comes_before_all_judgement(tmp_path: Path) -> None:
    stale = _candidate(tmp_path, "fp16", point(8, 10.0, 1.0, 900.0), missing="was never measured")
    assert choose([stale])[0].reason == "was never measured"
