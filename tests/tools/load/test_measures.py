"""The definitions of docs/measuring.md, by hand and against GenAI-Perf's own numbers."""

from __future__ import annotations

import json
from typing import Any

import measures
import pytest
from measures import Timing

from tests.tools.load.conftest import GOLDEN, recomputed

MS = 1_000_000


def _one(*times: int, tokens: int | None = None, **more: Any) -> Timing:
    return Timing(sent=0, times=[time * MS for time in times], output_tokens=tokens, **more)


def test_a_stream_has_every_metric_as_it_is_defined() -> None:
    found = measures.measure(_one(10, 14, 20, tokens=6, input_tokens=3))
    assert found == {
        "request_latency": 20.0,
        "time_to_first_token": 10.0,
        "time_to_second_token": 4.0,
        "inter_chunk_latency": [4.0, 6.0],
        "inter_token_latency": 2.0,  # (20 - 10) / (6 - 1)
        "time_per_output_token": 2.0,
        "output_token_throughput_per_user": 500.0,
        "output_sequence_length": 6,
        "input_sequence_length": 3,
    }


def test_a_single_token_has_no_inter_token_latency_instead_of_one_of_0() -> None:
    found = measures.summarise([_one(10, tokens=1), _one(10, 12, tokens=2)])
    assert found["inter_token_latency"]["avg"] == 2.0
    assert "inter_token_latency" not in measures.measure(_one(10, tokens=1))


def test_a_whole_answer_has_a_latency_and_no_first_token() -> None:
    found = measures.measure(_one(30, tokens=5, streamed=False))
    assert found == {"request_latency": 30.0, "output_sequence_length": 5}


def test_throughput_is_over_the_time_from_the_first_sending_to_the_last_response() -> None:
    early, late = _one(100, tokens=10, input_tokens=4), Timing(900 * MS, [1000 * MS], 6, 10)
    found = measures.summarise([early, late])
    assert found["output_token_throughput"] == {"unit": "tokens/sec", "avg": 20.0}
    assert found["input_token_throughput"]["avg"] == 10.0
    assert found["request_throughput"]["avg"] == 2.0


def test_failed_and_cancelled_requests_are_counted_apart() -> None:
    failed, cancelled = _one(5, error="http: 500"), _one(5, cancelled=True)
    requests = [_one(10, tokens=1), failed, failed, cancelled, _one(tokens=0)]
    assert measures.summarise(requests)["request_count"]["avg"] == 1.0
    assert measures.errors(requests) == {"http: 500": 2}
    assert measures.summarise([failed]) == {}


def test_goodput_counts_requests_within_every_limit_and_none_that_lack_one() -> None:
    slo = {"time_to_first_token": 10.0, "inter_token_latency": 2.0}
    requests = [_one(10, 12, tokens=2), _one(11, 12, tokens=2), _one(9, 12, tokens=2), _one(5, tokens=1)]
    found = measures.summarise(requests, slo)
    assert found["request_goodput"]["avg"] == pytest.approx(1 / 0.012)
    assert [measures.good(one, slo) for one in requests] == [True, False, False, False]


def test_percentiles_are_numpys_linear_ones_and_std_is_of_the_population() -> None:
    found = measures.statistics([1.0, 2.0, 3.0, 4.0], "ms")
    assert (found["p50"], found["p25"], found["p99"]) == (2.5, 1.75, pytest.approx(3.97))
    assert found["std"] == pytest.approx(1.118033988749895)


def test_gates_find_their_figures_under_their_own_names() -> None:
    from rules.gates import LIMITS

    found = measures.summarise([_one(10, 14, 20, tokens=6, input_tokens=3)], {"request_latency": 100.0})
    figures = measures.figures(found, 4, 1, 2.0**31)
    assert set(figures) <= set(LIMITS)
    assert (figures["ttft_p99_ms"], figures["error_rate"], figures["peak_memory_gib"]) == (10.0, 0.25, 2.0)


def test_genai_perfs_numbers_come_out_of_perf_analyzers_export() -> None:
    theirs = json.loads((GOLDEN / "profile_export_genai_perf.json").read_text())
    ours = measures.summarise(recomputed(), {"time_to_first_token": 40.0, "inter_token_latency": 5.0})
    theirs.pop("input_config")
    assert len(theirs) == 11
    for name, statistics in theirs.items():
        assert ours[name].pop("unit") == statistics.pop("unit")
        assert ours[name] == pytest.approx(statistics, rel=1e-9), name
