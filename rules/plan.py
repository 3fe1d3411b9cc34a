"""The whole graph: every action of every variant, each made once, and the names under which a user finds them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rules import action as actions
from rules import backend, check, source, spec, steps
from rules.action import Action, Files, Input, Output
from rules.errors import Misconfigured, Problem
from rules.spec import Spec
from rules.variant import Variant, expand

__all__ = ["STAGES", "Plan", "identities", "load", "make", "variant_identities"]

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
    plan = make(parsed, root)
    clashes = _clashes(plan)
    if clashes:
        raise Misconfigured(clashes)
    return plan


def make(parsed: Spec, root: Path) -> Plan:
    """The plan of a spec without problems."""
    actions: dict[str, Action] = {}
    names: dict[str, dict[str, dict[str, None]]] = {stage: {} for stage in STAGES}
    variants = expand(parsed)
    entries = {name: _Entry(parsed, name, root) for name in parsed.models}
    for variant in variants:
        for stage, made in entries[variant.model].stages(variant):
            actions.update((action.name, action) for action in made)
            for name in (variant.model,) if stage == "source" else (*variant.prefixes(), variant.name):
                names[stage].setdefault(name, {})[made[-1].name] = None
    return Plan(
        spec=parsed,
        variants={variant.name: variant for variant in variants},
        actions=actions,
        names={stage: {name: tuple(members) for name, members in by.items()} for stage, by in names.items()},
    )


def identities(plan: Plan) -> dict[str, str]:
    """Action name -> digest of all that git decides about it: its manifest, with the identities of what it needs in
    the place of their outputs' digests. Two revisions with equal identities have equal keys.
    """
    found: dict[str, str] = {}
    for name, action in plan.actions.items():
        named = {key: _identity(source, found) for key, source in action.inputs if not isinstance(source, Files)}
        found[name] = actions.key(actions.manifest(action, named))
    return found


def variant_identities(plan: Plan) -> dict[str, str]:
    """Variant name -> the identity of its smoke test, which needs all the rest."""
    found = identities(plan)
    return {name: found[f"smoke:{name}"] for name in plan.variants}


def _identity(source: Input, found: Mapping[str, str]) -> str:
    return found[source.action] if isinstance(source, Output) else str(source)


class _Entry:
    """The actions of one model's variants; what variants share is made once."""

    def __init__(self, parsed: Spec, model: str, root: Path) -> None:
        self._parsed = parsed
        self._entry = parsed.models[model]
        where = source.parse(self._entry.source)
        assert not isinstance(where, Problem), "BUG: the check let a bad source pass"
        self._source = (steps.source(model, where, root),)
        self._families = {name: self._family(name) for name in self._entry.toolchains()}
        self._checkpoints: dict[str, tuple[Action, ...]] = {}

    def stages(self, variant: Variant) -> Iterator[tuple[str, tuple[Action, ...]]]:
        """(stage, the actions that make it, the last of them being the stage's own) in build order."""
        family, build, serving = self._families[variant.toolchain]
        checkpoint = self._checkpoints.get(variant.point)
        if checkpoint is None:
            checkpoint = family.checkpoint(variant.model, variant.point, variant.precision, build)
            self._checkpoints[variant.point] = checkpoint
        engine = family.engine(variant, checkpoint[-1].name, build)
        overlays, values = family.serving(variant, serving)
        yield "source", self._source
        yield "checkpoint", checkpoint
        yield "engine", (engine,)
        yield "build", (steps.repository(variant.name, variant.model, engine.name, overlays, values),)
        yield "smoke", (steps.smoke(variant.name, variant.model),)

    def _family(self, toolchain: str) -> tuple[backend.Backend, Any, Any]:
        family = backend.find(self._parsed.toolchains[toolchain].backend)
        tables = {"build": self._entry.build, "serving": self._entry.serving}
        options: Any = family.Options.model_validate(tables)
        return family, options.build, options.serving


def _clashes(plan: Plan) -> list[Problem]:
    """Groups with the name of an action that is not all of them, as of a model `m_fp32` beside a model `m`."""
    hint = "rename a model"
    return [
        Problem(what=f"{stage}:{name} would be two things", facts=(("group of", ", ".join(members)),), hint=hint)
        for stage, by_name in plan.names.items()
        for name, members in by_name.items()
        if f"{stage}:{name}" in plan.actions and members != (f"{stage}:{name}",)
    ]


def _once(problems: Iterable[Problem]) -> list[Problem]:
    return list({str(problem): problem for problem in problems}.values())
