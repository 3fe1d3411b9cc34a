"""The files of other tools: GenAI-Perf's own table, and shapes that their readers understand."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import exports
import measures
import pytest
from measures import Timing

from tests.tools.load.conftest import GOLDEN, recomputed


def _answer(timing: Timing, *texts: str, message: str = "") -> exports.Answer:
    measures.measure(timing) if timing.usable else None
    return exports.Answer(
        timing=timing, prompt=2, inputs={"text_input": "bees?", "max_tokens": 4}, texts=texts, expected="honey",
        message=message, code=500 if message else None, finish=None, worker=1, counted="tokenizer",
    )  # fmt: skip


def test_the_table_is_genai_perfs_to_the_letter(tmp_path: Path) -> None:
    found = measures.summarise(recomputed(), {"time_to_first_token": 40.0, "inter_token_latency": 5.0})
    exports.genai_perf_csv(tmp_path / "x.csv", found, streamed=True)
    assert (tmp_path / "x.csv").read_bytes() == (GOLDEN / "profile_export_genai_perf.csv").read_bytes()


def test_large_numbers_have_thousands_separators_and_whole_answers_no_rows_of_streams(tmp_path: Path) -> None:
    found = measures.summarise([Timing(0, [2_500_000_000], 3, 4, streamed=False)])
    exports.genai_perf_csv(tmp_path / "x.csv", found, streamed=False)
    lines = (tmp_path / "x.csv").read_text().splitlines()
    assert lines[1].startswith('Request Latency (ms),"2,500.00","2,500.00"')
    assert [line.split(" (")[0] for line in lines[1:4]] == [
        "Request Latency", "Output Sequence Length", "Input Sequence Length",
    ]  # fmt: skip


def test_the_summary_has_only_what_genai_perf_knows() -> None:
    theirs = json.loads((GOLDEN / "profile_export_genai_perf.json").read_text())
    found = exports.genai_perf(measures.summarise(recomputed()), {})
    assert set(found) == set(theirs) - {"request_goodput"}
    assert {name: set(value) for name, value in found.items()} == {name: set(theirs[name]) for name in found}


def test_perf_analyzers_export_gives_the_same_numbers_when_read_again() -> None:
    timing = Timing(1000, [3000, 4000, 9000], 5, 7)
    data = exports.perf_analyzer([_answer(timing, "a", "b", "c")], "concurrency", 4, 10**9)
    theirs = json.loads((GOLDEN / "profile_export.json").read_text())
    assert set(data) == set(theirs)
    one, golden = data["experiments"][0]["requests"][0], theirs["experiments"][0]["requests"][0]
    assert set(one) == set(golden)
    again = Timing(one["timestamp"], one["response_timestamps"], 5, 7)
    assert measures.summarise([again]) == measures.summarise([timing])
    assert data["experiments"][0]["window_boundaries"] == [1000 + 10**9, 9000 + 10**9]


def test_what_failed_is_not_in_perf_analyzers_export_and_has_an_error_in_aiperfs_records() -> None:
    answers = [_answer(Timing(1, [3], 5, 1), "a"), _answer(Timing(2, [], error="http: 500"), message="boom")]
    assert len(exports.perf_analyzer(answers, "concurrency", 1, 0)["experiments"][0]["requests"]) == 1
    good, bad = exports.records(answers, 0, {})
    assert (good["error"], bad["error"]) == (None, {"code": 500, "type": "http: 500", "message": "boom"})
    assert bad["metrics"] == {}
    assert bad["metadata"]["request_start_ns"] == bad["metadata"]["request_end_ns"] == 2


def test_a_record_has_what_scoring_needs() -> None:
    record = next(exports.records([_answer(Timing(0, [10, 20], 5, 2), "ho", "ney")], 7, {"request_latency": 1.0}))
    assert record["engines"] == {
        "prompt": 2, "text_input": "bees?", "text": "honey", "expected": "honey", "good": True, "finish": None,
    }  # fmt: skip
    assert (record["metadata"]["request_start_ns"], record["metadata"]["request_end_ns"]) == (7, 27)
    assert record["metrics"]["inter_token_latency"] == {"value": 1e-05, "unit": "ms"}


def _aiperf() -> list[dict[str, Any]]:
    """Records that AIPerf 0.13.0 wrote: six chats of six chunks each with benchmarks/stub.py, two at a time."""
    return [json.loads(line) for line in (GOLDEN / "aiperf.jsonl").read_text().splitlines()]


def _timing(record: dict[str, Any]) -> Timing:
    """A record as the moments that it was made of."""
    found = {name: one["value"] for name, one in record["metrics"].items()}
    sent = record["metadata"]["request_start_ns"]
    late = itertools.accumulate((found["time_to_first_token"], *found["inter_chunk_latency"]))
    times = [sent + round(one * 1e6) for one in late]
    return Timing(sent, times, found["input_sequence_length"], found["output_sequence_length"])


def test_aiperfs_records_give_aiperfs_numbers_under_its_names_and_units() -> None:
    for record in _aiperf():
        (ours,) = exports.records([_answer(_timing(record), "a")], 0, {})
        of = {name: one for name, one in ours["metrics"].items() if name != "time_per_output_token"}
        theirs = {name: record["metrics"][name] for name in of}
        assert {name: one["unit"] for name, one in of.items()} == {name: one["unit"] for name, one in theirs.items()}
        for name, one in of.items():  # an ITL is rounded to whole ns, as in GenAI-Perf
            assert one["value"] == pytest.approx(theirs[name]["value"], rel=1e-5, abs=1e-6), name
        assert set(ours) - {"engines"} <= {*record, "error"}
        optional = {"cancellation_time_ns"}  # AIPerf leaves out what is null
        assert set(ours["metadata"]) - optional <= set(record["metadata"])


def test_aiperfs_summary_comes_out_of_its_records() -> None:
    """Its throughputs not: 0.13.0 divides by the time of its phase, which begins before the first request."""
    timings = [_timing(record) for record in _aiperf()]
    found = measures.summarise(timings) | {"benchmark_duration": {"avg": measures.duration(timings)}}
    theirs = json.loads((GOLDEN / "aiperf.json").read_text())
    for name, one in theirs.items():
        for statistic in set(one) & set(found[name]) - {"unit"}:
            assert found[name][statistic] == pytest.approx(one[statistic], rel=1e-5, abs=1e-6), (name, statistic)
    assert {"p50", "p99", "std", "avg"} <= set(theirs["time_to_first_token"]) & set(found["time_to_first_token"])
