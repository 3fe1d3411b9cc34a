"""The one place where the two columns are wired together: a folder with a models.toml, its plan and its executor."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import cast, get_args

from rules import git, gpu, locked, upkeep
from rules import plan as plans
from rules.action import MEASURED, Action, closure
from rules.artifacts import Artifacts
from rules.cache import Cache, Mode
from rules.errors import BuildError, Misconfigured, Problem, nearest
from rules.executor import Executor
from rules.plan import Plan
from rules.remotes import connect
from rules.store import Store
from rules.variant import Variant

__all__ = [
    "Workspace",
    "load",
    "lock",
    "text",
]


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """A project folder: everything a command needs."""

    root: Path
    plan: Plan
    executor: Executor

    @property
    def default(self) -> tuple[str, ...]:
        """The targets of a command that is given none: `build` of the default groups, or of all."""
        return tuple(f"build:{name}" for name in self.plan.spec.default) or ("build",)

    def actions(self, target: str) -> tuple[str, ...]:
        """The actions that `stage:name` or a stage stands for; to measure takes what `build` makes. Raises
        Misconfigured with an unknown name.
        """
        stage, _, name = target.partition(":")
        by_name = self.plan.names.get("build" if stage in MEASURED else stage)
        if by_name is None:
            known = (*plans.STAGES, *MEASURED)
            raise Misconfigured(Problem(what=f"{stage!r} is not a stage", hint=nearest(stage, known)))
        if not name:
            return tuple(dict.fromkeys(action for of in by_name.values() for action in of))
        if name not in by_name:
            hint = nearest(name, tuple(by_name)[:1000])
            if not hint.startswith("did you"):  # 10,000 names help nobody
                hint = f"{nearest('', tuple(self.plan.spec.models))}; doit list has their groups"
            raise Misconfigured(Problem(what=f"there is no {target!r}", hint=hint))
        return by_name[name]

    def named(self, targets: Iterable[str]) -> list[str]:
        """The actions behind `targets`, each once. Raises Misconfigured with an unknown name."""
        return list(dict.fromkeys(name for target in targets for name in self.actions(target)))

    def closure(self, names: Iterable[str]) -> list[Action]:
        """The actions of these names and all that they need, in an order that can be run."""
        found = closure(names, lambda name: self.plan.actions[name].needs())
        return [action for name, action in self.plan.actions.items() if name in found]

    def fresh(self, name: str, *, here: bool) -> bool:
        """`Executor.fresh` of the action of this name; what hinders the answer is told when it is made."""
        try:
            return self.executor.fresh(self.plan.actions[name], here=here)
        except BuildError:
            return False

    def variants(self, names: Iterable[str]) -> list[Variant]:
        """The variants that these actions are of: all of a model of its source, of a point of its checkpoint."""
        of = {name.partition(":")[2] for name in names}
        return [one for one in self.plan.variants.values() if not of.isdisjoint((*one.prefixes(), one.name))]

    def chosen(self, names: list[str]) -> list[Variant]:
        """The variants behind `names`, or the default set. Raises Misconfigured with an unknown name or no default."""
        wanted = names or list(self.plan.spec.serve.default)
        if not wanted:
            raise Misconfigured(Problem(what="no default set", hint='write [serve] default = ["NAME"] in models.toml'))
        return [self.plan.variants[name.partition(":")[2]] for name in self.named(f"build:{one}" for one in wanted)]


@cache
def load(root: Path) -> Workspace:
    """The workspace in the folder `root`. Raises Misconfigured when its models.toml is missing or wrong."""
    plan = plans.load(text(root), root, lock(root))
    cache = _cache(plan, root)
    upkeep.enroll(cache.store, root / "artifacts")
    executor = Executor(Artifacts(root / "artifacts"), cache, plan.actions, gpu.machine, lambda: git.revision(root))
    return Workspace(root=root, plan=plan, executor=executor)


def text(root: Path) -> str:
    """The models.toml in the folder `root`. Raises Misconfigured when it cannot be read."""
    try:
        return (root / "models.toml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        hint = "run doit in a folder with a models.toml; README.md has one of ten lines"
        problem = Problem(what="models.toml cannot be read", facts=(("reason", str(error)),), hint=hint)
        raise Misconfigured(problem) from error


def lock(root: Path) -> str:
    """The models.lock in the folder `root`, "" where there is none. Raises Misconfigured when it cannot be read."""
    path = root / locked.NAME
    try:
        return path.read_text(encoding="utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        problem = Problem(what=f"{locked.NAME} cannot be read", facts=(("reason", str(error)),))
        raise Misconfigured(problem) from error


def _cache(plan: Plan, root: Path) -> Cache:
    """The store and the remote behind it. ENGINES_REMOTE (off, read, write) says what may be done with the remote."""
    said = plan.spec.cache
    mode = os.environ.get("ENGINES_REMOTE", "write")
    if mode not in get_args(Mode):
        raise Misconfigured(Problem(what=f"ENGINES_REMOTE={mode} is no mode", hint=nearest(mode, get_args(Mode))))
    return Cache(
        store=Store(root / said.dir),
        remote=connect(said.remote) if said.remote and mode != "off" else None,
        mode=cast("Mode", mode) if said.remote else "off",
        trusted=frozenset(said.trusted),
        seed=os.environ.get("ENGINES_SIGNING_KEY", ""),
        warn=_warn,
    )


def _warn(text: str) -> None:
    sys.stderr.write(f"warning: {text}\n")
