"""The place where one command runs: its inputs laid out, an empty output folder, and nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from rules import tree
from rules.action import Action, Receipt
from rules.errors import Problem, StepFailed
from rules.gpu import Lease
from rules.runners import docker, local

__all__ = ["Source", "Work", "argv", "passed", "places", "run", "told"]

_TAIL_LINES = 15
_HINT = "the log has everything it printed"
_KILLED = "killed from outside: out of host memory?"
_HINTS = {"failed with signal 9": _KILLED, "failed with exit code 137": _KILLED}  # 137: the same, of a container


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where an input lies; with `part`, the action is shown a folder with only those files of it, and with `text` a
    file that says so.
    """

    place: Path
    part: Receipt | None = None
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class Work:
    """An action to be run in `folder`, on the GPUs of `lease`, by the holder of the key's `lock`.

    `warm` is the folder that its `{warm}` stands for, if it has one.
    """

    action: Action
    folder: Path
    lease: Lease
    lock: int
    warm: Path | None = None


@contextlib.contextmanager
def run(work: Work, sources: Mapping[str, Source], log: Path, heard: Callable[[str], None]) -> Iterator[Path]:
    """Runs the command and gives its output folder, which is gone afterwards: take what is to be kept.

    Raises StepFailed when the toolchain is another than the key declares, when the command fails, or when it does not
    make its outputs.
    """
    problems = _mismatches(work)
    if problems:
        raise StepFailed(problems)
    shutil.rmtree(work.folder, ignore_errors=True)
    try:
        out, scratch = work.folder / "out", work.folder / "scratch"
        for folder in (out, scratch):
            folder.mkdir(parents=True)
        for name, source in sources.items():
            _show(source, work.folder / "in" / name)
        _command(work, places(work.folder, sources, work.warm), scratch, log, heard)
        _require(work.action, out)
        yield out
    finally:
        shutil.rmtree(work.folder, ignore_errors=True)


def places(folder: Path, sources: Mapping[str, Source], warm: Path | None = None) -> dict[str, str]:
    """What `{out}`, `{python}`, `{warm}` and the inputs' names stand for when the command runs in `folder`."""
    shown = {name: folder / "in" / name if it.part or it.text else it.place for name, it in sources.items()}
    ours = {"out": folder / "out", "digests": folder / "digests.json", "python": local.python()}
    return {name: str(place) for name, place in {**shown, **ours, **({"warm": warm} if warm else {})}.items()}


def told(out: Path) -> dict[str, str]:
    """The BLAKE3 of each output below `out` that the command computed while it wrote them, by path."""
    try:
        rows = json.loads(out.with_name("digests.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return {str(path): str(content) for path, content in rows.items() if (out / path).is_file()}


def argv(action: Action, filled: Mapping[str, str]) -> list[str]:
    """The command line, with `{name}` replaced where it is in `filled`; of a container, the line that starts it."""
    if action.runner == "local":
        return [_fill(word, filled) for word in action.argv]
    return docker.line(_call(action, filled, devices=[str(number) for number in range(action.gpus)]))


def _call(action: Action, filled: Mapping[str, str], devices: Sequence[str], owner: str = "") -> docker.Call:
    """The action in a container, where `{name}` is a place inside and `filled` are the places on this machine."""
    assert action.runner != "local"
    names = [name for name, _ in action.inputs]
    seen = {name: docker.inside(name, source) for name, source in action.inputs} | {
        "out": docker.OUT,
        "python": docker.PYTHON,
        "warm": docker.WARM,
    }
    written = ("out", *(("warm",) if action.warm else ()))
    here = {name: os.path.abspath(filled[name]) if name in filled else f"{{{name}}}" for name in (*names, *written)}  # noqa: PTH100
    folder = Path(here["out"]).parent if "out" in filled else Path()
    return docker.Call(
        program=action.runner,
        image=dict(action.toolchain).get("image", ""),
        name="-".join(filter(None, ("doit", folder.name, owner and str(os.getpid())))),
        argv=[_fill(word, seen) for word in action.argv],
        env={name: _fill(value, seen) for name, value in action.env},
        reads=[(seen[name], here[name]) for name in names],
        writes=[
            *((seen[name], here[name]) for name in written),
            (docker.SCRATCH, str(folder / "scratch") if folder.name else "{scratch}"),
        ],
        devices=devices,
        user=f"{os.getuid()}:{os.getgid()}",
        owner=owner,
    )


def _mismatches(work: Work) -> list[Problem]:
    """What the place where it runs has in another version than the key declares."""
    if work.action.runner == "local":
        return local.mismatches(work.action.toolchain)
    known = work.folder.parent.parent / "images"
    return docker.mismatches(_call(work.action, {}, ()), work.action.toolchain, known)


def _command(work: Work, filled: Mapping[str, str], scratch: Path, log: Path, heard: Callable[[str], None]) -> None:
    """Raises StepFailed with the last lines when the command fails."""
    tail: deque[str] = deque(maxlen=_TAIL_LINES)

    def line(text: str) -> None:
        tail.append(text)
        heard(text)

    ended = _ended(work, filled, scratch, log, line)
    if ended:
        kept = (("also", str(path)) for path in _keep_logs(scratch, log))
        facts = (("log", str(log)), *kept, *(("", said) for said in tail))
        what = f"{work.action.name} {ended}"
        raise StepFailed(Problem(what=what, facts=facts, hint=_HINTS.get(ended, _HINT)))


def _ended(work: Work, filled: Mapping[str, str], scratch: Path, log: Path, line: Callable[[str], None]) -> str:
    """Runs the command where the action's runner says: how it failed, "" when it did not."""
    action, lease = work.action, work.lease
    visible: dict[str, str | None] = {"CUDA_VISIBLE_DEVICES": ",".join(lease.devices)}  # "": it leased none
    visible |= passed(action.passes)
    command = local.Command(
        argv=[_fill(word, filled) for word in action.argv],
        env={**visible, **{name: _fill(value, filled) for name, value in action.env}},
        log=log,
        scratch=scratch,
        timeout_s=action.timeout_s,
        inherit=(*lease.descriptors, work.lock),
    )
    try:
        if action.runner == "local":
            code = local.run(command, line)
        else:
            code = docker.run(_call(action, filled, lease.devices, docker.owner()), command, line)
    except TimeoutError:
        return f"had no end after {action.timeout_s:g} s"
    return f"failed with {f'signal {-code}' if code < 0 else f'exit code {code}'}" if code else ""


def passed(patterns: Sequence[str]) -> dict[str, str | None]:
    """The user's variables that match; None, which takes ours away, for a name that the user has not set."""
    plain = {name: os.environ.get(name) for name in patterns if "*" not in name}
    return plain | {name: value for name, value in os.environ.items() if any(fnmatch(name, it) for it in patterns)}


def _show(source: Source, view: Path) -> None:
    if source.text:
        view.parent.mkdir(parents=True, exist_ok=True)
        view.write_text(source.text, encoding="utf-8")
    if source.part is None:
        return
    view.mkdir(parents=True)
    for entry in source.part.entries:
        tree.place(source.place / entry.path, view / entry.path, entry)


def _keep_logs(scratch: Path, log: Path) -> list[Path]:
    """Moves the logs that a failed command left in its scratch folder, such as a server's, beside its own."""
    kept = []
    for path in sorted(scratch.rglob("*.log")):
        kept.append(log.with_name(f"{log.stem}.{path.name}"))
        shutil.move(path, kept[-1])
    return kept


def _fill(word: str, filled: Mapping[str, str]) -> str:
    """Replaces `{name}` by its place. Not str.format: other braces, as in JSON, stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda match: filled.get(match[1], match[0]), word)


def _require(action: Action, out: Path) -> None:
    missing = [pattern for pattern in action.outputs if not any(out.glob(pattern))]
    if missing:
        facts = (("missing", ", ".join(missing)), ("found", ", ".join(sorted(tree.names(out))) or "nothing"))
        raise StepFailed(Problem(what=f"{action.name} did not make its outputs", facts=facts))
    strange = [name for name in tree.names(out) if not (out / name).is_file()]
    if strange:
        hint = "links must lead to files; a link to a folder, a pipe or a socket cannot be stored"
        raise StepFailed(Problem(what=f"{action.name} made what is no file: {', '.join(sorted(strange))}", hint=hint))
