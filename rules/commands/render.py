"""`doit render NAME --out DIR`: the model repository as it would be, before any engine exists.

It is the build's own action without the engine, so that the renderer and every value are the build's.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from doit.exceptions import InvalidCommand

from rules import digest, steps, tree
from rules.action import Action, Output, Receipt
from rules.artifacts import Unknown
from rules.commands import EngineCommand
from rules.errors import Misconfigured, Problem, writing
from rules.report import progress
from rules.tasks import here
from rules.workspace import Workspace

__all__ = ["MARK", "Render", "refusal", "write"]

MARK = ".rendered.json"  # in a folder that is ours: the receipt of what was written there
_OPTIONS = (
    {"name": "out", "long": "out", "type": str, "default": "", "help": "folder to write; one below it per variant"},
    {"name": "engine_dir", "long": "engine-dir", "type": str, "default": "", "help": "where the server finds engines"},
    {"name": "force", "long": "force", "type": bool, "default": False, "help": "write over what is in the folder"},
)


class Render(EngineCommand):
    """The command."""

    name = "render"
    doc_purpose = "write model repositories as they would be, before any engine exists"
    doc_usage = "NAME... --out DIR"
    doc_description = (
        "NAME is a variant or a group of variants. One variant's repository is DIR itself, several lie in DIR/VARIANT. "
        "A folder that holds anything else, or that was edited, is left alone unless --force."
    )
    cmd_options = _OPTIONS

    def execute(self, opt_values: dict[str, Any], pos_args: list[str]) -> int:
        """Writes them; exit 1 when one cannot be rendered, 3 when nothing was asked for that can be."""
        if not pos_args or not opt_values["out"]:
            raise InvalidCommand("render needs a name and a folder: doit render NAME --out DIR")
        targets = _targets(here(), pos_args, Path(opt_values["out"]))
        _refuse(targets, force=opt_values["force"])
        for name, folder in targets.items():
            print(_rendered(here(), name, folder, opt_values["engine_dir"]))
        return 0


def _targets(space: Workspace, names: list[str], out: Path) -> dict[str, Path]:
    """Variant -> its folder."""
    variants = [variant.name for variant in space.chosen(names)]
    return {name: out / name if len(variants) > 1 else out for name in variants}


def _refuse(targets: Mapping[str, Path], *, force: bool) -> None:
    problems = [problem for folder in targets.values() if (problem := refusal(folder, force=force))]
    if problems:
        raise Misconfigured(problems)


def refusal(folder: Path, *, force: bool = False) -> Problem | None:
    """Why `folder` is not to be written to; None when it is new, empty, as `write` left it, or to be with `force`."""
    hint = "name another folder, or write over it with --force"
    blocked = next((one for one in (folder, *folder.parents) if one.exists() and not one.is_dir()), None)
    if blocked:
        return Problem(what=f"{blocked} is not a folder", hint="name another one")
    if force or not folder.exists() or not any(folder.iterdir()):
        return None
    ours = _written(folder)
    if ours is None:
        return Problem(what=f"{folder} is not empty, and not a repository that `doit render` wrote", hint=hint)
    edited = [entry.path for entry in ours.entries if not _same(folder / entry.path, entry.digest)]
    if edited:
        facts = (("edited", ", ".join(edited)),)
        return Problem(what=f"{folder} was edited since it was rendered", facts=facts, hint=hint)
    return None


def _same(path: Path, content: str) -> bool:
    """Whether a file is as it was written; one that was removed is not an edit to be kept."""
    return not path.exists() or (path.is_file() and digest.of_file(path) == content)


def _written(folder: Path) -> Receipt | None:
    try:
        return Receipt.parse((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _rendered(space: Workspace, name: str, folder: Path, engine_dir: str) -> str:
    """Renders one variant; what there is to say of it."""
    build = space.plan.actions[f"build:{name}"]
    source = next(of.action for key, of in build.inputs if key == "tokenizer" and isinstance(of, Output))
    made = steps.without_engine(build, engine_dir=engine_dir, tokenizer=_made(space, source))
    with progress.action(made.name):
        space.executor.make(made, lambda line: progress.line(made.name, line))
    with writing(str(folder)):
        write(space.executor.artifacts.folder(made.name), space.executor.artifacts.receipt(made.name), folder)
    return "\n".join([f"{name}: rendered in {folder}", *_missing(made, source, name, engine_dir)])


def _made(space: Workspace, source: str) -> bool:
    try:
        return bool(space.executor.artifacts.receipt(source))
    except Unknown:
        return False


def _missing(made: Action, source: str, name: str, engine_dir: str) -> list[str]:
    """What is not in the folder, and where the configs say that it is."""
    root = next((word.partition("=")[2] for word in made.argv if word.startswith("--root=")), "")
    below = f"{root}/" if root else ""
    lines = [f"    engine     {engine_dir or f'{below}tensorrt_llm/1/engine, which doit build:{name} makes'}"]
    if source not in made.needs():
        lines += [f"    tokenizer  {below}MODEL/1/tokenizer: run doit {source} and render again"]
    return [*lines, *([f"    mount      this folder at {root}: its configs name what lies below"] if root else [])]


def write(made: Path, receipt: Receipt, folder: Path) -> None:
    """Copies what was `made` into `folder`, in the place of what was written there before; other files stay.

    Each file is the old one or the new one at any time. The copies are the user's: writable, and not linked to ours.
    """
    before = _written(folder)
    kept = {entry.path for entry in receipt.entries}
    for entry in before.entries if before else ():
        if entry.path not in kept:
            _remove(folder, entry.path)
    for entry in receipt.entries:
        target = folder / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        new = tree.aside(target, "new")
        shutil.copyfile(made / entry.path, new)
        new.replace(target)
    tree.write(folder / MARK, receipt.text())


def _remove(folder: Path, path: str) -> None:
    """Removes a file of ours, and the folders that are empty then."""
    (folder / path).unlink(missing_ok=True)
    for parent in (folder / path).relative_to(folder).parents:
        with contextlib.suppress(OSError):
            (folder / parent).rmdir()
