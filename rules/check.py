"""`doit check`: the table of the rules that need no bytes, and what they say of a models.toml.

What can be known to fail from models.toml and a config.json is known in seconds, before anything runs. A rule is one
small function in rules/checks/, or of an engine family; docs/checks.md lists them all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rules import backend
from rules.checks import cluster, entry, evaluation, prompts, shapes
from rules.checks.entry import Subject
from rules.errors import Problem, nearest
from rules.rule import Finding, Rule, error
from rules.rule import findings as said
from rules.spec import Model, Parallelism, Spec, read
from rules.variant import Variant, expand, groups, name_problems

__all__ = ["examine", "findings", "problems", "refused", "table"]


@dataclass(frozen=True)
class File:
    """A whole models.toml, as far as it is well formed."""

    spec: Spec

    @cached_property
    def variants(self) -> tuple[Variant, ...]:
        """Every variant: 10,000 take a while, so once."""
        return expand(self.spec)


@error("write it as docs and `doit schema` have it")
def well_formed(text: str) -> Iterator[Problem]:
    """Models.toml is TOML with the tables, keys and values that there are."""
    yield from read(text)[1]


@error("name an engine family that there is")
def backend_exists(file: File) -> Iterator[Problem]:
    """Every toolchain is of an engine family that there is."""
    for name, toolchain in file.spec.toolchains.items():
        if toolchain.backend not in backend.names():
            hint = nearest(toolchain.backend, backend.names())
            yield Problem(what=f"toolchains.{name}.backend: there is no {toolchain.backend!r}", hint=hint)


@error("rename a model or drop a variant")
def names_differ(file: File) -> Iterator[Problem]:
    """Two variants never share a name, so none is overwritten by another."""
    yield from name_problems(file.variants)


@error("name a variant or a group that there is")
def default_exists(file: File) -> Iterator[Problem]:
    """What is built and served without being named is there."""
    known = (*groups(file.variants), *(variant.name for variant in file.variants))
    serve = file.spec.serve
    for key, names in (("default", file.spec.default), ("serve.default", serve.default), ("serve.gpus", serve.gpus)):
        for name in names:
            if name not in known and not _of_a_torn(file.spec, name):
                yield Problem(what=f"{key}: there is no {name!r}", hint=nearest(name, known))


def _of_a_torn(spec: Spec, name: str) -> bool:
    """Whether `name` may be of an entry that is there and not well formed: nobody knows its variants."""
    return any(f"{name}_".startswith(f"{torn.removeprefix('models.')}_") for torn in spec.torn)


_ABOUT_FILES: tuple[Rule[File], ...] = (backend_exists, names_differ, default_exists)
_ABOUT_ENTRIES: tuple[Rule[Subject], ...] = (
    *entry.RULES,
    *shapes.RULES,
    *cluster.RULES,
    *evaluation.RULES,
    *prompts.RULES,
)


def examine(text: str, root: Path, lock: str = "") -> list[Finding]:
    """Everything that the rules say of the `text` of a models.toml whose relative paths start at `root`, and of the
    models.lock beside it.
    """
    spec, _ = read(text, lock)
    about = (*said((well_formed,), text), *said(_ABOUT_FILES, File(spec)))
    return [*about, *findings(spec, root)]


def problems(spec: Spec, root: Path) -> list[Problem]:
    """Everything that is surely wrong with the well-formed entries of `spec`; `file:` paths are relative to `root`."""
    subjects = (Subject(spec=spec, path=f"models.{name}", entry=of, root=root) for name, of in spec.models.items())
    found = [finding for subject in subjects for finding in _of(subject, strict=True)]
    return [finding.problem for finding in (*found, *said(_ABOUT_FILES, File(spec)))]


def findings(
    spec: Spec, root: Path, variants: Iterable[Variant] | None = None, fetched: Mapping[str, Path] | None = None
) -> list[Finding]:
    """What the rules say of all entries, or of those of `variants`, narrowed to their precisions, ranks and shapes.

    `fetched` is where the files of a model lie whose source is elsewhere, of those that are here.
    """
    entries, here = spec.models if variants is None else _narrowed(variants), fetched or {}
    subjects = (
        Subject(spec=spec, path=f"models.{name}", entry=of, root=root, fetched=here.get(name))
        for name, of in entries.items()
    )
    found = [finding for subject in subjects for finding in _of(subject, strict=False)]
    return list({(finding.id, str(finding.problem)): finding for finding in found}.values())


def refused(found: Iterable[Finding]) -> bool:
    """Whether one of `found` is a mistake that no command gets past."""
    strict = {rule.id for rule in table() if rule.strict}
    return any(finding.id in strict for finding in found)


def table() -> list[Rule[Any]]:
    """Every rule about models.toml, each once: those about all entries, then those of the engine families."""
    families = (rule for name in backend.names() for rule in backend.find(name).rules)
    return list(dict.fromkeys((well_formed, *_ABOUT_FILES, *_ABOUT_ENTRIES, *families)))


def _of(subject: Subject, *, strict: bool) -> Iterator[Finding]:
    yield from said((rule for rule in _ABOUT_ENTRIES if rule.strict or not strict), subject)
    for family, setting in subject.settings():
        yield from said((rule for rule in family.rules if rule.strict or not strict), setting)


def _narrowed(variants: Iterable[Variant]) -> dict[str, Model]:
    """Model -> its entry with what its `variants` have, and no more."""
    by_model: dict[str, list[Variant]] = {}
    for variant in variants:
        by_model.setdefault(variant.model, []).append(variant)
    return {name: _entry_of(members) for name, members in by_model.items()}


def _entry_of(members: list[Variant]) -> Model:
    whole, words = members[0].entry, {str(member.parallelism) for member in members}
    return whole.model_copy(
        update={
            "parallelism": [text for text in whole.parallelism if str(Parallelism.parse(text)) in words],
            "precisions": [name for name in whole.precisions if any(one.precision == name for one in members)],
            "shapes": [shape for shape in whole.shapes if any(one.shape == shape for one in members)],
        }
    )
