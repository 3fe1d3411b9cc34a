"""`eval:X` under the real doit: what it asks, what it keeps, and when it is red."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rules import evaluation
from rules import workspace as workspace_of
from tests.measured import bench, point
from tests.space import HEAD, Space

VARIANT = "m_int8_wo_isl256_osl64_bs8"
REFERENCE = "m_fp32_isl256_osl64_bs8"
SPEC = f"""{HEAD}
[models.m]
source = "tiny:qwen2"
toolchain = "cpu"
precisions = ["int8_wo", "fp32"]
shapes = [{{ batch = 8, isl = 256, osl = 64 }}, {{ batch = 4, isl = 256, osl = 64 }}]
eval = {{ data = "file:q.jsonl", metrics = ["exact_match"], reference = "fp32" }}
gates = {{ exact_match = 0.9, agreement = 0.95, ttft_p99_ms = 1 }}

[models.n]
source = "tiny:llama"
toolchain = "cpu"
precisions = ["int8_wo"]
shapes = [{{ batch = 8, isl = 256, osl = 64 }}]
"""
# Stand-ins for the tools: an answer, and the figures that the file `figures` names.
ASK = """import sys; from pathlib import Path
out = Path(next(word.partition("=")[2] for word in sys.argv if word.startswith("--out=")))
(out / "answers.jsonl").write_text('{"input": "q", "expected": "e", "text": "e", "error": null}\\n')
"""
SCORE = """import json, sys; from pathlib import Path
out = Path(next(word.partition("=")[2] for word in sys.argv if word.startswith("--out=")))
figures = json.loads((out.parents[3] / "control/figures").read_text())
scores = {"questions": 1, "failed": 0, "figures": figures, "scores": figures, "standard_errors": {}}
(out / "scores.json").write_text(json.dumps(scores)); (out / "scores.jsonl").write_text("")
"""


@pytest.fixture
def asked(workspace: Space) -> Space:
    """A workspace with questions."""
    workspace.write("models.toml", SPEC)
    workspace.write("q.jsonl", '{"input": "q", "expected": "e"}\n')
    workspace.write("control/ask.py", ASK)
    workspace.write("control/score.py", SCORE)
    workspace.write("control/figures", '{"exact_match": 1.0, "agreement": 0.99}')
    return workspace


def _runs(space: Space, variant: str) -> list[Path]:
    return sorted((space.root / "artifacts/eval" / variant).glob("*/summary.json"))


def _summary(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_a_variant_and_its_reference_are_asked_and_scored(asked: Space) -> None:
    out = asked.build(f"eval:{VARIANT}")
    assert asked.ran()[-4:] == ["ask", "score", "ask", "score"]
    (ours,), (theirs,) = _runs(asked, VARIANT), _runs(asked, REFERENCE)
    assert f"eval:{VARIANT}  measured in " in out
    assert "exact_match          1.0000" in out
    assert str(ours.parent.relative_to(asked.root)) in out
    assert _summary(ours)["settings"]["reference_run"] == theirs.parent.name


def test_each_run_is_made_anew_and_kept_and_the_reference_is_asked_once(asked: Space) -> None:
    asked.build(f"eval:{VARIANT}")
    asked.ran()
    before = [path.read_bytes() for path in _runs(asked, VARIANT)]
    assert "1 measured, " in asked.build(f"eval:{VARIANT}")
    assert asked.ran() == ["ask", "score"]
    assert len(_runs(asked, VARIANT)) == 2
    assert before[0] in [path.read_bytes() for path in _runs(asked, VARIANT)]
    assert len(_runs(asked, REFERENCE)) == 1


def test_other_questions_are_asked_of_the_reference_again(asked: Space) -> None:
    asked.build(f"eval:{VARIANT}")
    asked.ran()
    asked.write("q.jsonl", '{"input": "another", "expected": "e"}\n')
    asked.build(f"eval:{VARIANT}")
    assert asked.ran() == ["ask", "score", "ask", "score"]


def test_a_run_says_of_what_where_and_with_which_versions_it_was(asked: Space) -> None:
    asked.build(f"eval:{VARIANT}")
    summary = _summary(_runs(asked, VARIANT)[0])
    assert summary["keys"]["engine"] == asked.record(f"engine:{VARIANT}")["key"]
    assert summary["keys"]["build"] == asked.record(f"build:{VARIANT}")["key"]
    assert summary["axes"]["precision"] == "int8_wo"
    assert summary["axes"]["shape"] == {"batch": 8, "isl": 256, "osl": 64}
    assert summary["prompts"]["count"] == 1
    assert (summary["kind"], summary["variant"], summary["finished"]) == ("eval", VARIANT, True)
    assert {"host", "cpu", "memory_bytes", "gpus", "versions", "revision", "started"} <= set(summary)


def test_a_broken_gate_is_red_with_a_line_each_and_the_run_is_kept(asked: Space) -> None:
    asked.write("control/figures", '{"exact_match": 0.5, "agreement": 0.99}')
    result = asked.run(f"eval:{VARIANT}")
    assert result.rc == 1
    assert f"ERROR: eval:{VARIANT} breaks 1 of 2 gates" in result.out
    wrong, _, figures = result.out.partition("answers ")
    assert "exact_match is 0.5, must be at least 0.9" in wrong
    assert "agreement" not in wrong
    assert "    holds: agreement is 0.99, must be at least" in figures
    assert [gate["holds"] for gate in _summary(_runs(asked, VARIANT)[0])["gates"]] == [False, True]


def test_the_reference_itself_is_compared_with_nothing(asked: Space) -> None:
    asked.build(f"eval:{REFERENCE}")
    assert asked.ran()[-2:] == ["ask", "score"]
    assert _summary(_runs(asked, REFERENCE)[0])["settings"]["reference_run"] is None


def test_a_group_is_every_variant_that_has_questions(asked: Space) -> None:
    tasks = [line.split()[0] for line in asked.build("list", "--all", "--quiet").splitlines()]
    assert sorted(task for task in tasks if task.startswith("eval:")) == sorted(
        f"eval:{name}"
        for name in (
            *("m", "m_int8_wo", "m_fp32", VARIANT, REFERENCE),
            *(name.replace("bs8", "bs4") for name in (VARIANT, REFERENCE)),
        )
    )


def _loaded(space: Space, **settings: object) -> dict[str, Any]:
    """The summary of a bench run that asked the questions twice, at two load points."""
    folder = bench(space.root / "artifacts", VARIANT, [point(1, 1.0, 1.0, 1.0), point(8, 1.0, 1.0, 1.0)])
    for number, name in enumerate(("concurrency1_1", "concurrency8_1")):
        lines = [
            {
                "error": None if prompt else {"message": "timeout"},
                "engines": {
                    "prompt": prompt,
                    "text_input": f"q{prompt}",
                    "expected": "e",
                    "text": "ae"[number] + "0" * (not number),
                },
            }
            for prompt in ((2, 0) if number == 0 else (0, 1, 2))
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / name / "profile_export.jsonl").write_text(text)
    path = str(space.root / "q.jsonl")
    summary = _summary(folder / "summary.json")
    return {**summary, "folder": str(folder), "settings": {"prompts": path, "fixed": False, **settings}}


def _scored(space: Space, **settings: object) -> dict[str, Any] | None:
    loaded = workspace_of.load(space.root)
    variant = loaded.plan.variants[VARIANT]
    return evaluation.of_run(loaded, variant, _loaded(space, **settings), lambda line: None)


def test_the_answers_of_a_bench_run_are_scored_in_the_same_pass(built: Space) -> None:
    built.write("models.toml", SPEC)
    built.write("q.jsonl", '{"input": "q", "expected": "e"}\n')
    found = _scored(built)
    assert found
    rows = [json.loads(line) for line in (found["folder"] / "answers.jsonl").read_text().splitlines()]
    assert [(row["input"], row["text"], row["error"]) for row in rows] == [
        ("q0", "a0", "timeout"),
        ("q1", "e", None),
        ("q2", "a0", None),
    ]
    assert found["scores"]["figures"] == {"exact_match": pytest.approx(1 / 3)}
    assert [gate["gate"] for gate in found["gates"]] == ["exact_match"]
    assert evaluation.lines(found)[0].startswith("3 questions")
    assert (built.root / "artifacts/bench" / VARIANT / found["settings"]["bench_run"]).is_dir()


def test_a_load_that_asked_but_some_of_the_questions_says_of_how_many(built: Space) -> None:
    built.write("models.toml", SPEC)
    built.write("q.jsonl", '{"input": "q", "expected": "e"}\n' * 5 + "\n")
    found = _scored(built)
    assert found
    assert evaluation.lines(found)[0].startswith("3 of the 5 questions")


@pytest.mark.parametrize("settings", [{"prompts": None}, {"prompts": "other.jsonl"}, {"fixed": True}])
def test_answers_to_other_questions_or_of_a_fixed_length_are_not_scored(
    built: Space, settings: dict[str, object]
) -> None:
    built.write("models.toml", SPEC)
    built.write("q.jsonl", '{"input": "q", "expected": "e"}\n')
    assert _scored(built, **settings) is None
