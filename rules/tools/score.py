"""Scores answers against what was expected, and against a reference precision's answers to the same questions.

    score.py --answers FILE --metrics exact_match,rouge_l --out DIR [--reference FILE]

A line of either file is what ask.py writes: `{"input", "expected", "text", "ids", "log_probs", "error"}`; the lines of
the reference answer the same inputs in the same order. Writes OUT/scores.json and, a line a question, OUT/scores.jsonl.
docs/evaluation.md has the definitions; the functions below are them.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import re
import statistics
import sys
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

# Scripts written without spaces: every character is a token. The rest: runs of letters, digits and marks.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
)
TOKENS = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+")
NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+)?")
TOLERANCE = 1e-6  # relative, of `numeric`
SURE = 1 - 1e-9  # a probability of 1 would make the divergence infinite


class Refused(Exception):
    """Something the user can mend; its text is what they read."""


def plain(text: str) -> str:
    """Without surrounding white space, composed (NFC): equal to the eye is equal."""
    return unicodedata.normalize("NFC", text).strip()


def words(text: str) -> list[str]:
    """ROUGE's tokens: NFKC, lower case; a character each in scripts without spaces, else words. Symbols drop out."""
    return TOKENS.findall(unicodedata.normalize("NFKC", text).lower())


def number(text: str) -> float | None:
    """The last number in `text`, thousands separators allowed."""
    found = [match for match in NUMBER.findall(text) if any(map(str.isdigit, match))]
    return float(found[-1].replace(",", "")) if found else None


def exact_match(text: str, expected: str) -> float:
    """1 when they are the same text, but for surrounding white space."""
    return float(plain(text) == plain(expected))


def contains(text: str, expected: str) -> float:
    """1 when `expected` is somewhere in the text."""
    return float(plain(expected) in plain(text))


def regex(text: str, expected: str) -> float:
    """1 when the pattern `expected` (Python's re) matches somewhere in the text."""
    return float(re.search(expected, text) is not None)


def numeric(text: str, expected: str) -> float:
    """1 when the last numbers of both are equal, up to a millionth."""
    one, other = number(text), number(expected)
    return float(one is not None and other is not None and math.isclose(one, other, rel_tol=TOLERANCE))


def rouge_l(text: str, expected: str) -> float:
    """F-measure of the longest common subsequence of tokens, 0 to 1 (torchmetrics; ROUGE-L of one reference)."""
    from torchmetrics.functional.text import rouge_score

    if not words(text) or not words(expected):
        return float(words(text) == words(expected))
    found = rouge_score(text, expected, rouge_keys="rougeL", normalizer=str, tokenizer=words)
    return float(found["rougeL_fmeasure"])


def chrf(text: str, expected: str) -> float:
    """chrF2 of the sentence, 0 to 100 (sacrebleu)."""
    import sacrebleu

    return float(sacrebleu.sentence_chrf(text, [expected]).score)


def bleu(text: str, expected: str) -> float:
    """BLEU of the sentence, 0 to 100, smoothed as sacrebleu does."""
    import sacrebleu

    return float(sacrebleu.sentence_bleu(text, [expected], tokenize=bleu_tokens([expected])).score)


def bleu_tokens(expected: Sequence[str]) -> str:
    """The tokenizer of sacrebleu: `char` where a script without spaces occurs, else WMT's `13a`."""
    return "char" if any(re.search(f"[{UNSPACED}]", text) for text in expected) else "13a"


METRICS: dict[str, Callable[[str, str], float]] = {
    metric.__name__: metric for metric in (exact_match, contains, regex, numeric, rouge_l, chrf, bleu)
}


def corpus(metric: str, texts: list[str], expected: list[str]) -> tuple[float, str]:
    """(score of all answers together, sacrebleu's signature): BLEU and chrF are not means of sentences."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    scorer: Any = CHRF() if metric == "chrf" else BLEU(tokenize=bleu_tokens(expected))
    return float(scorer.corpus_score(texts, [expected]).score), str(scorer.get_signature())


def score(rows: list[Row], metrics: Sequence[str]) -> tuple[list[Row], Row]:
    """(each row's scores, those of all): means, with their standard error, or the corpus score. No answer scores 0."""
    each = [{name: METRICS[name](row["text"], row["expected"]) for name in metrics} for row in rows]
    scores, errors, signatures = {}, {}, {}
    for name in metrics:
        values = [row[name] for row in each]
        scores[name] = statistics.fmean(values)
        if name in ("chrf", "bleu"):
            texts, expected = [row["text"] for row in rows], [row["expected"] for row in rows]
            scores[name], signatures[name] = corpus(name, texts, expected)
        elif len(values) > 1:
            errors[name] = statistics.stdev(values) / math.sqrt(len(values))
    return each, {"scores": scores, "standard_errors": errors, "signatures": signatures}


def shared(ids: Sequence[int], reference: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = zip(ids, reference, strict=False)
    return next((place for place, (one, other) in enumerate(pairs) if one != other), min(len(ids), len(reference)))


def divergence(reference: float, other: float) -> float:
    """KL of {this token, any other} from the reference to the other, in nats, of two log-probabilities of one token.

    Merging outcomes never raises KL, so the mean is a lower bound of the whole distribution's.
    """
    p, q = min(math.exp(reference), SURE), min(math.exp(other), SURE)
    rest = (1 - p) * (math.log1p(-p) - math.log1p(-q))
    return max(p * (math.log(p) - math.log(q)) + rest, 0.0) if p > 0 and q > 0 else 0.0


def fidelity(rows: list[Row], reference: list[Row]) -> tuple[list[Row], Row]:
    """(each row's agreement, that of all) where both answers have token ids."""
    pairs = [(row, other) for row, other in zip(rows, reference, strict=True) if both(row, other, "ids")]
    each = [
        agreement(row, other) if both(row, other, "ids") else {} for row, other in zip(rows, reference, strict=True)
    ]
    if not pairs:
        return each, {}
    found = [one for one in each if one]
    longest = sum(one["tokens"] for one in found)
    figures = {
        "agreement": sum(one["prefix"] for one in found) / longest if longest else 1.0,
        "agreement_prefix": statistics.fmean(one["prefix"] for one in found),
        "agreement_identical": statistics.fmean(one["identical"] for one in found),
    }
    return each, {**figures, **certainty(pairs)}


def both(row: Row, other: Row, key: str) -> bool:
    """Whether the two rows have it."""
    return row.get(key) is not None and other.get(key) is not None


def agreement(row: Row, other: Row) -> Row:
    """Tokens in common before the first that differs, and those of the longer answer."""
    prefix, tokens = shared(row["ids"], other["ids"]), max(len(row["ids"]), len(other["ids"]))
    return {"prefix": prefix, "tokens": tokens, "identical": float(prefix == tokens)}


def certainty(pairs: list[tuple[Row, Row]]) -> Row:
    """What both said of the tokens that both chose in the same context: perplexities, their drop, and the KL bound."""
    ours, theirs = [], []
    for row, other in pairs:
        if both(row, other, "log_probs"):
            count = shared(row["ids"], other["ids"])
            ours += row["log_probs"][:count]
            theirs += other["log_probs"][:count]
    if not ours:
        return {}
    mean, reference = statistics.fmean(ours), statistics.fmean(theirs)
    return {
        "log_prob_drop": reference - mean,
        "perplexity": math.exp(-mean),
        "perplexity_reference": math.exp(-reference),
        "kl_bound": statistics.fmean(divergence(p, q) for p, q in zip(theirs, ours, strict=True)),
    }


def likelihood(rows: list[Row], reference: list[Row] | None = None) -> Row:
    """What was made of the expected answers' tokens, all questions together; empty where nothing was measured.

    With the `reference`'s rows, also its own, how much lower the log-probability is, and the divergence.
    """
    others = reference or rows
    pairs = [
        (row["likely"], other["likely"])
        for row, other in zip(rows, others, strict=True)
        if both(row, other, "likely") and row["likely"]["ids"] == other["likely"]["ids"]
    ]
    ours = [value for one, _ in pairs for value in one["log_probs"]]
    if not ours:
        return {}
    mean = statistics.fmean(ours)
    if reference is None:
        return {"expected_perplexity": math.exp(-mean)}
    theirs = statistics.fmean(value for _, other in pairs for value in other["log_probs"])
    tops = [tops for one, other in pairs for tops in zip(other["top"], one["top"], strict=True)]
    return {
        "expected_perplexity": math.exp(-mean),
        "expected_perplexity_reference": math.exp(-theirs),
        "expected_log_prob_drop": theirs - mean,
        "expected_kl": statistics.fmean(kl(dict(map(tuple, p)), dict(map(tuple, q))) for p, q in tops),
    }


def kl(reference: dict[int, float], other: dict[int, float]) -> float:
    """KL from the reference to the other, in nats, over the tokens that are among the likeliest of both and the rest.

    Both are log-probabilities by token. All else is one outcome: merging never raises KL, so this is a lower bound.
    """
    common = reference.keys() & other.keys()
    known = sum(math.exp(reference[token]) * (reference[token] - other[token]) for token in common)
    p, q = (max(1 - sum(math.exp(of[token]) for token in common), 1 - SURE) for of in (reference, other))
    return max(known + p * math.log(p / q), 0.0)


def compare(rows: list[Row], reference: list[Row], metrics: Sequence[str], scores: Row) -> tuple[list[Row], Row]:
    """Fidelity, the reference's own scores, and how much lower these are."""
    if [row["input"] for row in rows] != [row["input"] for row in reference]:
        raise Refused("the reference answers other questions\n    hint: evaluate the reference again, on the same data")
    each, figures = fidelity(rows, reference)
    figures |= likelihood(rows, reference)
    theirs = score(reference, metrics)[1]["scores"]
    drops = {f"{name}_drop": theirs[name] - scores[name] for name in metrics}
    return each, {"fidelity": figures, "reference_scores": theirs, "drops": drops}


def read(path: Path, metrics: Sequence[str]) -> list[Row]:
    """The rows. Raises Refused when there are none, or when one has nothing to be compared with."""
    rows = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
    if not rows:
        raise Refused(f"{path.name} is empty\n    hint: name a data file with questions")
    for number, row in enumerate(rows, 1):
        row["text"] = row.get("text") or ""
        if metrics and not isinstance(row.get("expected"), str):
            hint = "give every row `expected` or `output`, or leave the metrics out"
            raise Refused(f"question {number} says nothing of what is expected\n    hint: {hint}")
    for number, row in enumerate(rows, 1):
        if "regex" in metrics:
            check_pattern(row["expected"], number)
    return rows


def check_pattern(pattern: str, number: int) -> None:
    """Raises Refused on what is no regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise Refused(f"question {number} expects no regular expression\n    reason  {error}") from error


def evaluate(args: argparse.Namespace) -> None:
    """Writes both files and the lines that a person reads."""
    metrics = [name for name in args.metrics.split(",") if name]
    rows = read(args.answers, metrics)
    print(f"  scoring {len(rows)} answers", flush=True)
    each, total = score(rows, metrics)
    if args.reference:
        more, against = compare(rows, read(args.reference, metrics), metrics, total["scores"])
        each = [{**one, **other} for one, other in zip(each, more, strict=True)]
        total |= against
    else:
        total["fidelity"] = likelihood(rows)
    failed = sum(bool(row.get("error")) for row in rows)
    versions = {name: importlib.metadata.version(name) for name in ("sacrebleu", "torchmetrics")}
    figures = {**total["scores"], **total.get("drops", {}), **total.get("fidelity", {})}
    total = {"version": 1, "questions": len(rows), "failed": failed, "figures": figures, **total, "versions": versions}
    (args.out / "scores.json").write_text(json.dumps(total, indent=1) + "\n")
    with (args.out / "scores.jsonl").open("w", encoding="utf-8") as lines:
        for row, scores in zip(rows, each, strict=True):
            kept = {name: row.get(name) for name in ("input", "expected", "text", "error")}
            print(json.dumps({**kept, **scores}, ensure_ascii=False), file=lines)
    for name, value in figures.items():
        print(f"  {name:22} {value:.4f}")


def main() -> int:
    """Exit 1 with what is wrong with the data."""
    parser = argparse.ArgumentParser(description="Score answers.")
    parser.add_argument("--answers", type=Path, required=True)
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--metrics", default="", help=",".join(METRICS))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    try:
        evaluate(args)
    except Refused as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
