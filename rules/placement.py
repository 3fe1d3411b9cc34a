"""Which server runs on which GPUs: decided, and checked against what the GPUs are, before anything starts.

A server takes a GPU for each rank. Where the user names none, each gets GPUs of its own, in order. Sharing is possible
where it is asked for and the memory suffices: a server takes its weights and then, of what is free, the fraction that
its KV cache may have, so that what is left for the next is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rules.errors import Misconfigured, Problem
from rules.gpu import Card

__all__ = ["Demand", "place", "require_lists", "shared"]

_GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What a server needs: a GPU of compute capability `sm` per rank, with the bytes of its weights and of one request.

    `fraction` of what is free then becomes KV cache.
    """

    name: str
    sm: int
    ranks: tuple[int, ...]
    request: int
    fraction: float


def place(demands: Sequence[Demand], cards: Sequence[Card], wanted: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """The GPUs of each server, rank by rank. `wanted` are those that the user names, one list per server, or nothing.

    An empty list is for any that nobody named.

    Raises Misconfigured with everything that does not fit.
    """
    found = {card.device: card for card in cards}
    require_lists(demands, wanted)
    places = _in_order(demands, wanted or [()] * len(demands), list(found))
    problems = [
        wrong for demand, devices in zip(demands, places, strict=True) for wrong in _wrong(demand, devices, found)
    ]
    problems = problems or _crowded(demands, places, found)
    if problems:
        raise Misconfigured(problems)
    return places


def require_lists(demands: Sequence[Demand], wanted: Sequence[Sequence[str]]) -> None:
    """One list of GPUs per server, or none at all."""
    if wanted and len(wanted) != len(demands):
        lists = ";".join(",".join(devices) for devices in wanted)
        facts = (("servers", ", ".join(demand.name for demand in demands)), ("lists", lists))
        hint = "--gpus has a list per server, as in 0,1;2,3"
        problem = Problem(what=f"{len(wanted)} lists of GPUs for {len(demands)} servers", facts=facts, hint=hint)
        raise Misconfigured(problem)


def shared(places: Sequence[Sequence[str]]) -> bool:
    """Whether two servers have a GPU in common: then they must start one after the other."""
    devices = [device for one in places for device in one]
    return len(devices) != len(set(devices))


def _in_order(
    demands: Sequence[Demand], wanted: Sequence[Sequence[str]], devices: Sequence[str]
) -> list[tuple[str, ...]]:
    """What is named as named, and the rest from what is left."""
    named = {device for one in wanted for device in one}
    left = [device for device in devices if device not in named]
    needed = sum(len(demand.ranks) for demand, one in zip(demands, wanted, strict=True) if not one)
    if needed > len(left):
        needs = (((demand.name), f"{len(demand.ranks)} GPUs") for demand in demands)
        facts = (*needs, ("this machine has", ", ".join(left) or "none that are free"))
        hint = "serve fewer at a time, or where there are more; the world size is the engine's"
        raise Misconfigured(Problem(what=f"{needed} GPUs are needed, {len(left)} are free", facts=facts, hint=hint))
    rest = iter(left)
    return [tuple(one) or tuple(next(rest) for _ in demand.ranks) for demand, one in zip(demands, wanted, strict=True)]


def _wrong(demand: Demand, devices: Sequence[str], found: Mapping[str, Card]) -> list[Problem]:
    """GPUs that are not there, of another kind than the engine was built for, named twice, or not one per rank."""
    problems = [
        Problem(what=f"there is no GPU {device}", facts=(("this machine has", ", ".join(found) or "none"),))
        for device in devices
        if device not in found
    ]
    if len(set(devices)) != len(devices) or len(devices) != len(demand.ranks):
        facts = (("world size", f"{len(demand.ranks)}, of the engine"), ("GPUs", ", ".join(devices)))
        problems.append(Problem(what=f"{demand.name}: needs one GPU for each rank", facts=facts))
    for card in (found[device] for device in devices if device in found):
        if card.sm != demand.sm:
            facts = (("built for", f"SM {demand.sm}"), (f"GPU {card.device}", f"SM {card.sm}, {card.name}"))
            hint = "engines run only on the architecture they were built for: name another platform and build there"
            problems.append(Problem(what=f"{demand.name}: the engine is for another GPU", facts=facts, hint=hint))
    return problems


def _crowded(demands: Sequence[Demand], places: Sequence[Sequence[str]], found: Mapping[str, Card]) -> list[Problem]:
    """Servers whose weights and one full request do not fit into what the GPUs have left when their turn comes."""
    left = {device: card.free for device, card in found.items()}
    problems = []
    for demand, devices in zip(demands, places, strict=True):
        for device, weights in zip(devices, demand.ranks, strict=True):
            if not found[device].total:  # a driver that does not tell
                continue
            cache = int(max(left[device] - weights, 0) * demand.fraction)
            if cache < demand.request:
                problems.append(_too_little(demand, found[device], weights, left[device]))
            left[device] -= weights + cache
    return problems


def _too_little(demand: Demand, card: Card, weights: int, left: int) -> Problem:
    facts = (
        ("free", f"{max(left, 0) / _GIB:.1f} of {card.total / _GIB:.1f} GiB"),
        ("engine", f"{weights / _GIB:.1f} GiB"),
        ("one request", f"{demand.request / _GIB:.2f} GiB of KV cache, which may have {demand.fraction:g} of the rest"),
    )
    hint = "free the GPU, share it with less, or change kv_cache_free_gpu_mem_fraction"
    return Problem(what=f"{demand.name}: does not fit into GPU {card.device}", facts=facts, hint=hint)
