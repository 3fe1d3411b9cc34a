"""The whole graph: every action of every variant, each made once, and the names under which a user finds them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rules import backend, check, source, spec, steps
from rules.action import Action
from rules.errors import Misconfigured, Problem
from rules.spec import Spec
from rules.variant import Variant, expand

__all__ = ["STAGES", "Plan", "load", "make"]

STAGES = ("source", "checkpoint", "engine", "build", "smoke")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`actions` by name, in an order that can be run; `names[stage][name]` are the actions that a name stands for."""

    spec: Spec
    variants: Mapping[str, Variant]
    actions: Mapping[str, Action]
    names: Mapping[str, Mapping[str, tuple[str, ...]]]

    def chosen(self, names: Iterable[str]) -> list[Variant]:
        """The variants that variant and group names stand for, each once. Raises KeyError with an unknown name."""
        found = {action: None for name in names for action in self.names["build"][name]}
        return [self.variants[action.partition(":")[2]] for action in found]


def load(text: str, root: Path) -> Plan:
    """`text` of a models.toml whose relative paths start at `root` -> its plan.

    Raises Misconfigured with every problem at once.
    """
    parsed, problems = spec.read(text)
    problems += check.problems(parsed, root)
    if problems:
        raise Misconfigured(_once(problems))
    return make(parsed, root)


def make(parsed: Spec, root: Path) -> Plan:
    """The plan of a spec without problems."""
    actions: dict[str, Action] = {}
    names: dict[str, dict[str, list[str]]] = {stage: {} for stage in STAGES}
    variants = expand(parsed)
    for variant in variants:
        for stage, made in _of_variant(parsed, variant, root).items():
            actions.update((action.name, action) for action in made)
            for name in _names(stage, variant):
                names[stage].setdefault(name, []).append(made[-1].name)
    return Plan(
        spec=parsed,
        variants={variant.name: variant for variant in variants},
        actions=actions,
        names={stage: {name: tuple(dict.fromkeys(of)) for name, of in by.items()} for stage, by in names.items()},
    )


def _of_variant(parsed: Spec, variant: Variant, root: Path) -> dict[str, tuple[Action, ...]]:
    family = backend.find(parsed.toolchains[variant.toolchain].backend)
    options = family.Options.model_validate({"build": variant.entry.build, "serving": variant.entry.serving})
    build, serving = options.build, options.serving  # type: ignore[attr-defined]
    where = source.parse(variant.entry.source)
    assert not isinstance(where, Problem), "BUG: the check let a bad source pass"
    checkpoint = family.checkpoint(variant.model, variant.point, variant.precision, build)
    engine = family.engine(variant, checkpoint[-1].name, build)
    overlays, values = family.serving(variant, serving)
    return {
        "source": (steps.source(variant.model, where, root),),
        "checkpoint": checkpoint,
        "engine": (engine,),
        "build": (steps.repository(variant.name, variant.model, engine.name, overlays, values),),
        "smoke": (steps.smoke(variant.name, variant.model),),
    }


def _names(stage: str, variant: Variant) -> tuple[str, ...]:
    return (variant.model,) if stage == "source" else (*variant.prefixes(), variant.name)


def _once(problems: Iterable[Problem]) -> list[Problem]:
    return list({str(problem): problem for problem in problems}.values())
