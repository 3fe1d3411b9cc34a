"""The rules that need no bytes: what can be known to fail from models.toml and a config.json, before anything runs.

Each rule is one small function from the spec to its problems; `RULES` is the table of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rules import backend, source
from rules.errors import Problem, nearest
from rules.gates import LIMITS
from rules.source import Dims
from rules.spec import Model, Parallelism, Spec, strict_problems
from rules.variant import Setting, Variant, expand, groups, name_problems

__all__ = ["RULES", "advice", "problems"]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One entry under examination; `path` is where it stands in models.toml, `root` the folder that file is in."""

    spec: Spec
    path: str
    entry: Model
    root: Path

    def families(self) -> Iterator[tuple[str, backend.Backend]]:
        """(toolchain, engine family) of each toolchain that exists."""
        for name in self.entry.toolchains():
            toolchain = self.spec.toolchains.get(name)
            if toolchain and toolchain.backend in backend.names():
                yield name, backend.find(toolchain.backend)

    def settings(self) -> Iterator[tuple[backend.Backend, Setting]]:
        """(engine family, what its rules look at) of each toolchain that exists."""
        for name, family in self.families():
            yield (
                family,
                Setting(
                    path=self.path,
                    entry=self.entry,
                    name=name,
                    toolchain=self.spec.toolchains[name],
                    platform=self.spec.platforms.get(self.entry.platform or ""),
                    dims=self.dims(),
                    root=self.root,
                ),
            )

    def parallelisms(self) -> Iterator[Parallelism]:
        """The parallelisms that parse."""
        for text in self.entry.parallelism:
            try:
                yield Parallelism.parse(text)
            except ValueError:
                continue

    def dims(self) -> Dims | None:
        """The model's dimensions, where its config.json can be read."""
        where = source.parse(self.entry.source)
        found = where if isinstance(where, Problem) else source.dims(where, self.root)
        return None if isinstance(found, Problem) else found


Rule = Callable[[Subject], Iterator[Problem]]


def problems(spec: Spec, root: Path) -> list[Problem]:
    """Everything that is wrong with the well-formed entries of `spec`; `file:` paths are relative to `root`."""
    found = [
        problem
        for name, entry in spec.models.items()
        for rule in RULES
        for problem in rule(Subject(spec=spec, path=f"models.{name}", entry=entry, root=root))
    ]
    found += _backends_exist(spec)
    variants = expand(spec)
    return found + name_problems(variants) + _default_exists(spec, variants)


def advice(spec: Spec, root: Path) -> list[Problem]:
    """What is unwise in a spec without problems, such as a KV cache for fewer requests than a batch has."""
    subjects = (Subject(spec=spec, path=f"models.{name}", entry=it, root=root) for name, it in spec.models.items())
    return [
        problem
        for subject in subjects
        for family, setting in subject.settings()
        for rule in family.advice
        for problem in rule(setting)
    ]


def source_exists(subject: Subject) -> Iterator[Problem]:
    """The source is one, and a `file:` source has a config.json."""
    where = source.parse(subject.entry.source)
    found = where if isinstance(where, Problem) else source.dims(where, subject.root)
    if isinstance(found, Problem):
        yield Problem(what=f"{subject.path}.source: {found.what}", facts=found.facts, hint=found.hint)


def toolchain_exists(subject: Subject) -> Iterator[Problem]:
    """Every toolchain that is named has a table."""
    known = tuple(subject.spec.toolchains)
    for name in subject.entry.toolchains():
        if name not in known:
            hint = nearest(name, known) or "write [toolchains.NAME]"
            yield Problem(what=f"{subject.path}.toolchain: there is no toolchain {name!r}", hint=hint)


def platform_exists(subject: Subject) -> Iterator[Problem]:
    """The platform has a table, and an engine for GPUs names one."""
    name, known = subject.entry.platform, tuple(subject.spec.platforms)
    if name is not None and name not in known:
        hint = nearest(name, known) or "write [platforms.NAME]"
        yield Problem(what=f"{subject.path}.platform: there is no platform {name!r}", hint=hint)
    if name is None and any(family.device == "gpu" for _, family in subject.families()):
        yield Problem(what=f"{subject.path}.platform: is missing", hint=nearest("", known) or "write [platforms.NAME]")


def precision_offered(subject: Subject) -> Iterator[Problem]:
    """Every engine family of the entry can build each of its precisions."""
    for toolchain, family in subject.families():
        for precision in subject.entry.precisions:
            if precision not in family.precisions:
                what = f"{subject.path}.precisions: toolchain {toolchain!r} has no {precision!r}"
                yield Problem(what=what, hint=nearest(precision, family.precisions))


def options_known(subject: Subject) -> Iterator[Problem]:
    """The tables `build` and `serving` hold only what every engine family of the entry understands."""
    for _, family in subject.families():
        for table in ("build", "serving"):
            options: Any = family.Options.model_fields[table].annotation
            try:
                options.model_validate(getattr(subject.entry, table))
            except ValidationError as error:
                yield from strict_problems(f"{subject.path}.{table}", error, tuple(options.model_fields))


def parallelism_written(subject: Subject) -> Iterator[Problem]:
    """Each parallelism is of the form tp4, pp2 or tp4pp2."""
    for text in subject.entry.parallelism:
        try:
            Parallelism.parse(text)
        except ValueError as error:
            yield Problem(what=f"{subject.path}.parallelism: {error}", hint="tp and pp are counts from 1 up")


def one_rank_on_a_cpu(subject: Subject) -> Iterator[Problem]:
    """An engine family that runs on the CPU has one rank."""
    for toolchain, family in subject.families():
        for parallelism in subject.parallelisms():
            if family.device == "cpu" and parallelism.world_size > 1:
                what = (
                    f"{subject.path}.parallelism: toolchain {toolchain!r} runs on the CPU and cannot do {parallelism}"
                )
                yield Problem(what=what, hint="leave `parallelism` out")


def ranks_divide_heads(subject: Subject) -> Iterator[Problem]:
    """Tp divides the attention heads, and the KV heads or is a multiple of them (then they are replicated)."""
    dims = subject.dims()
    if dims is None or not dims.heads:
        return
    legal = [tp for tp in range(1, dims.heads + 1) if _divides(tp, dims)]
    for parallelism in subject.parallelisms():
        if not _divides(parallelism.tp, dims):
            facts = (("attention heads", str(dims.heads)), ("KV heads", str(dims.kv_heads)))
            what = f"{subject.path}.parallelism: tp {parallelism.tp} does not divide the heads"
            yield Problem(what=what, facts=facts, hint=f"tp may be {', '.join(map(str, legal))}")


def stages_within_layers(subject: Subject) -> Iterator[Problem]:
    """There are at least as many layers as pipeline stages."""
    dims = subject.dims()
    for parallelism in subject.parallelisms():
        if dims and dims.layers and parallelism.pp > dims.layers:
            what = f"{subject.path}.parallelism: {parallelism.pp} pipeline stages for {dims.layers} layers"
            yield Problem(what=what, hint=f"pp may be up to {dims.layers}")


def ranks_within_platform(subject: Subject) -> Iterator[Problem]:
    """The platform has a GPU for each rank."""
    platform = subject.spec.platforms.get(subject.entry.platform or "")
    for parallelism in subject.parallelisms():
        if platform and parallelism.world_size > platform.gpus:
            what = f"{subject.path}.parallelism: {parallelism} needs {parallelism.world_size} GPUs"
            facts = (("platform", f"{subject.entry.platform}: {platform.gpus} GPUs"),)
            yield Problem(what=what, facts=facts, hint=f"tp x pp may be up to {platform.gpus}")


def lengths_within_positions(subject: Subject) -> Iterator[Problem]:
    """Isl + osl fits the positions the model was made for."""
    dims = subject.dims()
    for index, shape in enumerate(subject.entry.shapes):
        if dims and dims.max_positions and shape.isl + shape.osl > dims.max_positions:
            facts = (("isl + osl", str(shape.isl + shape.osl)), ("max_position_embeddings", str(dims.max_positions)))
            what = f"{subject.path}.shapes[{index}]: is longer than the model's positions"
            yield Problem(what=what, facts=facts, hint="lower isl or osl")


def gates_known(subject: Subject) -> Iterator[Problem]:
    """Each gate is a figure that can be measured; one on a loss of quality needs what it is lost against."""
    for name in subject.entry.gates:
        path = f"{subject.path}.gates.{name}"
        if name not in LIMITS:
            yield Problem(what=f"{path}: unknown gate", hint=nearest(name, tuple(LIMITS)))
        elif _against_reference(name) and not (subject.entry.eval and subject.entry.eval.reference):
            yield Problem(what=f"{path}: needs a reference precision", hint='write eval = { reference = "fp16", ... }')


def evaluation_possible(subject: Subject) -> Iterator[Problem]:
    """The questions are there, something is measured on them, and the reference is a precision of the entry."""
    asked, path = subject.entry.eval, f"{subject.path}.eval"
    if asked is None:
        return
    file = subject.root / asked.data.removeprefix("file:")
    if not file.is_file():
        yield Problem(what=f"{path}.data: {file} does not exist", hint="a .jsonl, relative to models.toml")
    if not asked.metrics and asked.reference is None:
        yield Problem(what=f"{path}: measures nothing", hint="name metrics, or a reference precision")
    if asked.reference is not None and asked.reference not in subject.entry.precisions:
        what = f"{path}.reference: {asked.reference!r} is not a precision of this entry"
        yield Problem(what=what, hint=nearest(asked.reference, subject.entry.precisions))


def family_rules(subject: Subject) -> Iterator[Problem]:
    """What each engine family knows to be wrong beside."""
    for family, setting in subject.settings():
        for rule in family.rules:
            yield from rule(setting)


RULES: tuple[Rule, ...] = (
    source_exists,
    toolchain_exists,
    platform_exists,
    precision_offered,
    options_known,
    parallelism_written,
    one_rank_on_a_cpu,
    ranks_divide_heads,
    stages_within_layers,
    ranks_within_platform,
    lengths_within_positions,
    gates_known,
    evaluation_possible,
    family_rules,
)


def _against_reference(gate: str) -> bool:
    return gate.endswith("_drop") or gate.startswith("agreement")


def _divides(tp: int, dims: Dims) -> bool:
    kv_heads = dims.kv_heads or dims.heads
    return dims.heads % tp == 0 and (kv_heads % tp == 0 or tp % kv_heads == 0)


def _backends_exist(spec: Spec) -> list[Problem]:
    return [
        Problem(
            what=f"toolchains.{name}.backend: there is no {toolchain.backend!r}",
            hint=nearest(toolchain.backend, backend.names()),
        )
        for name, toolchain in spec.toolchains.items()
        if toolchain.backend not in backend.names()
    ]


def _default_exists(spec: Spec, variants: tuple[Variant, ...]) -> list[Problem]:
    known = (*groups(variants), *(variant.name for variant in variants))
    return [
        Problem(what=f"{key}: there is no {name!r}", hint=nearest(name, known))
        for key, names in (("default", spec.default), ("serve.default", spec.serve.default))
        for name in names
        if name not in known
    ]
