"""`doit lock [MODEL...]`: pins what lies elsewhere to a commit, and every file of it to its size and SHA-256."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from doit.exceptions import InvalidCommand, InvalidDodoFile

from rules import locked, source, spec, tree, workspace
from rules.commands import EngineCommand
from rules.errors import BuildError, Misconfigured, Problem, nearest, writing
from rules.hubs import Hub, HubError, Listed, Listing, connect
from rules.locked import Held, Locked
from rules.report import progress
from rules.source import ELSEWHERE, Source
from rules.spec import Model, Spec
from rules.taken import choice, taken

__all__ = ["Lock", "differences", "resolve"]

_CHECK = {"name": "check", "long": "check", "type": bool, "default": False, "help": "write nothing, exit 1 if it would"}
_COMMIT = re.compile(r"[0-9a-f]{40}")
_POINTER = b"version https://git-lfs.github.com/spec/"
_READERS = 8
_TEXTS = ("config.json", "generation_config.json", "tokenizer_config.json")
_Heard = Callable[[str], None]


class Lock(EngineCommand):
    """The command."""

    name = "lock"
    doc_purpose = "pin the models on hubs and in buckets, in models.lock"
    doc_usage = "[MODEL...] [--check]"
    doc_description = (
        "Asks each hub for the commit that a source's revision is now, and for every file's size and SHA-256. Builds "
        "go by what is locked and stop when the hub has anything else. Commit models.lock with models.toml."
    )
    cmd_options = (_CHECK,)

    def execute(self, opt_values: dict[str, Any], pos_args: list[str]) -> int:
        """Exit 1 when a hub refused, or with --check when something changed."""
        path = Path.cwd() / locked.NAME
        parsed = _read(path)
        before = parsed.locked
        wanted = _wanted(parsed, pos_args)
        found, refused = _ask(wanted, before)
        kept = before if pos_args else {name: it for name, it in before.items() if name in wanted}
        after = {**kept, **found}
        if not wanted:
            print("nothing to lock: no source is on a hub or in a bucket")
        for name in sorted(wanted):
            _tell(name, before.get(name), after.get(name), parsed)
        for name in sorted(before.keys() - after.keys()):
            print(f"{name}: no model has this source any more")
        for problem in refused:
            print(f"error: {problem}", file=sys.stderr)
        if after != before and not opt_values["check"]:
            with writing(locked.NAME):
                tree.write(path, locked.text(after))
        return 1 if refused or (opt_values["check"] and after != before) else 0


def _read(path: Path) -> Spec:
    """Not the whole plan: what is locked may be what makes it wrong."""
    try:
        parsed, problems = spec.read(workspace.text(path.parent), workspace.lock(path.parent))
        if problems:
            raise Misconfigured(problems)
    except BuildError as error:
        raise InvalidDodoFile(f"nothing was locked\n\n{error}\n") from error
    return parsed


def _wanted(parsed: Spec, names: list[str]) -> dict[str, Source]:
    """The sources of the models `names`, of all without names, by what models.lock calls them."""
    unknown = [name for name in names if name not in parsed.models]
    if unknown:
        hints = (f"there is no model {name!r}: {nearest(name, tuple(parsed.models))}" for name in unknown)
        raise InvalidCommand("\n".join(hints))
    parse = (source.parse(parsed.models[name].source) for name in names or parsed.models)
    found = {where.name: where for where in parse if isinstance(where, Source) and where.scheme in ELSEWHERE}
    if names and not found:
        raise InvalidCommand(f"{', '.join(names)}: only hf:, modelscope: and s3: sources are locked")
    return found


def _ask(wanted: Mapping[str, Source], before: Mapping[str, Locked]) -> tuple[dict[str, Locked], list[Problem]]:
    """What the hubs say, and who refused. All are asked for a listing, which needs our login, before any is read;
    one that is silent is asked once.
    """
    hubs: dict[str, Hub] = {}
    listings: dict[str, Listing] = {}
    found: dict[str, Locked] = {}
    refused: list[Problem] = []
    silent: set[str] = set()
    with progress.action("lock"):
        for name, where in wanted.items():
            _teller(name)("asking")
            if where.scheme in silent:
                refused.append(Problem(what=f"{name} was not asked for: its hub does not answer"))
                continue
            try:
                hub = hubs.setdefault(where.scheme, connect(where.scheme, lambda line: progress.line("lock", line)))
                listings[name] = hub.list(where.where, where.revision)
            except BuildError as error:
                refused += error.problems
                silent |= {where.scheme} if isinstance(error, HubError) and error.silent else set()
        for name, listing in listings.items():
            where = wanted[name]
            try:
                found[name] = resolve(hubs[where.scheme], where, listing, before.get(name), _teller(name))
            except BuildError as error:
                refused += error.problems
    return found, refused


def _teller(name: str) -> _Heard:
    return lambda line: progress.line("lock", f"{name}: {line}")


def resolve(hub: Hub, where: Source, listing: Listing, before: Locked | None, heard: _Heard) -> Locked:
    """The source with every file's SHA-256; what the hub does not tell is read, unless it was locked as it is."""
    if before and before.commit == listing.commit and _COMMIT.fullmatch(listing.commit):
        return before
    known = {(held.path, held.size, held.tag): held.sha256 for held in (before.files if before else ()) if held.tag}

    def held(file: Listed) -> Held:
        old = known.get((file.path, file.size, file.tag), "")
        sha256 = file.sha256 or old or hub.sha256(where.where, listing.commit, file, heard)
        return Held(file.path, file.size, sha256, file.tag)

    with ThreadPoolExecutor(_READERS) as pool:
        files = tuple(sorted(pool.map(held, listing.files), key=lambda one: one.path))
    _no_pointers(hub, where, listing)
    names = {one.path for one in files}
    texts = {name: _table(hub, where, listing.commit, name) if name in names else {} for name in _TEXTS}
    return Locked(
        commit=listing.commit,
        gated=listing.gated,
        files=files,
        config=texts["config.json"],
        generation=texts["generation_config.json"],
        tokenizer=source.tokenizer_facts(names, texts["tokenizer_config.json"]),
    )


def _no_pointers(hub: Hub, where: Source, listing: Listing) -> None:
    """Weights of a few bytes are Git LFS pointers that were uploaded in the place of the weights."""
    for file in listing.files:
        small = file.path.endswith(".safetensors") and file.size < 1024
        if small and hub.read(where.where, listing.commit, file.path).startswith(_POINTER):
            hint = "the repository is broken: name another revision, or tell its owner"
            raise HubError(Problem(what=f"{where.name}: {file.path} is a Git LFS pointer, not the file", hint=hint))


def _table(hub: Hub, where: Source, commit: str, name: str) -> dict[str, Any]:
    try:
        return dict(json.loads(hub.read(where.where, commit, name)))
    except (ValueError, TypeError) as error:
        hint = "the repository is broken: name another revision, or tell its owner"
        raise HubError(Problem(what=f"{where.name}: {name} is no JSON table: {error}", hint=hint)) from None


def _tell(name: str, before: Locked | None, after: Locked | None, parsed: Spec) -> None:
    if after is None:
        return
    size = sum(held.size for held in after.files)
    print(f"{name}: {after.commit[:12] or 'no commits'}, {len(after.files)} files, {size / 1e9:,.2f} GB")
    for line in differences(before, after):
        print(f"    {line}")
    for model, entry in parsed.models.items():
        where = source.parse(entry.source)
        if isinstance(where, Source) and where.name == name:
            print(f"    {model} takes {_share(entry, after)}")


def _share(entry: Model, held: Locked) -> str:
    paths = set(taken(choice(entry), (one.path for one in held.files)))
    size = sum(one.size for one in held.files if one.path in paths)
    pickled = any(path.endswith(".bin") for path in paths)
    return f"{len(paths)} files, {size / 1e9:,.2f} GB" + (", PICKLED: it can run code when loaded" if pickled else "")


def differences(before: Locked | None, after: Locked) -> list[str]:
    """What changed: the commit, and files as `+ new`, `- gone`, `~ changed`; nothing for a source that is new."""
    if before is None or before == after:
        return []
    was, now = ({held.path: held.sha256 for held in it.files} for it in (before, after))
    lines = [f"commit {before.commit[:12]} -> {after.commit[:12]}"] if before.commit != after.commit else []
    lines += [f"- {path}" for path in sorted(was.keys() - now.keys())]
    lines += [f"+ {path}" for path in sorted(now.keys() - was.keys())]
    return lines + [f"~ {path}" for path in sorted(was.keys() & now.keys()) if was[path] != now[path]]
