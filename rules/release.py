"""One release of TensorRT-LLM as data: flags, templates, containers, pins, and how sure each of them is.

The files in rules/releases/ are written by scripts/releases.py. Asking for one release reads that one file; only
messages about mistakes look at the others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

from rules.errors import nearest

__all__ = [
    "Flag",
    "Placeholder",
    "Program",
    "Release",
    "Sure",
    "having",
    "load",
    "nearest_hint",
    "number",
    "versions",
    "with_image",
]

HERE = Path(__file__).parent / "releases"
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")

Program = Literal["build", "convert_gpt", "convert_llama", "convert_qwen", "quantize", "launch"]
Sure = Literal["exact", "inferred", "assumed"]


@dataclass(frozen=True, kw_only=True)
class Flag:
    """What may stand after `--name`. A `flag` takes no value; `nargs` is argparse's, and `default` None is unset.

    `uncertain` says why it is not proven that the release has it.
    """

    name: str
    type: Literal["str", "int", "float", "flag"]
    default: object = None
    choices: tuple[object, ...] = ()
    nargs: str | int | None = None
    aliases: tuple[str, ...] = ()
    uncertain: str = ""

    @property
    def switch(self) -> bool:
        """Whether it is turned on and off with the words `enable` and `disable`."""
        return self.choices == ("enable", "disable")


@dataclass(frozen=True, kw_only=True)
class Placeholder:
    """A placeholder of the templates. `unset` says what the server does without it, `needs` what breaks then."""

    name: str
    type: Literal["bool", "int", "fraction", "word", "text"]
    words: tuple[str, ...] = ()
    unset: str
    needs: str = ""


@dataclass(frozen=True, eq=False)
class Release:
    """One file of rules/releases/. Two releases are one when they are the same object: `load` is cached."""

    version: str
    _data: Mapping[str, Any]

    @property
    def pins(self) -> Mapping[str, str]:
        """Package -> the versions that the release asks for."""
        return cast("Mapping[str, str]", self._data["pins"])

    @property
    def images(self) -> Mapping[str, Mapping[str, str]]:
        """Container image -> what it holds; the oldest first. Empty where no image carries the release."""
        return cast("Mapping[str, Mapping[str, str]]", self._data["containers"])

    @property
    def image(self) -> str:
        """The image to use when none is named: the oldest, since that one stays when others are added; or none, ""."""
        return next(iter(self.images), "")

    @property
    def requests(self) -> Mapping[str, str]:
        """Request field of tensorrt_llm_bls -> what it is when absent. The ensemble's are among them."""
        return cast("Mapping[str, str]", self._data["requests"])

    @property
    def contract(self) -> Mapping[str, Any]:
        """Triton model -> its config with `${placeholder}` where a setting goes."""
        return cast("Mapping[str, Any]", self._data["triton"])

    def flags(self, program: Program) -> Mapping[str, Flag]:
        """Flag name without dashes -> flag, in the program's order. Empty where the release has no such program."""
        return _flags(self, program)

    def flag(self, program: Program, name: str) -> Flag | None:
        """The flag of that name or alias."""
        flags = self.flags(program)
        return flags.get(name) or next((one for one in flags.values() if name in one.aliases), None)

    def placeholders(self) -> Mapping[str, Placeholder]:
        """Name -> placeholder, of all templates together."""
        return _placeholders(self)

    def script(self, program: Program) -> str:
        """Where a program lies in the release's source, below its root."""
        return str(self._data["scripts"][program])

    def sure(self, part: str) -> tuple[Sure, str]:
        """How sure the facts about a program or about `triton` are, and why."""
        sure, _, why = self._data["certainty"][part].partition(": ")
        return cast("Sure", sure), why


@cache
def versions() -> tuple[str, ...]:
    """The releases there are, oldest first."""
    return tuple(sorted((path.stem for path in HERE.glob("*.json") if _VERSION.fullmatch(path.stem)), key=number))


@cache
def load(version: str) -> Release:
    """The release called `version`. Raises KeyError when there is none."""
    if not _VERSION.fullmatch(version):  # a version is a file name: nothing else may become one
        raise KeyError(version)
    try:
        return Release(version, json.loads((HERE / f"{version}.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise KeyError(version) from None


def nearest_hint(version: str) -> str:
    """A hint that names the release meant by `0.11`, `v0.11.0` or another slip, or lists them all."""
    plain = version.lstrip("v")
    meant = [one for one in versions() if one == plain or one.startswith(f"{plain}.")]
    return f"did you mean {meant[-1]!r}?" if meant else nearest(version, versions())


def number(version: str) -> tuple[int, ...]:
    """`0.18.2` as (0, 18, 2), for comparing."""
    return tuple(int(part) for part in version.split("."))


def having(test: Callable[[Release], object]) -> tuple[str, ...]:
    """The releases for which `test` is true, such as those that have a flag. Reads all: for messages only."""
    return tuple(version for version in versions() if test(load(version)))


def with_image(image: str) -> tuple[str, ...]:
    """The releases that a container image carries; none for an image that is not NVIDIA's. Reads all."""
    return having(lambda release: image in release.images)


@cache
def _flags(release: Release, program: str) -> dict[str, Flag]:
    rows: Mapping[str, Mapping[str, Any]] = release._data.get(program, {})  # noqa: SLF001 - a function, to be cached
    return {name: _flag(name, row) for name, row in rows.items()}


def _flag(name: str, row: Mapping[str, Any]) -> Flag:
    return Flag(
        name=name,
        type=row["type"],
        default=row.get("default"),
        choices=tuple(row.get("choices", ())),
        nargs=row.get("nargs"),
        aliases=tuple(row.get("aliases", ())),
        uncertain=row.get("uncertain", ""),
    )


@cache
def _placeholders(release: Release) -> dict[str, Placeholder]:
    rows: Mapping[str, Mapping[str, Any]] = release._data["placeholders"]  # noqa: SLF001 - a function, to be cached
    return {name: Placeholder(name=name, **{**row, "words": tuple(row.get("words", ()))}) for name, row in rows.items()}
