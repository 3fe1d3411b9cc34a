"""What the rules say before actions run: of their entries, and of this machine, which must hold what they make."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from rules import backend, check, host, memory, pinned, source
from rules.action import Action, Pinned
from rules.errors import Problem
from rules.host import Needs, Visit
from rules.memory import GIB, Cut
from rules.rule import Finding, Rule, findings
from rules.source import ELSEWHERE, Dims, Source
from rules.variant import Variant
from rules.workspace import Workspace

__all__ = ["needs", "survey", "table", "told"]

_FULL = 4  # bytes a number while a model is converted for a CPU


@dataclass(frozen=True, kw_only=True)
class Made:
    """What one action makes: one precision of a model on its ranks, for a GPU or not."""

    action: Action
    dims: Dims
    cut: Cut
    device: str

    @property
    def stored(self) -> int:
        """Bytes that its outputs take on the disk."""
        if self.action.stage == "source":
            return memory.parameters(self.dims) * 2
        if self.device == "cpu":
            return (
                memory.exported(self.dims, self.cut.precision) if self.action.stage in ("checkpoint", "engine") else 0
            )
        ranks = self.cut.parallelism.world_size if self.action.stage in ("checkpoint", "engine") else 0
        return ranks * memory.weights(self.dims, self.cut)

    @property
    def held(self) -> int:
        """Bytes of host memory while it is made, workers apart."""
        return memory.to_make(self.dims, self.action.stage, _FULL if self.device == "cpu" else 2)

    @property
    def workers(self) -> tuple[int, int]:
        """(bytes of host memory of a worker, workers at a time) of trtllm-build."""
        argv = self.action.argv
        if self.action.stage != "engine" or "--workers" not in argv:
            return 0, 1
        return memory.to_build(self.dims, self.cut), int(argv[argv.index("--workers") + 1])


def table() -> list[Rule[object]]:
    """Every rule that there is."""
    return [*check.table(), *host.RULES]


def survey(space: Workspace, names: Iterable[str], *, serve: bool = False) -> list[Finding]:
    """What is wrong or unwise with making these actions here; `serve`: and with serving what they make."""
    names = list(names)
    about = told(space, names)
    visit = Visit(needs=needs(space, names, serve=serve), machine=host.look(space.executor.artifacts.root))
    return [*about, *findings(host.RULES, visit)]


def told(space: Workspace, names: Iterable[str]) -> list[Finding]:
    """What the rules say of the entries that these actions are of, with the tokenizers that were fetched."""
    variants = space.variants(names)
    fetched = {}
    for model in {variant.model for variant in variants}:
        where = source.parse(space.plan.spec.models[model].source)
        if isinstance(where, Source) and where.scheme in ELSEWHERE and space.fresh(f"source:{model}", here=True):
            fetched[model] = space.executor.artifacts.folder(f"source:{model}")
    return check.findings(space.plan.spec, space.root, variants, fetched)


def needs(space: Workspace, names: Iterable[str], *, serve: bool = False) -> Needs:
    """What making these actions needs of a machine."""
    actions = [space.plan.actions[name] for name in names]
    made = list(_made(space, actions))
    worker, workers = max((one.workers for one in made), default=(0, 1))
    platforms = (space.plan.spec.platforms.get(variant.entry.platform or "") for variant in space.variants(names))
    return Needs(
        runners=frozenset(one.runner for one in actions if one.gpus or one.stage == "smoke" or one.runner != "local"),
        gpus=max((one.gpus for one in actions), default=0),
        sms=frozenset(int(one.platform[2:]) for one in actions if one.gpus and one.platform.startswith("sm")),
        gpu_memory=max((platform.memory_gib * GIB for platform in platforms if platform), default=0),
        memory=max((one.held for one in made), default=0),
        worker=worker,
        workers=workers,
        disk=sum(one.stored for one in made),
        ranks=max((max(1, one.gpus) for one in actions if one.stage == "smoke" and one.runner == "local"), default=0),
        embedded=any(one.device == "cpu" for one in made),
        serve=serve,
        measures=any(one.stage == "checkpoint" and one.gpus and one.runner == "local" for one in actions),
        unpinned=tuple((one.name.partition(":")[2], place) for one in actions for place in pinned.loose(one)),
        gated=_gated(space, actions),
    )


def _gated(space: Workspace, actions: Iterable[Action]) -> tuple[str, ...]:
    """The gated sources among them that no cache has."""
    fetched = {one.name for one in actions if any(isinstance(it, Pinned) and it.members for _, it in one.inputs)}
    found: dict[str, None] = {}
    for model, entry in space.plan.spec.models.items():
        where, name = source.parse(entry.source), f"source:{model}"
        held = None if isinstance(where, Problem) else space.plan.spec.locked.get(where.name)
        if held and held.gated and name in fetched and not space.executor.cached(space.plan.actions[name]):
            found[entry.source] = None
    return tuple(found)


def _made(space: Workspace, actions: Iterable[Action]) -> Iterator[Made]:
    """Those of `actions` whose model is of known dimensions."""
    by_name: dict[str, Variant] = {}
    for variant in space.plan.variants.values():
        for name in (variant.name, *variant.prefixes()):
            by_name.setdefault(name, variant)
    spec = space.plan.spec
    known = {name: source.dims_of(entry.source, space.root, spec.locked) for name, entry in spec.models.items()}
    for action in actions:
        found = by_name.get(action.name.partition(":")[2])
        dims = known[found.model] if found else None
        if found and isinstance(dims, Dims) and dims.heads and memory.known(found.precision):
            whole = found.entry.build.get("quantizer") == "upstream"
            cut = Cut(precision=found.precision, parallelism=found.parallelism, embedding_whole=whole)
            device = backend.find(spec.toolchains[found.toolchain].backend).device
            yield Made(action=action, dims=dims, cut=cut, device=device)
