"""Runs on disk become points: medians of repeats, joined with the scores of the same engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rules.findings import front, load
from tests.measured import bench, evaluated, point

NAME = "m_int8_wo_isl256_osl64_bs8"


def test_figures_bear_the_names_of_gates(tmp_path: Path) -> None:
    bench(tmp_path, NAME, [point(8, ttft=40.0, itl=5.0, rate=900.0, errors=16)])
    (found,) = load(tmp_path).current()
    assert found.name == "concurrency 8"
    assert found.figures["ttft_p50_ms"] == 40.0
    assert found.figures["output_tokens_per_s"] == 900.0
    assert found.figures["error_rate"] == 0.25
    assert found.figures["peak_memory_gib"] == 1.5


def test_repeats_are_one_point_with_their_median_and_spread(tmp_path: Path) -> None:
    rates = {1: 90.0, 2: 100.0, 3: 120.0}
    bench(tmp_path, NAME, [point(8, 40.0, 5.0, rate, repeat=number) for number, rate in rates.items()])
    (found,) = load(tmp_path).current()
    assert (found.repeats, found.figures["output_tokens_per_s"]) == (3, 100.0)
    assert found.spread == pytest.approx(0.3)
    assert len(found.folders) == 3


def test_loads_of_different_modes_are_never_one_point(tmp_path: Path) -> None:
    bench(tmp_path, NAME, [point(8, 40.0, 5.0, 900.0), point(8, 60.0, 5.0, 500.0, mode="request_rate")])
    assert [found.name for found in load(tmp_path).current()] == ["concurrency 8", "request_rate 8"]


def test_the_latest_finished_run_counts_and_an_unfinished_one_only_alone(tmp_path: Path) -> None:
    bench(tmp_path, NAME, [point(1, 1.0, 1.0, 1.0)], number=1)
    bench(tmp_path, NAME, [point(1, 1.0, 1.0, 2.0)], number=2)
    bench(tmp_path, NAME, [point(1, 1.0, 1.0, 3.0, partial=True)], number=3, finished=False)
    assert [it.figures["output_tokens_per_s"] for it in load(tmp_path).current()] == [2.0]
    other = NAME.replace("int8_wo", "fp16")
    bench(tmp_path, other, [point(1, 1.0, 1.0, 4.0, partial=True)], finished=False)
    assert {it.run.variant: it.partial for it in load(tmp_path).current()} == {NAME: False, other: True}


def test_scores_are_those_of_the_newest_evaluation_of_the_same_engine(tmp_path: Path) -> None:
    run = bench(tmp_path, NAME, [point(1, 1.0, 1.0, 1.0)])
    evaluated(tmp_path, NAME, {"exact_match": 0.5, "agreement": 0.7}, number=1)
    evaluated(tmp_path, NAME, {"exact_match": 0.9}, number=2)
    evaluated(tmp_path, NAME, {"exact_match": 0.1}, number=3, keys={"engine": "another"})
    (found,) = load(tmp_path).current()
    assert (found.figures["exact_match"], found.figures["agreement"]) == (0.9, 0.7)
    assert found.run.folder == run


def test_an_evaluation_of_some_of_the_questions_counts_less_than_one_of_all(tmp_path: Path) -> None:
    bench(tmp_path, NAME, [point(1, 1.0, 1.0, 1.0)])
    gate = {"gate": "exact_match", "holds": True, "text": "exact_match is 0.9"}
    evaluated(tmp_path, NAME, {"exact_match": 0.5}, number=1, gates=[{**gate, "holds": False}])
    evaluated(
        tmp_path, NAME, {"exact_match": 0.9, "bleu": 7.0}, number=2, gates=[gate], settings={"questions_in_all": 99}
    )
    found = load(tmp_path)
    (run,) = [it.run for it in found.current()]
    assert found.scores(run) == {"exact_match": 0.5, "bleu": 7.0}
    assert [gate["holds"] for gate in found.gates(run)] == [False]
    assert found.questions(run) == 32


SPOILED = [
    ({"points": [{"name": "x"}]}, "points.0.load: Field required"),
    ({"points": [{**point(1, 1.0, 1.0, 1.0), "metrics": {"request_latency": {"p50": [1.0]}}}]}, "points.0.metrics."),
    ({"axes": {"shape": {"isl": 1}}}, "axes.shape.osl: Field required"),
    ({"scores": {"figures": {"agreement": "high"}}}, "scores.figures.agreement: Input should be a valid number"),
    ({"gates": [{"gate": "x"}]}, "gates.0.holds: Field required"),
    ({"keys": 3}, "keys: Input should be a valid dictionary"),
]


@pytest.mark.parametrize(("changed", "told"), SPOILED, ids=[told.partition(":")[0] for _, told in SPOILED])
def test_what_is_no_summary_is_told_with_the_place_that_is_wrong(
    tmp_path: Path, changed: dict[str, Any], told: str
) -> None:
    bench(tmp_path, NAME, [point(1, 1.0, 1.0, 1.0)], number=1)
    spoiled = bench(tmp_path, NAME, [], number=2)
    data = json.loads((spoiled / "summary.json").read_text())
    (spoiled / "summary.json").write_text(json.dumps({**data, **changed}))
    found = load(tmp_path)
    ((path, reason),) = found.unread
    assert (path.parent, len(found.current())) == (spoiled, 1)
    assert reason.startswith(told)


def test_what_cannot_be_read_is_told_and_the_rest_is_there(tmp_path: Path) -> None:
    bench(tmp_path, NAME, [point(1, 1.0, 1.0, 1.0)])
    for name, text in (("torn", '{"version": 1, "poi'), ("later", '{"version": 2}'), ("list", "[]")):
        folder = tmp_path / "bench" / NAME / name
        folder.mkdir()
        (folder / "summary.json").write_text(text)
    found = load(tmp_path)
    assert len(found.bench) == 1
    assert {path.parent.name for path, _ in found.unread} == {"torn", "later", "list"}


def test_nothing_measured_is_nothing_found(tmp_path: Path) -> None:
    assert load(tmp_path).current() == []


def test_the_front_is_what_no_other_point_beats_in_both(tmp_path: Path) -> None:
    bench(tmp_path, NAME, [point(1, 10.0, 1.0, 100.0), point(4, 20.0, 2.0, 300.0), point(8, 30.0, 3.0, 290.0)])
    bench(tmp_path, NAME.replace("int8_wo", "fp16"), [point(1, 10.0, 1.0, 90.0), point(2, 9.0, 1.0, 50.0)])
    found = front(load(tmp_path).current(), "ttft_p50_ms")
    assert [(it.figures["output_tokens_per_s"], it.figures["ttft_p50_ms"]) for it in found] == [
        (50.0, 9.0),
        (100.0, 10.0),
        (300.0, 20.0),
    ]
    assert front(load(tmp_path).current(), "ttst_p50_ms") == []


def test_of_each_gate_the_newest_verdict_on_the_same_engine_stands(tmp_path: Path) -> None:
    rows = (("x", True), ("y", False), ("y", True), ("z", True))
    ours, old, new, other = ({"gate": name, "holds": holds, "text": name} for name, holds in rows)
    bench(tmp_path, NAME, [point(1, 1.0, 1.0, 1.0)], gates=[ours])
    evaluated(tmp_path, NAME, {}, number=1, gates=[old, other])
    evaluated(tmp_path, NAME, {}, number=2, gates=[new])
    evaluated(tmp_path, NAME, {}, number=3, gates=[old], keys={"engine": "another"})
    found = load(tmp_path)
    assert found.gates(found.bench[0]) == [ours, new, other]
