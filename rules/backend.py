"""Finds an engine family by its file name in rules/backends/ and says what such a file offers.

precisions   the precisions it can build
device       "cpu": one rank and no platform; "gpu": a platform is required
Options      pydantic model with the fields `build` and `serving`: the entry's tables of those names
rules        what else can be known to be wrong, or unwise, with an entry
checkpoint   (point, build) -> the actions that make the weights, last the checkpoint itself.
             It never sees the shape, so all shapes share one checkpoint
engine       (variant, point, checkpoint action's name, both tables) -> the action that makes the engine
serving      (variant, point, both tables) -> what the model repository is rendered from
manifests    (variant, point, what is asked of a cluster) -> the actions that write its manifests; none where a family
             has no image to serve with
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Any, Literal, Protocol, cast

from pydantic import BaseModel

from rules import backends
from rules.action import Action
from rules.cluster import Kubernetes
from rules.rule import Rule
from rules.steps import Rendering
from rules.variant import Point, Setting, Variant

__all__ = ["Backend", "find", "names"]


class Backend(Protocol):
    """The module-level names of a file in rules/backends/."""

    precisions: tuple[str, ...]
    device: Literal["cpu", "gpu"]
    Options: type[BaseModel]
    rules: tuple[Rule[Setting], ...]

    def checkpoint(self, point: Point, build: Any) -> tuple[Action, ...]:
        """The actions that make the weights of one point, in order; the last is the checkpoint."""

    def engine(self, variant: Variant, point: Point, made_from: str, options: Any) -> Action:
        """The action that makes the engine of `variant` from the checkpoint action named `made_from`."""

    def serving(self, variant: Variant, point: Point, options: Any) -> Rendering:
        """What the model repository is rendered from."""

    def manifests(self, variant: Variant, point: Point, asked: Kubernetes) -> tuple[Action, ...]:
        """The actions that write what a cluster serves `variant` with."""


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
