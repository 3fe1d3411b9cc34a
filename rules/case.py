"""One entry of the TensorRT-LLM lane under examination: a setting, and the release that its toolchain names.

A rule is silent where another refuses: without a release that exists there is nothing more to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, Literal

from rules.errors import Problem
from rules.release import Release, load
from rules.variant import Setting

__all__ = ["Case", "about", "case"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A setting with its release, and its tables as they are written: their types are another rule's business."""

    setting: Setting
    release: Release
    build: Mapping[str, Any]
    serving: Mapping[str, Any]

    @property
    def path(self) -> str:
        """models.NAME"""
        return self.setting.path

    @property
    def precisions(self) -> list[str]:
        """The entry's precisions."""
        return self.setting.entry.precisions

    @property
    def kv_cache_dtype(self) -> object:
        """`auto`, or what the KV cache is quantized to."""
        return self.build.get("kv_cache_dtype", "auto")

    @property
    def upstream(self) -> bool:
        """Whether the release's own scripts make the checkpoint."""
        return bool(self.build.get("quantizer") == "upstream")

    @property
    def family(self) -> str:
        """config.json's model_type; empty where that is not known."""
        return self.setting.dims.family if self.setting.dims else ""

    def number(self, table: Literal["build", "serving"], name: str) -> int | None:
        """A whole number that the entry gives; None where it gives none, or something else."""
        value = getattr(self, table).get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def served(self, *names: str) -> list[str]:
        """Those of `names` that `serving` turns on."""
        return [name for name in names if self.serving.get(name) is True]


def case(setting: Setting) -> Case | None:
    """The case of a setting whose release exists."""
    try:
        release = load(setting.toolchain.release or "")
    except KeyError:
        return None
    return Case(setting=setting, release=release, build=setting.entry.build, serving=setting.entry.serving)


def about(told: Callable[[Case], Iterator[Problem]]) -> Callable[[Setting], Iterator[Problem]]:
    """What `told` says of a setting's case; silent where there is none, which `release_exists` tells."""

    @wraps(told)  # a rule's id and reason are its function's name and docstring
    def rule(setting: Setting) -> Iterator[Problem]:
        of = case(setting)
        if of:
            yield from told(of)

    return rule
