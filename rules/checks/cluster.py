"""What `[k8s]` and an entry ask of a cluster can be written and would run."""

from __future__ import annotations

from collections.abc import Iterator

from rules.checks.entry import Subject
from rules.cluster import Kind, Kubernetes, merged
from rules.errors import Problem
from rules.rule import Rule, error

__all__ = ["RULES"]

_OF_ONE_NODE: tuple[Kind, ...] = ("kserve", "t9k")


@error("lower shm_gib or raise memory_gib")
def shm_within_memory(subject: Subject) -> Iterator[Problem]:
    """A pod's /dev/shm counts as its memory: when it fills all of it, the pod is killed."""
    asked = _asked(subject)
    for ranks, gpus in _pods(subject):
        memory = asked.memory_gib * min(ranks, gpus)
        if asked.shm_gib >= memory:
            facts = (("shm_gib", str(asked.shm_gib)), ("memory of the pod", f"{memory} GiB"))
            hint = "lower shm_gib or raise memory_gib"
            yield Problem(what=f"{_path(subject)}.shm_gib: leaves no memory", facts=facts, hint=hint)


@error('write kinds = ["deployment"], which is a LeaderWorkerSet on several nodes')
def kinds_have_nodes(subject: Subject) -> Iterator[Problem]:
    """Of what manifests are written for, only a LeaderWorkerSet runs one server on several nodes."""
    for ranks, gpus in _pods(subject):
        for kind in _asked(subject).kinds if ranks > gpus else ():
            if kind in _OF_ONE_NODE:
                what = f"{_path(subject)}.kinds: {kind} has no several nodes, and {-(-ranks // gpus)} are needed"
                hint = 'write kinds = ["deployment"], which is a LeaderWorkerSet there'
                yield Problem(what=what, hint=hint)


RULES: tuple[Rule[Subject], ...] = (shm_within_memory, kinds_have_nodes)


def _asked(subject: Subject) -> Kubernetes:
    return merged(subject.spec.k8s, subject.entry.k8s)


def _path(subject: Subject) -> str:
    return f"{subject.path}.k8s" if subject.entry.k8s else "k8s"


def _pods(subject: Subject) -> Iterator[tuple[int, int]]:
    """(ranks, GPUs of a node) of each parallelism that a cluster may serve."""
    platform = subject.spec.platforms.get(subject.entry.platform or "")
    if platform and any(family.device == "gpu" for _, family in subject.families()):
        yield from ((parallelism.world_size, platform.gpus) for parallelism in subject.entry.parallelisms())
