"""The same points as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from rules.findings import Findings, load
from rules.tables import as_csv, as_json, as_markdown
from tests.measured import bench, evaluated, point

NAME = "m_int8_wo_isl256_osl64_bs8"
SCORE = {"gate": "agreement", "holds": False, "skipped": "", "text": "agreement is 0.98765, must be at least 0.99"}
GATE = {"gate": "ttft_p99_ms", "holds": False, "skipped": "", "text": "ttft_p99_ms is 512 ms, must be at most 400 ms"}


@pytest.fixture
def found(tmp_path: Path) -> Findings:
    points = [point(1, 10.0, 2.0, 100.0), point(8, 40.0, 4.0, 512.4, partial=True)]
    bench(tmp_path, NAME, points, gates=[GATE, {**GATE, "holds": True}])
    evaluated(tmp_path, NAME, {"agreement": 0.98765}, gates=[SCORE])
    (tmp_path / "bench" / NAME / "torn").mkdir()
    (tmp_path / "bench" / NAME / "torn" / "summary.json").write_text("{")
    return load(tmp_path)


def test_markdown_is_a_table_per_model_with_its_broken_gates(found: Findings) -> None:
    text = as_markdown(found, found.current())
    assert text.startswith("### m\n\n| variant | load | tokens/s |")
    lines = [line for line in text.splitlines() if line.startswith(f"| `{NAME}`")]
    assert [line.split(" | ")[1:3] for line in lines] == [["concurrency 1", "100"], ["concurrency 8 (partial)", "512"]]
    assert "| 0.9876 |" in lines[0] or "| 0.9877 |" in lines[0]
    assert f"- **{NAME}**: ttft_p99_ms is 512 ms, must be at most 400 ms\n" in text
    assert f"- **{NAME}**: agreement is 0.98765, must be at least 0.99\n" in text
    assert text.count("- **") == 2
    assert "> not read: " in text


def test_every_line_of_a_markdown_table_has_as_many_cells(found: Findings) -> None:
    lines = [line for line in as_markdown(found, found.current()).splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1


def test_nothing_measured_says_what_to_run(tmp_path: Path) -> None:
    assert "doit bench" in as_markdown(load(tmp_path), [])


def test_csv_has_a_line_per_point_and_every_figure(found: Findings) -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(found.current()))))
    assert [(row["mode"], row["value"], row["ttft_p50_ms"], row["agreement"]) for row in rows] == [
        ("concurrency", "1.0", "10.0", "0.98765"),
        ("concurrency", "8.0", "40.0", "0.98765"),
    ]
    assert {row["engine"] for row in rows} == {b"int8_wo256".hex().ljust(64, "0")}


def test_json_has_points_gates_and_what_was_not_read(found: Findings) -> None:
    made = json.loads(as_json(found, found.current()))
    assert made["version"] == 1
    assert [row["isl"] for row in made["points"]] == [256, 256]
    assert made["gates"] == {NAME: [GATE, {**GATE, "holds": True}, SCORE]}
    assert len(made["unread"]) == 1
