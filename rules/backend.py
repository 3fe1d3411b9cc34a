"""Finds an engine family by its file name in rules/backends/ and says what such a file offers.

precisions   the precisions it can build
device       "cpu": one rank and no platform; "gpu": a platform is required
Options      pydantic model with the fields `build` and `serving`: the entry's tables of those names
checkpoint   (model, point, precision, build) -> the actions that make the weights, last the checkpoint itself.
             It never sees the shape, so all shapes share one checkpoint
engine       (variant, checkpoint action's name, build) -> the action that makes the engine
serving      (variant, serving) -> template folders over the shared ones, and placeholder values
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, Protocol, cast

from pydantic import BaseModel

from rules import backends
from rules.action import Action
from rules.variant import Variant

__all__ = ["Backend", "find", "names"]


class Backend(Protocol):
    """The module-level names of a file in rules/backends/."""

    precisions: tuple[str, ...]
    device: Literal["cpu", "gpu"]
    Options: type[BaseModel]

    def checkpoint(self, model: str, point: str, precision: str, build: Any) -> tuple[Action, ...]:
        """The actions that make the weights of one point, in order; the last is the checkpoint."""

    def engine(self, variant: Variant, made_from: str, build: Any) -> Action:
        """The action that makes the engine of `variant` from the checkpoint action named `made_from`."""

    def serving(self, variant: Variant, options: Any) -> tuple[tuple[str, ...], Mapping[str, object]]:
        """The template folders over the shared ones, in order, and the value of each placeholder."""


@cache
def names() -> tuple[str, ...]:
    """The engine families there are, sorted."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(backends.__path__)))


@cache
def find(name: str) -> Backend:
    """The engine family called `name`. Raises KeyError when there is none."""
    if name not in names():
        raise KeyError(name)
    return cast("Backend", importlib.import_module(f"{backends.__name__}.{name}"))
