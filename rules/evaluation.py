"""`eval:X`: the variant answers the user's own questions, and the answers are scored. docs/evaluation.md.

An observation: made anew each time, kept in a folder of its own, never overwritten and never cached. Only answers of
the reference precision are taken again, from an earlier run whose manifest (engine, questions, limits, tools) is the
same text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rules import action as actions
from rules import digest, envelope, gates, serving, steps, tree
from rules.action import Action
from rules.artifacts import Unknown
from rules.errors import Problem, StepFailed
from rules.spec import Eval
from rules.variant import Variant
from rules.workspace import Workspace

__all__ = ["evaluate", "lines", "of_run", "reference_of", "require"]

Heard = Callable[[str], None]
_SHOWN = 4  # decimals


def evaluate(space: Workspace, variant: Variant, heard: Heard, url: str = "") -> dict[str, Any]:
    """Asks, scores, judges, and writes the run: its summary, with the run's own `folder`. Raises StepFailed.

    The variant's repository, and the reference precision's, are built already. `url` is HOST:PORT of a server that has
    the variant's engine, where somebody else started it.
    """
    asked = variant.entry.eval
    assert asked, "BUG: a variant without questions"
    if not url:
        serving.require_here([(variant.name, space.plan.actions[f"smoke:{variant.name}"].gpus)])
    other = reference_of(space, variant)
    reference = _reference(space, other, heard) if other else None
    summary = envelope.of(space, variant, "eval", {**asked.model_dump(), "reference_run": reference and reference.name})
    summary |= {"url": url or None, "keys": {**summary["keys"], "eval": _key(space, variant, asked)}}
    folder = envelope.begin(space.executor.artifacts.root, "eval", variant.name)
    space.executor.observe(_asking(space, variant, asked, url), heard, folder)
    return _scored(space, variant, summary, folder, reference, heard)


def of_run(space: Workspace, variant: Variant, bench: Mapping[str, Any], heard: Heard) -> dict[str, Any] | None:
    """Scores the answers that a `bench` run got, in the same pass: as `evaluate`, without token ids and so without
    fidelity. None where the run did not ask the entry's questions, or did not let answers end by themselves.

    `bench` is the run's summary with its `folder`. Of each question the answer at the first load point counts.
    """
    asked, settings = variant.entry.eval, bench["settings"]
    data = str(space.root / asked.data.removeprefix("file:")) if asked else None
    if asked is None or not asked.metrics or settings.get("prompts") != data or settings.get("fixed"):
        return None
    rows = list(_recorded(bench))
    if not rows or any(row["expected"] is None for row in rows):
        return None
    told = {"bench_run": Path(bench["folder"]).name, "questions_in_all": _in_all(Path(data or ""), asked)}
    summary = envelope.of(space, variant, "eval", {**asked.model_dump(), **told})
    folder = envelope.begin(space.executor.artifacts.root, "eval", variant.name)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    tree.write(folder / "answers.jsonl", text)
    return _scored(space, variant, summary, folder, None, heard)


def reference_of(space: Workspace, variant: Variant) -> Variant | None:
    """The same point at the entry's reference precision; None when it has none, or is it."""
    asked = variant.entry.eval
    wanted = asked.reference if asked else None
    if wanted in (None, variant.precision):
        return None
    return next(one for one in space.plan.variants.values() if _is_reference(one, variant, str(wanted)))


def require(summary: dict[str, Any]) -> None:
    """Raises StepFailed with a line per gate that does not hold."""
    wrong = [gate["text"] for gate in summary["gates"] if not gate["holds"]]
    if wrong:
        what = f"eval:{summary['variant']} breaks {len(wrong)} of {len(summary['gates'])} gates"
        facts = (*(("", line) for line in wrong), ("answers", str(summary["folder"] / "scores.jsonl")))
        raise StepFailed(Problem(what=what, facts=facts))


def lines(summary: dict[str, Any]) -> list[str]:
    """The figures for a person: what was scored, what it is worth at the reference precision, where the rest lies."""
    scores = summary["scores"]
    errors, theirs = scores["standard_errors"], scores.get("reference_scores", {})
    of = summary["settings"].get("questions_in_all", scores["questions"])
    part = f"{scores['questions']} of the {of}" if of > scores["questions"] else scores["questions"]
    head = f"{part} questions" + (f", {scores['failed']} without an answer" if scores["failed"] else "")
    judged = (f"{'holds' if gate['holds'] else 'BROKEN'}: {gate['text']}" for gate in summary["gates"])
    return [head, *_lines(scores["scores"], errors, theirs), *_faithful(scores.get("fidelity", {})), *judged]


def _scored(
    space: Workspace, variant: Variant, summary: dict[str, Any], folder: Path, reference: Path | None, heard: Heard
) -> dict[str, Any]:
    """The run in `folder`, whose answers are there, with its scores and gates; `reference` is another run's folder."""
    asked = variant.entry.eval
    assert asked
    answers = reference and reference / "answers.jsonl"
    space.executor.observe(steps.score(variant.name, asked.metrics, folder / "answers.jsonl", answers), heard, folder)
    scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    against = asked.reference if reference else None
    verdicts = [_verdict(one, against) for one in gates.judge(variant.entry.gates, scores["figures"])]
    whole = {**summary, "prompts": _prompts(space.root, asked, folder), "scores": scores, "gates": verdicts}
    envelope.finish(folder, whole)
    return {**whole, "folder": folder}


def _in_all(data: Path, asked: Eval) -> int:
    """How many questions a whole evaluation asks."""
    count = sum(bool(line.strip()) for line in data.read_text(encoding="utf-8").split("\n"))
    return min(count, asked.size or count)


def _recorded(bench: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A row of answers.jsonl per question that was asked under load, in the order of the data."""
    found: dict[int, dict[str, Any]] = {}
    for point in bench["points"]:
        export = Path(bench["folder"]) / point["folder"] / "profile_export.jsonl"
        for line in filter(None, export.read_text(encoding="utf-8").split("\n")):
            record = json.loads(line)
            ours, error = record["engines"], record["error"]
            row = {"input": ours["text_input"], "expected": ours["expected"], "text": ours["text"], "ids": None}
            found.setdefault(ours["prompt"], {**row, "error": error and str(error["message"])})
    return (found[number] for number in sorted(found))


def _lines(scores: dict[str, float], errors: dict[str, float], theirs: dict[str, float]) -> Iterator[str]:
    for name, value in scores.items():
        spread = f" ± {errors[name]:.{_SHOWN}f}" if name in errors else ""
        beside = f"   reference {theirs[name]:.{_SHOWN}f}" if name in theirs else ""
        yield f"{name:20} {value:.{_SHOWN}f}{spread}{beside}"


def _faithful(fidelity: dict[str, float]) -> Iterator[str]:
    for name, value in fidelity.items():
        yield f"{name:20} {value:.{_SHOWN}f}"


def _key(space: Workspace, variant: Variant, asked: Eval) -> str:
    """Equal for runs that asked the same questions in the same way of the same repository, whoever started it."""
    try:
        return actions.key(space.executor.manifest(_asking(space, variant, asked)))
    except Unknown as error:
        what = f"{error} was never made here, so nobody can say whose answers these are"
        raise StepFailed(Problem(what=what, hint=f"doit {error}")) from error


def _asking(space: Workspace, variant: Variant, asked: Eval, url: str = "") -> Action:
    """Asked where and as its smoke test is: the same server, packages, runner and GPUs. At a URL, from here."""
    smoke = space.plan.actions[f"smoke:{variant.name}"]
    if url:
        return steps.ask(variant, asked, space.root, url)
    return replace(
        steps.served(steps.ask(variant, asked, space.root), smoke),
        toolchain=smoke.toolchain,
        platform=smoke.platform,
        runner=smoke.runner,
        passes=smoke.passes,
        gpus=smoke.gpus,
        sharing="never",
    )


def _reference(space: Workspace, variant: Variant, heard: Heard) -> Path:
    """The folder with the reference's answers: of an earlier run that asked the same of the same, or of a new one."""
    asked = variant.entry.eval
    assert asked
    key = _key(space, variant, asked)
    for summary in sorted((space.executor.artifacts.root / "eval" / variant.name).glob("*/summary.json"), reverse=True):
        try:
            if json.loads(summary.read_text(encoding="utf-8"))["keys"]["eval"] == key:
                return summary.parent
        except (ValueError, LookupError):
            continue
    heard(f"asking {variant.name}, the reference")
    return Path(evaluate(space, variant, heard)["folder"])


def _is_reference(one: Variant, variant: Variant, precision: str) -> bool:
    same = (one.model, one.toolchain, one.parallelism, one.shape) == (
        variant.model,
        variant.toolchain,
        variant.parallelism,
        variant.shape,
    )
    return same and one.precision == precision


def _prompts(root: Path, asked: Eval, folder: Path) -> dict[str, Any]:
    rows = [json.loads(line) for line in (folder / "answers.jsonl").read_text(encoding="utf-8").split("\n") if line]
    content = digest.of_file(root / asked.data.removeprefix("file:"))
    expected = all(row["expected"] is not None for row in rows)
    return {"source": asked.data, "digest": content, "count": len(rows), "expected": expected}


def _verdict(one: gates.Verdict, reference: str | None) -> dict[str, Any]:
    against = reference if one.gate not in gates.SCORES or "agreement" in one.gate else None
    said = {"gate": one.gate, "limit": one.limit, "value": one.figure, "at": "", "against": against}
    return {**said, "holds": one.holds, "skipped": "", "text": str(one)}
