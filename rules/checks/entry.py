"""An entry of models.toml says what there is: its source, toolchain, platform, precisions and options exist."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rules import backend, source, taken
from rules.errors import Problem, nearest
from rules.rule import Rule, error
from rules.source import Dims
from rules.spec import Model, Parallelism, Spec, strict_problems
from rules.variant import Setting

__all__ = ["RULES", "Subject"]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One entry under examination; `path` is where it stands in models.toml, `root` the folder that file is in.

    `fetched` is where the files of a source elsewhere were put, where somebody knows that they are here.
    """

    spec: Spec
    path: str
    entry: Model
    root: Path
    fetched: Path | None = None

    @property
    def whole(self) -> Model:
        """The entry as it is written, where `entry` is narrowed to some of its variants."""
        return self.spec.models.get(self.path.removeprefix("models."), self.entry)

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
                    dims=self.dims,
                    root=self.root,
                ),
            )

    @cached_property
    def dims(self) -> Dims | None:
        """The model's dimensions, where its config.json can be read."""
        found = source.dims_of(self.entry.source, self.root, self.spec.locked)
        return None if isinstance(found, Problem) else found


@error("write a source that there is; a file: source is a folder with a config.json", "backend#109", "TRT-LLM#2357")
def source_exists(subject: Subject) -> Iterator[Problem]:
    """The source is one, and a `file:` source has a config.json."""
    found = source.dims_of(subject.entry.source, subject.root, subject.spec.locked)
    if isinstance(found, Problem):
        yield Problem(what=f"{subject.path}.source: {found.what}", facts=found.facts, hint=found.hint)


@error("take what makes a checkpoint, and say so where it can run code", "TRT-LLM#2052", "transformers#27923")
def source_is_whole(subject: Subject) -> Iterator[Problem]:
    """What the entry takes of a locked source has settings and weights, and nothing that runs code unasked."""
    where = source.parse(subject.entry.source)
    held = None if isinstance(where, Problem) else subject.spec.locked.get(where.name)
    yield from taken.problems(subject.path, subject.entry, held.files if held else ())


@error("write its table, or name another")
def toolchain_exists(subject: Subject) -> Iterator[Problem]:
    """Every toolchain that is named has a table."""
    known = tuple(subject.spec.toolchains)
    for name in subject.entry.toolchains():
        if name not in known and f"toolchains.{name}" not in subject.spec.torn:
            hint = nearest(name, known) or "write [toolchains.NAME]"
            yield Problem(what=f"{subject.path}.toolchain: there is no toolchain {name!r}", hint=hint)


@error("write its table, or name another", "TRT-LLM#222", "TRT-LLM#3031")
def platform_exists(subject: Subject) -> Iterator[Problem]:
    """The platform has a table, and an engine for GPUs names one: it runs on the architecture it was built for."""
    name, known = subject.entry.platform, tuple(subject.spec.platforms)
    if name is not None and name not in known and f"platforms.{name}" not in subject.spec.torn:
        hint = nearest(name, known) or "write [platforms.NAME]"
        yield Problem(what=f"{subject.path}.platform: there is no platform {name!r}", hint=hint)
    if name is None and any(family.device == "gpu" for _, family in subject.families()):
        yield Problem(what=f"{subject.path}.platform: is missing", hint=nearest("", known) or "write [platforms.NAME]")


@error("write a precision that the engine family builds")
def precision_offered(subject: Subject) -> Iterator[Problem]:
    """Every engine family of the entry can build each of its precisions."""
    for toolchain, family in subject.families():
        for precision in subject.entry.precisions:
            if precision not in family.precisions:
                what = f"{subject.path}.precisions: toolchain {toolchain!r} has no {precision!r}"
                yield Problem(what=what, hint=nearest(precision, family.precisions))


@error("write it as it is spelt, or leave it out", "backend#210", "backend#500", "server#8592")
def options_known(subject: Subject) -> Iterator[Problem]:
    """The tables `build` and `serving` hold only what every engine family of the entry understands."""
    for _, family in subject.families():
        for table in ("build", "serving"):
            options: Any = family.Options.model_fields[table].annotation
            try:
                options.model_validate(getattr(subject.entry, table))
            except ValidationError as wrong:
                yield from strict_problems(f"{subject.path}.{table}", wrong, tuple(options.model_fields))


@error("write tp4, pp2 or tp4pp2", "TRT-LLM#2021")
def parallelism_written(subject: Subject) -> Iterator[Problem]:
    """Each parallelism is of the form tp4, pp2 or tp4pp2."""
    for text in subject.entry.parallelism:
        try:
            Parallelism.parse(text)
        except ValueError as wrong:
            yield Problem(what=f"{subject.path}.parallelism: {wrong}", hint="tp and pp are counts from 1 up")


RULES: tuple[Rule[Subject], ...] = (
    source_exists,
    source_is_whole,
    toolchain_exists,
    platform_exists,
    precision_offered,
    options_known,
    parallelism_written,
)
