"""Closed and open loops: who is sent when."""

from __future__ import annotations

from itertools import pairwise

from drive import Load, lag
from wire import Sent


def _load(**more: object) -> Load:
    fields: dict[str, object] = {"mode": "request_rate", "value": 50.0, "requests": 400, "seconds": None}
    return Load(**{**fields, "arrival": "poisson", **more})  # type: ignore[arg-type]


def test_constant_arrivals_are_equally_far_apart() -> None:
    assert _load(arrival="constant", requests=4).moments() == [0, 20_000_000, 40_000_000, 60_000_000]


def test_poisson_arrivals_have_the_rate_and_its_spread() -> None:
    moments = _load().moments()
    gaps = [after - before for before, after in pairwise(moments)]
    mean = sum(gaps) / len(gaps)
    spread = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert 17e6 < mean < 23e6
    assert 0.85 < spread / mean < 1.15


def test_arrivals_are_the_same_for_the_same_seed_only() -> None:
    assert _load(seed=1).moments() == _load(seed=1).moments() != _load(seed=2).moments()


def test_seconds_end_an_open_loop() -> None:
    assert len(_load(arrival="constant", requests=None, seconds=0.1).moments()) == 5


def test_an_open_loop_says_how_late_it_was() -> None:
    late = [Sent(prompt=0, sent=1_000_000 * n + 2_000_000, due=1_000_000 * n) for n in range(1, 5)]
    assert lag(late) == {"lag_p50_ms": 2.0, "lag_p99_ms": 2.0}
    assert lag([Sent(prompt=0, sent=5)]) == {}
