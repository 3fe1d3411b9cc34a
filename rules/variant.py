"""A variant is one point of model x parallelism x precision x shape (x toolchain), and its one name.

    <model>[_<parallelism>]_<precision>[_<toolchain>]_isl<i>_osl<o>_bs<b>

`tp1pp1` is left out; the toolchain appears only where an entry lists several. Any prefix that ends at an axis is a
group: `qwen2_72b_tp4pp2_fp8` is every shape of that point, `qwen2_72b` all of the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from rules.errors import Problem
from rules.source import Dims
from rules.spec import Calibration, Model, Parallelism, Platform, Shape, Spec, Toolchain
from rules.taken import Choice

__all__ = ["Point", "Setting", "Variant", "expand", "groups", "name_problems"]


@dataclass(frozen=True, kw_only=True)
class Point:
    """A variant without its shape: all that a checkpoint may depend on. Relative paths start at `root`."""

    model: str
    name: str
    precision: str
    parallelism: Parallelism
    toolchain: Toolchain
    platform: Platform | None = None
    calibration: Calibration | None = None
    dims: Dims | None = None
    root: Path = Path()
    choice: Choice = field(default_factory=Choice)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One entry on one of its toolchains: what the rules of an engine family look at. `path` is models.NAME."""

    path: str
    entry: Model
    name: str
    toolchain: Toolchain
    platform: Platform | None
    dims: Dims | None
    root: Path


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One point. `words` are the name's parts at the axes: model, parallelism, precision, toolchain, shape."""

    model: str
    entry: Model
    toolchain: str
    precision: str
    parallelism: Parallelism
    shape: Shape
    words: tuple[str, ...]

    @cached_property
    def name(self) -> str:
        """The whole name."""
        return "_".join(self.words)

    @property
    def point(self) -> str:
        """The name without the shape: what a checkpoint is called."""
        return "_".join(self.words[:-1])

    def prefixes(self) -> tuple[str, ...]:
        """The groups that hold this variant, from the model down to the point."""
        return tuple("_".join(self.words[:count]) for count in range(1, len(self.words)))


def expand(spec: Spec) -> tuple[Variant, ...]:
    """Every variant of every entry, in the order of the file. Skips what does not parse (`check` reports it)."""
    return tuple(variant for name, entry in spec.models.items() for variant in _of_entry(name, entry))


def groups(variants: Iterable[Variant]) -> dict[str, list[Variant]]:
    """Group name -> its variants, in order."""
    found: dict[str, list[Variant]] = {}
    for variant in variants:
        for prefix in variant.prefixes():
            found.setdefault(prefix, []).append(variant)
    return found


def name_problems(variants: Iterable[Variant]) -> list[Problem]:
    """Two variants of one name, and models whose names make a group ambiguous."""
    variants = tuple(variants)
    seen: dict[str, Variant] = {}
    problems: dict[str, Problem] = {}
    for variant in variants:
        for name in (variant.name, *variant.prefixes()):
            other = seen.setdefault(name, variant)
            if other.model != variant.model or (name == variant.name and other is not variant):
                problems.setdefault(name, _clash(name, other, variant))
    return list(problems.values())


def _of_entry(name: str, entry: Model) -> Iterator[Variant]:
    several = len(entry.toolchains()) > 1
    for parallelism in entry.parallelisms():
        for precision in entry.precisions:
            for toolchain in entry.toolchains():
                middle = (*_written(parallelism), precision, *((toolchain,) if several else ()))
                for shape in entry.shapes:
                    yield Variant(
                        model=name,
                        entry=entry,
                        toolchain=toolchain,
                        precision=precision,
                        parallelism=parallelism,
                        shape=shape,
                        words=(name, *middle, f"isl{shape.isl}_osl{shape.osl}_bs{shape.batch}"),
                    )


def _written(parallelism: Parallelism) -> tuple[str, ...]:
    return () if parallelism.world_size == 1 else (str(parallelism),)


def _clash(name: str, first: Variant, second: Variant) -> Problem:
    facts = tuple((f"models.{v.model}", f"{v.parallelism} {v.precision} {v.words[-1]}") for v in (first, second))
    return Problem(what=f"{name}: two variants would have this name", facts=facts, hint="rename a model or drop one")
