"""`doit recommend`."""

from __future__ import annotations

import json

import pytest

from tests.measured import bench, evaluated, point
from tests.space import HEAD, Space

INT8, INT4 = (f"m_{precision}_isl256_osl64_bs8" for precision in ("int8_wo", "int4_wo"))
SPEC = f"""{HEAD}
[models.m]
source = "tiny:qwen2"
toolchain = "cpu"
precisions = ["int8_wo", "int4_wo"]
shapes = [{{ batch = 8, isl = 256, osl = 64 }}]
eval = {{ data = "file:q.jsonl", metrics = ["exact_match"], reference = "int8_wo" }}
gates = {{ exact_match = 0.9, agreement = 0.95, output_tokens_per_s = 10000 }}
"""


@pytest.fixture
def measured(workspace: Space) -> Space:
    """int4 is the faster and the less faithful."""
    workspace.write("models.toml", SPEC)
    workspace.write("q.jsonl", '{"input": "q", "expected": "e"}\n')
    root = workspace.root / "artifacts"
    bench(root, INT8, [point(1, 10.0, 2.0, 100.0), point(8, 40.0, 4.0, 500.0)])
    bench(root, INT4, [point(1, 8.0, 1.0, 150.0), point(8, 30.0, 3.0, 800.0)])
    evaluated(root, INT8, {"exact_match": 0.95})
    evaluated(root, INT4, {"exact_match": 0.95, "agreement": 0.97})
    return workspace


def test_the_best_is_told_with_load_figures_and_engine_and_the_other_with_its_reason(measured: Space) -> None:
    out = measured.build("recommend", "m", "--ttft-p99", "1000")
    assert out.splitlines()[0] == INT4
    assert "at concurrency 8: output_tokens_per_s 800, ttft_p50_ms 30," in out
    assert f"engine {b'int4_wo256'.hex().ljust(64, '0')}" in out
    assert f"{INT8}\n    within the limits, with 38% less throughput" in out


def test_the_entrys_accuracy_gates_are_limits_and_its_other_gates_are_not(measured: Space) -> None:
    evaluated(measured.root / "artifacts", INT4, {"exact_match": 0.95, "agreement": 0.5}, number=2)
    out = measured.build("recommend", "m")
    assert out.splitlines()[0] == INT8
    assert "agreement is 0.5, must be at least 0.95" in out


def test_an_engine_that_was_not_evaluated_cannot_pass_an_accuracy_gate(measured: Space) -> None:
    evaluated(measured.root / "artifacts", INT4, {"exact_match": 0.95, "agreement": 0.97}, 3, keys={"engine": "older"})
    bench(measured.root / "artifacts", INT4, [point(1, 1.0, 1.0, 9000.0)], number=2, keys={"engine": "newer"})
    out = measured.build("recommend", "m")
    assert out.splitlines()[0] == INT8
    assert f"this engine was not evaluated: doit eval:{INT4}" in out


def test_figures_of_an_engine_that_is_no_more_are_not_used(measured: Space) -> None:
    measured.build(f"engine:{INT4}")
    out = measured.build("recommend", "m")
    assert out.splitlines()[0] == INT8
    assert f"was measured with another engine ({b'int4_wo256'.hex()[:12]}" in out


def test_json_has_every_variant_the_best_first(measured: Space) -> None:
    found = json.loads(measured.build("recommend", "m", "--itl-p50", "3.5", "--json"))
    assert (found["version"], found["recommended"], found["limits"]) == (1, INT4, {"itl_p50_ms": 3.5})
    assert [row["within"] for row in found["variants"]] == [True, True]
    assert found["variants"][1]["load"] == {"mode": "concurrency", "value": 1.0}


def test_when_none_is_within_the_limits_each_is_told_why_and_the_exit_code_is_1(measured: Space) -> None:
    result = measured.run("recommend", "m", "--ttft-p50=1")
    assert result.rc == 1
    assert result.out.startswith("no variant is within the limits")
    assert result.out.count("ttft_p50_ms is ") == 2


@pytest.mark.parametrize("arguments", [(), ("m", "--ttft-p99=fast"), ("nobody",)])
def test_a_question_that_makes_no_sense_is_exit_3(measured: Space, arguments: tuple[str, ...]) -> None:
    result = measured.run("recommend", *arguments)
    assert (result.rc, "Traceback" in result.err) == (3, False)
