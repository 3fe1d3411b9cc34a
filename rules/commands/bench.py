"""`doit bench [NAME...]`: served variants, or a server at a URL, under a load that is typed here.

`bench:NAME` as a task does what models.toml says. The command changes the load for once, measures what we did not start
(--url), and compares with an earlier revision (--baseline), or keeps a result to compare with (--accept).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rules import bench, evaluation, git, verdicts
from rules.bench import Asked, Place, Series
from rules.commands import EngineCommand
from rules.commands.serve import build
from rules.errors import BuildError, Misconfigured, Problem
from rules.runners import local
from rules.tasks import here
from rules.variant import Variant
from rules.workspace import Workspace

__all__ = ["BenchCommand", "changes"]

BASELINES = "baselines"
_LISTS: dict[str, tuple[Callable[[str], Any], str]] = {
    "concurrency": (int, "requests in flight at once, 1,8,32"),
    "request_rate": (float, "requests per second, 2,4.5: sent whatever is still in flight"),
}
_OPTIONS: dict[str, tuple[Callable[[str], Any], str]] = {
    "requests": (int, "requests of a load point"),
    "seconds": (float, "how long a load point sends"),
    "warmup": (int, "requests before each load point, not measured"),
    "repeats": (int, "how often each load point is measured"),
    "isl": (int, "tokens of a made-up prompt"),
    "osl": (int, "tokens of an answer"),
    "arrival": (str, "of a request rate: poisson or constant"),
    "model": (str, "the model that is asked, as the server calls it"),
    "processes": (int, "client processes, for a server that is faster than one core of ours"),
    "seed": (int, "of prompts and arrivals"),
    "tolerance": (float, "the part by which a figure may be worse than the baseline"),
}


def _option(name: str, text: str, default: object = "") -> dict[str, Any]:
    return {"name": name, "long": name.replace("_", "-"), "type": type(default), "default": default, "help": text}


class BenchCommand(EngineCommand):
    """The command."""

    name = "bench"
    doc_purpose = "measure served variants, or a server at a URL, under load"
    doc_usage = "[NAME...]"
    doc_description = (
        "NAME is a variant or a group of variants; without one, the default set of [serve]. What is not typed is as "
        "models.toml has it. Results are kept in artifacts/bench; docs/measuring.md has the definitions."
    )
    cmd_options = (
        *(_option(name, text) for name, (_, text) in (_LISTS | _OPTIONS).items()),
        _option("prompts", "a .jsonl with prompts"),
        _option("natural", "answers end by themselves, instead of at osl tokens", default=False),
        _option("whole", "ask for whole answers instead of streams", default=False),
        _option("endpoint", "grpc, http (Triton), chat or completions (OpenAI)"),
        _option("url", "a server that runs already: grpc://HOST:PORT or http://HOST:PORT"),
        _option("metrics_url", "where that server has its metrics"),
        _option("tokenizer", "a folder with the tokenizer.json that tokens are counted with"),
        _option("baseline", "a git revision to compare with: measured here, or committed in baselines/"),
        _option("accept", "keep the result in baselines/, to be committed", default=False),
    )

    def execute(self, opt_values: dict[str, Any], pos_args: list[str]) -> int:
        """Measures. Returns 1 when a gate is broken, a figure is worse than the baseline, or a step fails."""
        asked = _asked(opt_values)
        if asked.place and not pos_args:
            return _told([lambda: bench.elsewhere(here(), asked, _heard)], opt_values)
        variants = here().chosen(pos_args)
        failed = 0 if asked.place else build([variant.name for variant in variants])
        if failed:
            return failed
        local.end_on_signals()
        return _told(list(_measurements(here(), variants, asked)), opt_values)


def changes(options: Mapping[str, Any]) -> dict[str, Any]:
    """What was typed, as keys of the entry's `bench` table. Raises Misconfigured with every word that is no number."""
    found: dict[str, Any] = {}
    problems = []
    for name, (kind, _) in (_LISTS | _OPTIONS).items():
        typed = str(options[name])
        try:
            values = [kind(word) for word in typed.split(",")] if typed else []
        except ValueError:
            problems.append(Problem(what=f"--{name.replace('_', '-')}: {typed!r} is not what it takes"))
            continue
        if values:
            found[name] = values if name in _LISTS else values[0]
    if problems:
        raise Misconfigured(problems)
    if "request_rate" in found:
        found.setdefault("concurrency", [])
    found |= {"seconds": None} if "requests" in found else {"requests": None} if "seconds" in found else {}
    found |= {"prompts": f"file:{Path(options['prompts']).absolute()}"} if options["prompts"] else {}
    return found | ({"fixed": False} if options["natural"] else {}) | ({"stream": False} if options["whole"] else {})


def _asked(options: Mapping[str, Any]) -> Asked:
    found, url, endpoint = changes(options), str(options["url"]), str(options["endpoint"])
    if endpoint and endpoint not in ("grpc", "http", "chat", "completions"):
        raise Misconfigured(Problem(what=f"--endpoint: there is no {endpoint!r}", hint="grpc, http, chat, completions"))
    if url:
        place = Place(url=url, endpoint=endpoint, metrics=str(options["metrics_url"]))
    else:
        place = None
        found |= {"endpoint": endpoint} if endpoint else {}
    tokenizer = Path(options["tokenizer"]) if options["tokenizer"] else None
    return Asked(changes=found, place=place, tokenizer=tokenizer)


def _measurements(space: Workspace, variants: list[Variant], asked: Asked) -> Iterator[Callable[[], dict[str, Any]]]:
    series = Series(space, [f"bench:{variant.name}" for variant in variants])
    for variant in variants:
        yield lambda variant=variant: series.measure(variant, asked, _heard)  # type: ignore[misc]


def _told(measurements: list[Callable[[], dict[str, Any]]], options: Mapping[str, Any]) -> int:
    """Measures one after the other; a broken gate of the first is told, and the second is measured all the same."""
    failed = 0
    for measurement in measurements:
        try:
            summary = _compared(here(), measurement(), options)
            print("\n".join([summary["variant"], *(f"    {line}" for line in bench.lines(summary))]))
            print(f"    {Path(summary['folder']).relative_to(Path.cwd())}", flush=True)
            bench.require(summary)
            _scored(here(), summary)
        except Misconfigured:
            raise
        except BuildError as error:
            failed = 1
            print(f"\nERROR: {error}\n", file=sys.stderr, flush=True)
    return failed


def _scored(space: Workspace, summary: dict[str, Any]) -> None:
    """Tells what the answers were worth, where they are to the questions of the entry. Raises StepFailed on a gate."""
    variant = space.plan.variants.get(summary["variant"])
    scored = evaluation.of_run(space, variant, summary, _heard) if variant else None
    if scored:
        print("\n".join(f"    {line}" for line in evaluation.lines(scored)))
        print(f"    {scored['folder'].relative_to(space.root)}", flush=True)
        evaluation.require(scored)


def _compared(space: Workspace, summary: dict[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    if options["baseline"]:
        tolerance = float(options["tolerance"] or 0.05)
        summary = bench.compare(summary, _before(space, summary, str(options["baseline"])), tolerance)
    if options["accept"]:
        path = space.root / BASELINES / f"{summary['variant']}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(verdicts.baseline(summary), indent=1) + "\n", encoding="utf-8")
        print(f"kept as {path.relative_to(space.root)}, to be committed")
    return summary


def _before(space: Workspace, summary: Mapping[str, Any], rev: str) -> dict[str, Any]:
    """What was measured at a revision: the newest whole run here of that commit, else what was committed there."""
    commit = git.commit(space.root, rev)
    for run in reversed(bench.runs(space, summary["variant"])):
        whole = run.summary["finished"] and run.summary["revision"] == commit
        if whole and run.name != Path(summary["folder"]).name:
            return verdicts.baseline(run.summary)
    text = git.file(space.root, commit, f"{BASELINES}/{summary['variant']}.json")
    if text is None:
        facts = (("revision", commit[:12]), ("variant", str(summary["variant"])))
        hint = "measure it there first, or commit baselines/: doit bench NAME --accept"
        raise Misconfigured(Problem(what="nothing is known of that revision", facts=facts, hint=hint))
    loaded: dict[str, Any] = json.loads(text)
    return loaded


_spoke = [0.0]


def _heard(line: str) -> None:
    """At most a line a second of a tool's progress; what it says of a whole load point is told at the end."""
    if time.monotonic() - _spoke[0] > 1:
        _spoke[0] = time.monotonic()
        print(f"   … {line}", flush=True)
