"""Which of the actions that a command asks for are not fresh, told without a task for each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from rules.freshness import Freshness
from rules.index import Index

__all__ = ["Ask", "Swept", "sweep"]


class Ask(Protocol):
    """`Executor.fresh` by an action's name."""

    def __call__(self, name: str, *, here: bool) -> bool:
        """Whether its outputs are what they would be if made now, and lie `here` if they are wanted here."""


@dataclass(frozen=True, kw_only=True)
class Swept:
    """`stale` are the actions to be made or asked again, in an order that can be run, and `fresh` how many are not.

    `members` are the stale ones that each target stands for.
    """

    stale: Sequence[str]
    fresh: int
    members: Mapping[str, Sequence[str]]


def sweep(index: Index, memo: Freshness, targets: Iterable[str], ask: Ask) -> Swept | None:
    """Sweeps the actions of `targets` and all that they need. None when one of them is no target of ours.

    An action is asked for only where `memo` does not know it, and counts as stale when one that it needs does.
    """
    found = {target: index.actions(target) for target in targets}
    if None in found.values():
        return None
    selected = {name for members in found.values() for name in members or ()}
    wanted = index.closure(selected)
    stale: dict[str, None] = {}
    for name in wanted:
        if not _fresh(index, memo, name, stale, ask, here=name in selected):
            stale[name] = None
    memo.save(index.needs)
    members = {target: [name for name in of or () if name in stale] for target, of in found.items()}
    return Swept(stale=tuple(stale), fresh=len(wanted) - len(stale), members=members)


def _fresh(index: Index, memo: Freshness, name: str, stale: Mapping[str, None], ask: Ask, *, here: bool) -> bool:
    needs = index.needs[name]
    if any(need in stale for need in needs):
        return False
    identity = index.identities.get(name)
    state = memo.state(name, identity, needs) if identity else ""
    if memo.known(name, state):
        return True
    if ask(name, here=True):
        memo.learn(name, state)
        return True
    return not here and ask(name, here=False)
