"""`doit recommend MODEL --ttft-p99 MS --itl-p50 MS`: the best measured variant within limits, and why not the others.

The limits are those given and the accuracy gates of the model's entry. Measured is what the latest `doit bench` of each
variant saw with the engine that is built now; an older engine's figures are told as such, and not used.
"""

from __future__ import annotations

import json
from typing import Any

from doit.exceptions import InvalidCommand

from rules import backend, findings
from rules.choosing import Candidate, Verdict, choose
from rules.commands import EngineCommand
from rules.findings import Findings
from rules.gates import LIMITS, SCORES
from rules.tasks import here
from rules.variant import Variant
from rules.workspace import Workspace

__all__ = ["Recommend", "as_json", "as_text", "candidates"]

_TIMES = ("ttft", "itl", "latency")
_STATISTICS = ("p50", "p90", "p99")
_GIVEN = {f"{time}_{of}": f"{time}_{of}_ms" for time in _TIMES for of in _STATISTICS}
_ACCURACY = (*SCORES, *(name for name in LIMITS if name.endswith("_drop")), "kl_bound")
_SHOWN = ("output_tokens_per_s", "ttft_p50_ms", "ttft_p99_ms", "itl_p50_ms", "itl_p99_ms")


def _limit(name: str) -> dict[str, Any]:
    option = {"name": name, "long": name.replace("_", "-"), "type": str, "default": ""}
    return {**option, "help": f"at most so many ms of {name.replace('_', ' ')}"}


class Recommend(EngineCommand):
    """The command."""

    name = "recommend"
    doc_purpose = "the best measured variant within your limits, and why not the others"
    doc_usage = "NAME... [--ttft-p99 MS] [--itl-p50 MS]"
    doc_description = "NAME is a model or any other group of variants."
    cmd_options = (
        *map(_limit, _GIVEN),
        {"name": "json", "long": "json", "type": bool, "default": False, "help": "one object, for programs"},
    )

    def execute(self, opt_values: dict[str, Any], pos_args: list[str]) -> int:
        """Prints it; exit 1 when no variant is within the limits."""
        if not pos_args:
            raise InvalidCommand("recommend needs a model: doit recommend NAME --ttft-p99 MS --itl-p50 MS")
        limits = _limits(opt_values)
        space = here()
        found = findings.load(space.executor.artifacts.root)
        verdicts = choose(candidates(space, found, space.chosen(pos_args), limits))
        print(json.dumps(as_json(verdicts, limits), indent=1) if opt_values["json"] else as_text(verdicts))
        return 0 if verdicts[0].point else 1


def candidates(space: Workspace, found: Findings, variants: list[Variant], limits: dict[str, float]) -> list[Candidate]:
    """The variants with what was measured of them, under `limits` and the accuracy gates of their entries."""
    return [_candidate(space, found, variant, limits) for variant in variants]


def as_text(verdicts: list[Verdict]) -> str:
    """The first with its figures and key, then a line or two for each other."""
    best, *others = verdicts
    lines = _described(best) if best.point else ["no variant is within the limits"]
    for one in others if best.point else verdicts:
        lines += ["", one.candidate.variant, f"    {one.reason}"]
        if one.point:
            lines.append(f"    {_figures(one)}")
    return "\n".join(lines)


def as_json(verdicts: list[Verdict], limits: dict[str, float]) -> dict[str, Any]:
    """`{"version": 1, "limits", "recommended", "variants": [...]}`, the best first."""
    first = verdicts[0].candidate.variant if verdicts[0].point else None
    return {"version": 1, "limits": limits, "recommended": first, "variants": [_row(one) for one in verdicts]}


def _limits(opt_values: dict[str, Any]) -> dict[str, float]:
    try:
        return {gate: float(opt_values[name]) for name, gate in _GIVEN.items() if opt_values[name]}
    except ValueError as error:
        raise InvalidCommand(f"a limit is a number of milliseconds: {error}") from error


def _candidate(space: Workspace, found: Findings, variant: Variant, limits: dict[str, float]) -> Candidate:
    gates = {name: limit for name, limit in variant.entry.gates.items() if name in _ACCURACY}
    if variant.entry.eval and variant.precision == variant.entry.eval.reference:
        gates = {name: limit for name, limit in gates.items() if name in SCORES and "agreement" not in name}
    run = found.latest(variant.name)
    return Candidate(
        variant=variant.name,
        points=found.points(run) if run else (),
        limits={**limits, **gates},
        price=_price(space, variant),
        missing=_missing(space, found, variant, gates),
    )


def _missing(space: Workspace, found: Findings, variant: Variant, gates: dict[str, float]) -> str:
    run = found.latest(variant.name)
    if run is None:
        return f"was never measured: doit bench:{variant.name}"
    record = space.executor.artifacts.record(f"engine:{variant.name}")
    if record and record.key != run.engine:
        return f"was measured with another engine ({run.engine[:12]}, now {record.key[:12]}): doit bench:{variant.name}"
    if gates and not found.scores(run):
        return f"has accuracy gates, and this engine was not evaluated: doit eval:{variant.name}"
    return ""


def _price(space: Workspace, variant: Variant) -> float | None:
    """An hour of the GPUs that it takes; on a CPU, of the machine."""
    platform = space.plan.spec.platforms.get(variant.entry.platform or "")
    if platform is None or platform.price_per_hour is None:
        return None
    family = backend.find(space.plan.spec.toolchains[variant.toolchain].backend)
    share = variant.parallelism.world_size / platform.gpus if family.device == "gpu" else 1.0
    return platform.price_per_hour * share


def _described(one: Verdict) -> list[str]:
    assert one.point
    cost = [f"    {one.cost:.4g} per million output tokens"] if one.cost is not None else []
    key = one.point.run.engine
    return [one.candidate.variant, f"    {_figures(one)}", *cost, f"    engine {key}", f"    run {one.point.run.name}"]


def _figures(one: Verdict) -> str:
    assert one.point
    figures = one.point.figures
    shown = [name for name in (*_SHOWN, *one.candidate.limits) if name in figures]
    return f"at {one.point.name}: " + ", ".join(f"{name} {figures[name]:.4g}" for name in dict.fromkeys(shown))


def _row(one: Verdict) -> dict[str, Any]:
    point = one.point
    return {
        "variant": one.candidate.variant,
        "within": point is not None,
        "reason": one.reason,
        "limits": dict(one.candidate.limits),
        "load": {"mode": point.mode, "value": point.value} if point else None,
        "figures": dict(point.figures) if point else None,
        "cost_per_million_output_tokens": one.cost,
        "engine": point.run.engine if point else None,
        "run": point.run.name if point else None,
    }
