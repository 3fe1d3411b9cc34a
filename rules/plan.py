"""The whole graph: every action of every variant, each made once, and the names under which a user finds them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rules import action as actions
from rules import backend, check, cluster, source, spec, steps, taken
from rules.action import Action, Input, Local, Output
from rules.errors import Misconfigured, Problem
from rules.spec import Spec
from rules.variant import Point, Variant, expand

__all__ = ["STAGES", "Plan", "identities", "load", "make", "variant_identities"]

STAGES = ("source", "checkpoint", "engine", "build", "smoke", "k8s")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`actions` by name, in an order that can be run; `names[stage][name]` are the actions that a name stands for."""

    spec: Spec
    variants: Mapping[str, Variant]
    actions: Mapping[str, Action]
    names: Mapping[str, Mapping[str, tuple[str, ...]]]


def load(text: str, root: Path, lock: str = "") -> Plan:
    """`text` of a models.toml whose relative paths start at `root`, and of the models.lock beside it -> its plan.

    Raises Misconfigured with every problem at once.
    """
    parsed, problems = spec.read(text, lock)
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
        named = {key: _identity(source, found) for key, source in action.inputs if isinstance(source, Local | Output)}
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
        dims = source.dims(where, root, parsed.locked)
        self._dims = None if isinstance(dims, Problem) else dims
        self._root = root
        self._source = (steps.source(model, where, root, taken.choice(self._entry), parsed.locked),)
        self._families = {name: self._family(name) for name in self._entry.toolchains()}
        self._checkpoints: dict[str, tuple[Point, tuple[Action, ...]]] = {}

    def stages(self, variant: Variant) -> Iterator[tuple[str, tuple[Action, ...]]]:
        """(stage, the actions that make it, the last of them being the stage's own) in build order."""
        family, options = self._families[variant.toolchain]
        point, checkpoint = self._made_from(variant, family, options)
        engine = family.engine(variant, point, checkpoint[-1].name, options)
        rendering = family.serving(variant, point, options)
        smoke = steps.smoke(variant.name, variant.model)
        if rendering.server:
            smoke = steps.launched(smoke, rendering.server, self._parsed.serve.load_timeout_s)
        yield "source", self._source
        yield "checkpoint", checkpoint
        yield "engine", (engine,)
        yield "build", (steps.repository(variant.name, variant.model, engine.name, rendering),)
        yield "smoke", (smoke if family.device == "cpu" else _where_its_engine_runs(smoke, engine, variant),)
        asked = cluster.merged(self._parsed.k8s, self._entry.k8s)
        if manifests := family.manifests(variant, point, asked):
            yield "k8s", manifests

    def _made_from(self, variant: Variant, family: backend.Backend, options: Any) -> tuple[Point, tuple[Action, ...]]:
        found = self._checkpoints.get(variant.point)
        if found is None:
            point = self._point(variant)
            found = self._checkpoints[variant.point] = point, family.checkpoint(point, options.build)
        return found

    def _point(self, variant: Variant) -> Point:
        return Point(
            model=variant.model,
            name=variant.point,
            precision=variant.precision,
            parallelism=variant.parallelism,
            toolchain=self._parsed.toolchains[variant.toolchain],
            platform=self._parsed.platforms.get(self._entry.platform or ""),
            calibration=self._entry.calibration,
            dims=self._dims,
            root=self._root,
            choice=taken.choice(self._entry),
        )

    def _family(self, toolchain: str) -> tuple[backend.Backend, Any]:
        family = backend.find(self._parsed.toolchains[toolchain].backend)
        return family, family.Options.model_validate({"build": self._entry.build, "serving": self._entry.serving})


def _where_its_engine_runs(smoke: Action, engine: Action, variant: Variant) -> Action:
    """A smoke test on GPUs says something about this machine: it is not shared with others."""
    return replace(
        smoke,
        toolchain=engine.toolchain,
        platform=engine.platform,
        runner=engine.runner,
        passes=engine.passes,
        gpus=variant.parallelism.world_size,
        sharing="local",
    )


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
