"""A gate holds on its limit, breaks beyond it in its own direction, and says so in one line."""

from __future__ import annotations

import pytest

from rules.gates import LIMITS, judge


@pytest.mark.parametrize(
    ("gate", "limit", "figure", "holds"),
    [
        ("ttft_p99_ms", 400.0, 400.0, True),
        ("ttft_p99_ms", 400.0, 400.1, False),
        ("output_tokens_per_s", 1500.0, 1500.0, True),
        ("output_tokens_per_s", 1500.0, 1499.9, False),
        ("agreement", 0.98, 0.97, False),
        ("rouge_l_drop", 0.02, -0.1, True),
        ("rouge_l_drop", 0.02, 0.03, False),
    ],
)
def test_a_gate_holds_up_to_its_limit(gate: str, limit: float, figure: float, *, holds: bool) -> None:
    (verdict,) = judge({gate: limit}, {gate: figure})
    assert verdict.holds is holds


def test_a_gate_without_its_figure_is_not_judged() -> None:
    verdicts = judge({"ttft_p99_ms": 400.0, "agreement": 0.98}, {"agreement": 1.0, "exact_match": 0.0})
    assert [verdict.gate for verdict in verdicts] == ["agreement"]


def test_an_unknown_gate_never_passes_in_silence() -> None:
    with pytest.raises(KeyError):
        judge({"ttft_p98_ms": 1.0}, {})


def test_a_verdict_is_one_line_with_both_numbers() -> None:
    verdicts = judge({"ttft_p99_ms": 400, "agreement": 0.98}, {"ttft_p99_ms": 512.25, "agreement": 0.9})
    assert [str(verdict) for verdict in verdicts] == [
        "ttft_p99_ms is 512.25 ms, must be at most 400 ms",
        "agreement is 0.9, must be at least 0.98",
    ]


def test_every_name_says_which_way_is_better() -> None:
    assert LIMITS["itl_p50_ms"].best == "low"
    assert LIMITS["goodput_per_s"].best == "high"
    assert {LIMITS[name].best for name in LIMITS if name.endswith(("_ms", "_drop"))} == {"low"}
