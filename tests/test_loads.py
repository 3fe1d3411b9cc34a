"""The `bench` table of a model: read strictly, and checked before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from rules import check, spec
from tests.space import SPEC


def _told(root: Path, bench: str) -> list[str]:
    text = f"{SPEC}bench = {bench}\n"
    parsed, problems = spec.read(text)
    return [problem.what for problem in (*problems, *check.problems(parsed, root))]


def test_a_whole_table_is_understood(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text("{}")
    table = [
        'prompts = "file:p.jsonl", osl = 32, concurrency = [1, 8], request_rate = [2.5], seconds = 10.0, repeats = 3',
        'slo = { ttft_ms = 400.0 }, gate_at = [8.0, 2.5], baseline = "file:baselines"',
    ]
    assert _told(tmp_path, f"{{ {', '.join(table)} }}") == []


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("{ concurency = [1] }", "models.m.bench.concurency: unknown key"),
        ("{ concurrency = [0] }", "models.m.bench.concurrency[0]: must be at least 1"),
        ("{ slo = { tttf_ms = 4.0 } }", "models.m.bench.slo.tttf_ms: unknown key"),
        ("{ slo = { ttft_ms = 0.0 } }", "models.m.bench.slo.ttft_ms: must be more than 0"),
        ("{ endpoint = 'soap' }", "models.m.bench.endpoint: must be 'grpc' or 'http'"),
    ],
)
def test_a_mistake_is_told_with_its_place(tmp_path: Path, table: str, told: str) -> None:
    assert _told(tmp_path, table) == [told]
