"""models.toml as doit tasks. A dodo.py needs two lines:

    from rules.tasks import DOIT_CONFIG, task_engines
    __all__ = ["DOIT_CONFIG", "task_engines"]

`checkpoint:X`, `engine:X`, `build:X` and `smoke:X` are actions, or groups where X is the prefix of several names; a
stage alone is all of it. `bench:X` and `eval:X` measure, each time anew. `doit` alone is `build` of the `default`.
"""

from __future__ import annotations

import gc
import inspect
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doit.exceptions import InvalidDodoFile, TaskFailed

from rules import index
from rules.action import MEASURED, Action
from rules.artifacts import Artifacts
from rules.errors import BuildError
from rules.freshness import Freshness
from rules.index import DEFAULT
from rules.report import Reporter, progress, selected, wanted
from rules.sweep import Ask, sweep

if TYPE_CHECKING:
    from rules.variant import Variant
    from rules.workspace import Workspace

__all__ = ["DOCS", "DOIT_CONFIG", "here", "stale", "task_engines"]

DOIT_CONFIG: Mapping[str, Any] = {
    "dep_file": "artifacts/.doit.db",
    "backend": "whole_json",
    "par_type": "thread",  # an action's work is in its command; processes would only copy our state
    "reporter": Reporter,
    "verbosity": 2,
    "default_tasks": [DEFAULT],
}

DOCS = {
    "source": "the checkpoint as its source has it, verified",
    "checkpoint": "weights in one precision, shared by all shapes",
    "engine": "an engine for one shape",
    "build": "the Triton model repository, ready to serve",
    "smoke": "the repository served by the real server, and asked",
    "bench": "the repository served and put under load: an observation, made anew each time",
    "eval": "its answers to the user's questions, scored: an observation, made anew each time",
    "k8s": "manifests with which a cluster serves the repository",
}


def here() -> Workspace:
    """The workspace of the current folder (doit changes to the one of dodo.py). Raises InvalidDodoFile, exit 3."""
    from rules import workspace  # and with it pydantic: a build with nothing to do needs neither

    try:
        found = workspace.load(Path.cwd())
    except BuildError as error:
        count = len(error.problems)
        title = "models.toml is wrong" if count == 1 else f"models.toml has {count} mistakes"
        raise InvalidDodoFile(f"{title}\n\n{error}\n") from error
    found.executor.artifacts.root.mkdir(exist_ok=True)
    return found


def task_engines() -> Iterator[dict[str, Any]]:
    """Every stage of every variant in models.toml."""
    with _uncollected():
        space = here()
        for stage in space.plan.names:
            yield {"basename": stage, "name": None, "doc": DOCS[stage]}
        for action in space.plan.actions.values():
            yield {"basename": action.stage, "name": action.name.partition(":")[2], **_task(space, action)}
        for stage, names in space.plan.names.items():
            yield from _groups(stage, names)
        yield from _evaluations(space)
        yield from _benches(space)
        yield {"basename": DEFAULT, "actions": None, "task_dep": list(space.default)}


def stale(targets: Iterable[str]) -> list[dict[str, Any]] | None:
    """The tasks of `targets`, without those of fresh actions. None when one of them is no target of ours.

    A task costs doit 0.1 ms, fresh or not: of ten thousand that is a second, and sweeping them takes a third of it.
    """
    with _uncollected():
        memo = Freshness(Artifacts(Path.cwd() / "artifacts"))
        ask: Ask = lambda name, **how: here().fresh(name, **how)  # noqa: E731 - it loads the plan, if it is called
        swept = sweep(index.find(Path.cwd(), here), memo, dict.fromkeys(targets), ask)
    if swept is None:
        return None
    groups = [(target, members) for target, members in swept.members.items() if target not in swept.stale]
    return [
        *({"basename": name, **_task(here(), here().plan.actions[name])} for name in swept.stale),
        *({"basename": target, "actions": None, "task_dep": members} for target, members in groups),
        {"basename": "_swept", "actions": None, "meta": {"fresh": swept.fresh}},
    ]


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keeps the garbage collector off a graph that lives as long as we: 2.6 of 4.8 s with 10,000 variants."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _task(space: Workspace, action: Action) -> dict[str, Any]:
    artifacts = space.executor.artifacts
    return {
        "actions": [(make, [space, action])],
        "file_dep": [artifacts.receipt_path(name) for name in action.needs()],
        "targets": [artifacts.receipt_path(action.name)],
        "uptodate": [(_fresh, [space, action])],
        "clean": [(artifacts.clean, [action.name])],
        "io": {"capture": False},  # doit would swap sys.stdout under the other threads
        "meta": {"action": action.name},
    }


def _evaluations(space: Workspace) -> Iterator[dict[str, Any]]:
    """`eval:X` of the variants whose entry has questions, and their groups."""
    from rules import evaluation

    asked = {f"build:{name}": f"eval:{name}" for name, it in space.plan.variants.items() if it.entry.eval}
    yield {"basename": "eval", "name": None, "doc": DOCS["eval"]}
    for name in asked.values():
        variant = space.plan.variants[name.partition(":")[2]]
        others = filter(None, (variant, evaluation.reference_of(space, variant)))
        yield {
            "basename": "eval",
            "name": variant.name,
            "actions": [(observe, [space, variant])],
            "task_dep": [f"build:{one.name}" for one in others],
            "uptodate": [False],
            "io": {"capture": False},
            "meta": {"action": name},
        }
    groups = {group: tuple(asked[it] for it in its if it in asked) for group, its in space.plan.names["build"].items()}
    yield from _groups("eval", {group: members for group, members in groups.items() if members})


def _benches(space: Workspace) -> Iterator[dict[str, Any]]:
    """`bench:X` of every variant, and their groups."""
    yield {"basename": "bench", "name": None, "doc": DOCS["bench"]}
    for variant in space.plan.variants:
        yield {
            "basename": "bench",
            "name": variant,
            "actions": [(put_under_load, [space, variant])],
            "task_dep": [f"build:{variant}"],
            "uptodate": [False],
            "io": {"capture": False},
            "meta": {"action": f"bench:{variant}"},
        }
    for name, members in space.plan.names["build"].items():
        yield from _groups("bench", {name: tuple(f"bench{member.removeprefix('build')}" for member in members)})


def _groups(stage: str, names: Mapping[str, tuple[str, ...]]) -> Iterator[dict[str, Any]]:
    """`build:` groups stand in `doit list`; those of other stages are found by name, and with --all."""
    for name, members in names.items():
        full = f"{stage}:{name}"
        if members == (full,):
            continue
        cleaned = [] if stage in MEASURED else [(_clean, [members])]
        group = {"actions": None, "task_dep": [member for member in members if member != full], "clean": cleaned}
        if stage == "build":
            many = "variant" if len(members) == 1 else "variants"
            yield {"basename": full, "doc": f"{len(members)} {many}", **group}
        else:
            yield {"basename": stage, "name": name, **group}


def _clean(members: tuple[str, ...]) -> None:
    """Cleans what a group stands for, its members' own outputs and no more."""
    for name in members:
        here().executor.artifacts.clean(name)


def _fresh(space: Workspace, action: Action) -> bool:
    return space.executor.fresh(action, here=wanted(action.name))


# doit asks each up-to-date callable for its signature, 40 us a task, unless the answer lies ready (PEP 362).
_fresh.__signature__ = inspect.signature(_fresh)  # type: ignore[attr-defined]


def observe(space: Workspace, variant: Variant) -> dict[str, Any] | TaskFailed:
    """Evaluates one variant under doit. A broken gate is TaskFailed (exit 1)."""
    from rules import evaluation

    name, began = f"eval:{variant.name}", time.monotonic()
    try:
        with progress.action(name):
            summary = evaluation.evaluate(space, variant, lambda line: progress.line(name, line))
    except BuildError as error:
        return TaskFailed(str(error))
    told = [*evaluation.lines(summary), str(summary["folder"].relative_to(space.root))]
    return _judged(told, began, (evaluation.require, summary))


def put_under_load(space: Workspace, name: str) -> dict[str, Any] | TaskFailed:
    """Measures one variant under doit. A broken gate is TaskFailed (exit 1)."""
    from rules import bench, evaluation

    task, began = f"bench:{name}", time.monotonic()
    try:
        with progress.action(task):
            series = bench.Series(space, tuple(sorted(one for one in selected() if one.startswith("bench:"))))
            variant, heard = space.plan.variants[name], lambda line: progress.line(task, line)
            summary = series.measure(variant, bench.Asked(), heard)
            scored = evaluation.of_run(space, variant, summary, heard)
    except BuildError as error:
        return TaskFailed(str(error))
    told = [*bench.lines(summary), *(evaluation.lines(scored) if scored else ()), os.path.relpath(summary["folder"])]
    return _judged(told, began, (bench.require, summary), *(((evaluation.require, scored),) if scored else ()))


def _judged(
    told: Iterable[str], began: float, *verdicts: tuple[Callable[[dict[str, Any]], None], dict[str, Any]]
) -> Any:
    """What doit is given of a measurement: its figures, and TaskFailed with them where gates are broken."""
    broken = []
    for require, summary in verdicts:
        try:
            require(summary)
        except BuildError as error:
            broken.append(str(error))
    if broken:
        return TaskFailed("\n".join([*broken, "", *(f"    {line}" for line in told)]))
    return {"how": "measured", "seconds": time.monotonic() - began, "summary": "\n".join(told)}


def make(space: Workspace, action: Action) -> dict[str, Any] | TaskFailed:
    """Runs one action under doit. A failure of the user's step is TaskFailed (exit 1), not a traceback."""
    executor, here = space.executor, wanted(action.name)
    if executor.fresh(action, here=here):
        return {"how": "fresh", "seconds": 0.0}
    try:
        with progress.action(action.name):
            record = executor.make(action, lambda line: progress.line(action.name, line), here=here)
    except BuildError as error:
        return TaskFailed(str(error))
    folder = executor.artifacts.folder(action.name)
    summary = folder / "summary.txt"
    text = summary.read_text(encoding="utf-8") if summary.exists() else ""
    shown = {"build": os.path.relpath(folder), "k8s": f"cd {os.path.relpath(folder)}\n{text}"}  # what one goes on with
    return {"how": record.how, "seconds": record.seconds, "summary": shown.get(action.stage, text)}
