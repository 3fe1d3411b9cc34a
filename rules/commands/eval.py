"""`doit eval [NAME...]`: the questions of models.toml, asked of served variants and scored.

`eval:NAME` as a task serves the variant by itself. The command does the same, or asks a server that runs (--url).
"""

from __future__ import annotations

import sys
from typing import Any

from rules import evaluation
from rules.commands import EngineCommand
from rules.commands.serve import build
from rules.errors import Misconfigured, Problem, StepFailed
from rules.report import progress
from rules.runners import local
from rules.tasks import here
from rules.variant import Variant
from rules.workspace import Workspace

__all__ = ["EvalCommand"]


class EvalCommand(EngineCommand):
    """The command."""

    name = "eval"
    doc_purpose = "score the answers of served variants, or of a server at a URL"
    doc_usage = "[NAME...] [--url HOST:PORT]"
    doc_description = "NAME is a variant or a group of variants; without one, the default set of [serve]."
    cmd_options = (
        {"name": "url", "long": "url", "type": str, "default": "", "help": "HTTP of a server that has NAME's engine"},
    )

    def execute(self, opt_values: dict[str, Any], pos_args: list[str]) -> int:
        """Evaluates. Returns 1 when a gate is broken or a step fails; the others are evaluated all the same."""
        url = str(opt_values["url"]).removeprefix("http://").rstrip("/")
        variants = _asked(here(), pos_args, url)
        others = (evaluation.reference_of(here(), variant) for variant in variants)
        wanted = dict.fromkeys(one.name for one in (*variants, *filter(None, others)))
        failed = 0 if url else build(list(wanted))
        local.end_on_signals()
        return failed or max(_told(here(), variant, url) for variant in variants)


def _asked(space: Workspace, names: list[str], url: str) -> list[Variant]:
    """The variants, which all have questions; at a URL there is one. Raises Misconfigured."""
    variants = space.chosen(names)
    silent = dict.fromkeys(variant.model for variant in variants if variant.entry.eval is None)
    hint = 'write eval = { data = "file:questions.jsonl", metrics = ["exact_match"] }'
    problems = [Problem(what=f"models.{model} has no questions", hint=hint) for model in silent]
    if url and len(variants) > 1:
        problems.append(Problem(what="at a URL there is one variant", facts=(("asked for", str(len(variants))),)))
    if problems:
        raise Misconfigured(problems)
    return variants


def _told(space: Workspace, variant: Variant, url: str) -> int:
    name = f"eval:{variant.name}"
    try:
        with progress.action(name):
            summary = evaluation.evaluate(space, variant, lambda line: progress.line(name, line), url)
        print("\n".join([variant.name, *(f"    {line}" for line in evaluation.lines(summary))]))
        print(f"    {summary['folder'].relative_to(space.root)}", flush=True)
        evaluation.require(summary)
    except StepFailed as error:
        print(f"\nERROR: {error}\n", file=sys.stderr, flush=True)
        return 1
    return 0
