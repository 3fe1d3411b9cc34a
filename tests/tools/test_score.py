"""score.py: each metric on texts whose score is known by hand, and fidelity on token ids."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.fakes import PROJECT
from tests.made import Run


def _module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("score_tool", PROJECT / "rules/tools/score.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = _module()


@pytest.mark.parametrize(
    ("metric", "text", "expected", "score"),
    [
        ("exact_match", " Four.\n", "Four.", 1),
        ("exact_match", "four.", "Four.", 0),
        ("exact_match", "cafe\u0301", "caf\u00e9", 1),
        ("contains", "The answer is Four.", "Four", 1),
        ("contains", "Fou", "Four", 0),
        ("regex", "It is 42 °C", r"\d+ °C$", 1),
        ("regex", "It is hot", r"\d+", 0),
        ("numeric", "100 plus 1,000.50 is 1,100.5", "1100.50", 1),
        ("numeric", "about 384,000 km 🌙", "384000", 1),
        ("numeric", "-3e2", "-300", 1),
        ("numeric", "version 1.2", "1", 0),
        ("numeric", "none at all", "1", 0),
        ("rouge_l", "the cat sat", "the cat sat on the mat", 2 * 1 * 0.5 / 1.5),
        ("rouge_l", "蜜蜂做蜂蜜", "蜜蜂酿蜂蜜", 0.8),
        ("rouge_l", "東京です", "東京です。", 1),
        ("rouge_l", "🐝", "🐝", 1),
        ("rouge_l", "", "words", 0),
        ("chrf", "蜜蜂酿蜂蜜", "蜜蜂酿蜂蜜", 100),
        ("bleu", "one two three four five", "one two three four five", 100),
        ("bleu", "蜜蜂酿蜂蜜", "蜜蜂酿蜂蜜", 100),
    ],
)
def test_a_metric_gives_the_score_that_its_definition_gives(
    metric: str, text: str, expected: str, score: float
) -> None:
    assert tool.METRICS[metric](text, expected) == pytest.approx(score)


def test_rouge_keeps_characters_of_scripts_without_spaces() -> None:
    assert tool.words("KV缓存 holds 键値, カナ 서울이에요 ２") == [
        *["kv", "缓", "存", "holds", "键", "値", "カ", "ナ"],
        "서울이에요",
        "2",
    ]


@pytest.mark.parametrize(
    ("ids", "reference", "prefix", "tokens"),
    [([1, 2, 3], [1, 2, 3], 3, 3), ([1, 2, 9, 4], [1, 2, 3, 4], 2, 4), ([1, 2], [1, 2, 3, 4], 2, 4), ([], [1], 0, 1)],
)
def test_agreement_ends_at_the_first_token_that_differs(
    ids: list[int], reference: list[int], prefix: int, tokens: int
) -> None:
    found = tool.agreement({"ids": ids}, {"ids": reference})
    assert (found["prefix"], found["tokens"], found["identical"]) == (prefix, tokens, float(prefix == tokens))


def _row(ids: list[int], log_probs: list[float] | None = None, text: str = "") -> dict[str, Any]:
    return {"input": "q", "expected": "e", "text": text, "ids": ids, "log_probs": log_probs}


def test_agreement_of_all_is_weighted_by_tokens_and_of_two_silences_is_whole() -> None:
    _, figures = tool.fidelity([_row([1, 2]), _row([7] * 8)], [_row([1, 3]), _row([7] * 8)])
    assert figures["agreement"] == pytest.approx(9 / 10)
    assert figures["agreement_prefix"] == pytest.approx((1 + 8) / 2)
    assert figures["agreement_identical"] == pytest.approx(0.5)
    assert tool.fidelity([_row([])], [_row([])])[1]["agreement"] == 1.0


def test_answers_without_token_ids_have_no_fidelity() -> None:
    each, figures = tool.fidelity([_row([1]) | {"ids": None}], [_row([1])])
    assert (each, figures) == ([{}], {})


def test_log_probs_are_compared_on_the_tokens_that_both_chose() -> None:
    ours, theirs = _row([1, 2, 5], [-0.5, -0.7, -9.0]), _row([1, 2, 6], [-0.1, -0.3, -9.0])
    figures = tool.certainty([(ours, theirs)])
    assert figures["log_prob_drop"] == pytest.approx(0.4)
    assert figures["perplexity"] == pytest.approx(math.exp(0.6))
    assert figures["perplexity_reference"] == pytest.approx(math.exp(0.2))


def test_the_divergence_is_that_of_two_outcomes_and_zero_for_equals() -> None:
    p, q = 0.75, 0.5
    by_hand = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert tool.divergence(math.log(p), math.log(q)) == pytest.approx(by_hand)
    assert tool.divergence(0.0, 0.0) == 0.0
    assert tool.divergence(math.log(0.3), math.log(0.3)) == pytest.approx(0.0)
    assert math.isfinite(tool.divergence(0.0, -50.0))


def _likely(log_probs: list[float], *tops: dict[int, float], ids: list[int] | None = None) -> dict[str, Any]:
    top = [[[token, math.log(p)] for token, p in one.items()] for one in tops]
    return {**_row([]), "likely": {"ids": ids or list(range(len(log_probs))), "log_probs": log_probs, "top": top}}


def test_expected_answers_have_a_perplexity_and_what_is_lost_to_the_reference() -> None:
    ours = [_likely([-1.0, -2.0], {0: 0.5}, {0: 0.5}), _likely([-3.0], {0: 0.5})]
    theirs = [_likely([-1.0, -1.0], {0: 0.5}, {0: 0.5}), _likely([-1.0], {0: 0.5})]
    assert tool.likelihood(ours) == {"expected_perplexity": pytest.approx(math.exp(2))}
    assert tool.likelihood(ours, theirs) == {
        "expected_perplexity": pytest.approx(math.exp(2)),
        "expected_perplexity_reference": pytest.approx(math.exp(1)),
        "expected_log_prob_drop": pytest.approx(1),
        "expected_kl": pytest.approx(0),
    }


def test_what_was_not_measured_has_no_likelihood() -> None:
    assert tool.likelihood([_row([1])]) == {}
    assert tool.likelihood([_row([1])], [_likely([-1.0], {0: 0.5})]) == {}
    assert tool.likelihood([_likely([-1.0], {0: 0.5}, ids=[4])], [_likely([-1.0], {0: 0.5}, ids=[5])]) == {}


def test_the_divergence_of_distributions_merges_what_is_not_likely_in_both() -> None:
    p, q = {1: 0.5, 2: 0.3, 3: 0.1}, {1: 0.2, 2: 0.3, 4: 0.4}
    by_hand = 0.5 * math.log(0.5 / 0.2) + 0.3 * math.log(0.3 / 0.3) + 0.2 * math.log(0.2 / 0.5)
    logs = [{token: math.log(value) for token, value in one.items()} for one in (p, q)]
    assert tool.kl(*logs) == pytest.approx(by_hand)
    assert tool.kl(logs[0], logs[0]) == 0
    assert math.isfinite(tool.kl({1: 0.0}, {1: -40.0}))
    assert tool.kl({1: math.log(0.9)}, {2: math.log(0.9)}) == 0, "nothing is known of both"


def _file(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_scores_drops_and_every_row_are_written(run_tool: Run, out: Path, tmp_path: Path) -> None:
    questions = [("a", "東京です。", "東京です。"), ("b", "ten", "Ten.\u2028")]
    ours = [{"input": i, "expected": e, "text": t, "ids": [1, 2]} for i, t, e in questions]
    theirs = [{**row, "text": row["expected"]} for row in ours]
    answers, reference = _file(tmp_path / "a.jsonl", ours), _file(tmp_path / "r.jsonl", theirs)
    done = run_tool("score", "--answers", answers, "--reference", reference, "--metrics=exact_match,chrf", "--out", out)
    assert done.returncode == 0, done.stderr
    scores = json.loads((out / "scores.json").read_text())
    assert scores["figures"]["exact_match"] == 0.5
    assert scores["figures"]["exact_match_drop"] == 0.5
    assert scores["figures"]["agreement"] == 1.0
    assert scores["reference_scores"]["chrf"] == pytest.approx(100)
    assert scores["signatures"]["chrf"].startswith("nrefs:1")
    assert scores["standard_errors"]["exact_match"] == pytest.approx(0.5)
    rows = [json.loads(line) for line in (out / "scores.jsonl").read_text().split("\n")[:-1]]
    assert [row["exact_match"] for row in rows] == [1.0, 0.0]


def test_an_answer_that_failed_scores_nothing_and_is_counted(run_tool: Run, out: Path, tmp_path: Path) -> None:
    rows = [{"input": "q", "expected": "e", "text": None, "error": "HTTP 500"}]
    done = run_tool("score", "--answers", _file(tmp_path / "a.jsonl", rows), "--metrics=exact_match", "--out", out)
    assert done.returncode == 0, done.stderr
    scores = json.loads((out / "scores.json").read_text())
    assert (scores["failed"], scores["figures"]["exact_match"]) == (1, 0.0)


@pytest.mark.parametrize(
    ("rows", "metrics", "told"),
    [
        ([], "", "is empty"),
        ([{"input": "q", "text": "t"}], "contains", "question 1 says nothing of what is expected"),
        ([{"input": "q", "text": "t", "expected": "("}], "regex", "question 1 expects no regular expression"),
    ],
)
def test_data_that_cannot_be_scored_is_refused(
    run_tool: Run, out: Path, tmp_path: Path, rows: list[dict[str, Any]], metrics: str, told: str
) -> None:
    done = run_tool("score", "--answers", _file(tmp_path / "a.jsonl", rows), f"--metrics={metrics}", "--out", out)
    assert done.returncode == 1
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_answers_to_other_questions_are_no_reference(run_tool: Run, out: Path, tmp_path: Path) -> None:
    one, other = ({"input": text, "text": "t", "expected": "t"} for text in ("q", "r"))
    answers, reference = _file(tmp_path / "a.jsonl", [one]), _file(tmp_path / "r.jsonl", [other])
    done = run_tool("score", "--answers", answers, "--reference", reference, "--out", out)
    assert (done.returncode, "answers other questions" in done.stderr) == (1, True)
