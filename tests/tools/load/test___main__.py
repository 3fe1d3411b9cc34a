"""Whole runs of the tool against a server without a model: load points, exports, failures, and being cut short."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tools.load.conftest import command, load

Ports = dict[str, int]
RunFolder = Callable[..., Path]
BEES = [{"input": "What do bees make?", "output": "honey", "max_tokens": 3}, {"text": "keys"}]


def _rows(folder: Path, point: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / point / "profile_export.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("endpoint", ["grpc", "http", "chat", "completions"])
def test_every_protocol_gives_every_answer(quick: Ports, run_folder: RunFolder, endpoint: str) -> None:
    folder = run_folder(quick, BEES, endpoint=endpoint, requests=10)
    code, summary = load(folder)
    point = summary["points"][0]
    assert (code, summary["finished"]) == (0, True)
    assert (point["counts"]["ok"], point["counts"]["responses"]) == (10, 5 * 3 + 5 * 4)
    assert point["token_counting"] == ("server" if endpoint in ("chat", "completions") else "chunks")
    row = next(one for one in _rows(folder, "concurrency4_1") if one["engines"]["prompt"] == 0)
    assert (row["engines"]["expected"], row["metrics"]["output_sequence_length"]["value"]) == ("honey", 3)


def test_exactly_the_asked_number_is_in_flight(slow: Ports, run_folder: RunFolder) -> None:
    folder = run_folder(slow, [{"text": "a", "max_tokens": 1}], concurrency=[3], requests=24, processes=2)
    load(folder)
    spans = [
        (one["metadata"]["request_start_ns"], one["metadata"]["request_end_ns"])
        for one in _rows(folder, "concurrency3_1")
    ]
    assert len(spans) == 24
    assert max(sum(begin <= moment < end for begin, end in spans) for moment, _ in spans) == 3


def test_an_open_loop_does_not_wait_for_answers(slow: Ports, run_folder: RunFolder) -> None:
    long = [{"text": "a", "max_tokens": 12}]
    folder = run_folder(slow, long, concurrency=[], request_rate=[500.0], arrival="constant", requests=8)
    point = load(folder)[1]["points"][0]
    starts = [one["metadata"]["request_start_ns"] for one in _rows(folder, "request_rate500_1")]
    ends = [one["metadata"]["request_end_ns"] for one in _rows(folder, "request_rate500_1")]
    assert max(starts) < min(ends)
    assert {"lag_p50_ms", "lag_p99_ms"} <= set(point["client"])


def test_failures_are_told_by_kind_and_the_rest_is_measured(quick: Ports, run_folder: RunFolder) -> None:
    prompts = [{"text": text} for text in ("fail", "cut", "mute", "fine")]
    for endpoint, kinds in (
        ("http", {"http: 500": 3, "connection: closed": 3, "empty": 3}),
        ("grpc", {"grpc: error": 3, "grpc: OK": 3, "empty": 3}),
    ):
        point = load(run_folder(quick, prompts, endpoint=endpoint, concurrency=[2], request_rate=[]))[1]["points"][-1]
        assert point["errors"] == kinds
        assert point["error_message"], "one of them in its own words"
        assert (point["counts"]["ok"], point["figures"]["error_rate"]) == (3, 0.75)
        (run_folder(quick, prompts) / "summary.json").unlink()


def test_a_request_without_an_end_is_a_timeout(slow: Ports, run_folder: RunFolder) -> None:
    endless = [{"text": "a", "max_tokens": 1000}]
    point = load(run_folder(slow, endless, timeout_s=0.25, requests=2))[1]["points"][0]
    assert point["errors"] == {"timeout": 2}


def test_what_was_measured_before_an_interruption_is_kept_and_gone_on_with(slow: Ports, run_folder: RunFolder) -> None:
    folder = run_folder(slow, [{"text": "a", "max_tokens": 25}], concurrency=[1, 2], requests=None, seconds=0.2)
    asked = json.loads((folder / "run.json").read_text())
    with subprocess.Popen(command(folder), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            if line.startswith("concurrency2_1: ") and "answered" in line:
                process.send_signal(signal.SIGTERM)
                break
        process.communicate()
    assert process.returncode == 130
    cut = json.loads((folder / "summary.json").read_text())
    assert [(one["name"], one["partial"]) for one in cut["points"]] == [
        ("concurrency1_1", False),
        ("concurrency2_1", True),
    ]
    assert (cut["finished"], cut["points"][1]["counts"]["cancelled"] > 0) == (False, True)
    assert asked == json.loads((folder / "run.json").read_text())
    code, whole = load(folder)
    assert (code, whole["finished"]) == (0, True)
    assert whole["points"][0] == cut["points"][0]  # not measured again
    assert not whole["points"][1]["partial"]
    assert len(list(folder.glob("concurrency2_1.partial-*/profile_export.jsonl"))) == 1


def test_warm_up_is_not_measured_and_repeats_are_apart(quick: Ports, run_folder: RunFolder) -> None:
    folder = run_folder(quick, BEES, warmup=5, repeats=2, requests=4)
    summary = load(folder)[1]
    assert [(one["name"], one["repeat"], one["counts"]["requests"]) for one in summary["points"]] == [
        ("concurrency4_1", 1, 4), ("concurrency4_2", 2, 4),
    ]  # fmt: skip
    served = f"http://127.0.0.1:{quick['http']}/metrics"
    (folder / "summary.json").unlink()
    point = load(run_folder(quick, BEES, warmup=5, requests=4, metrics=served))[1]["points"][0]
    assert point["server"]["models"]["ensemble"]["requests"] == 4.0


def test_a_server_that_is_not_there_is_one_clear_error(run_folder: RunFolder) -> None:
    folder = run_folder({"grpc": 9, "http": 9}, BEES)
    done = subprocess.run(command(folder), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: http://127.0.0.1:9/v2/models/ensemble cannot be had")
    assert "Traceback" not in done.stderr
