"""What of a plan is needed to tell that nothing is to be done: names, needs and identities, kept between runs.

A plan is a pure function of models.toml, models.lock, our own files and the libraries that read them, and so is this:
it is kept in artifacts/memo/index.json under the digest of all that, with the digests of the user's own files that the
plan read, such as calibration texts. Only a plan that reads a folder of the user's is not kept: what lies there is not
ours to watch.
"""

from __future__ import annotations

import contextlib
import json
import sys
import sysconfig
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rules import digest, tree
from rules.action import Action, Files, Local, closure
from rules.locked import NAME

if TYPE_CHECKING:
    from rules.plan import Plan
    from rules.workspace import Workspace

__all__ = ["DEFAULT", "Index", "find"]

DEFAULT = "_default"  # what is built when no target is named
_HERE = Path(__file__).parent
_VERSION = 2  # bump when the meaning of the file changes


@dataclass(frozen=True, kw_only=True)
class Index:
    """`default` are targets, `names[stage][name]` the actions that a name stands for; `needs` and `identities` are by
    action, in an order that can be run. An action that reads a folder of the user's has no identity.
    """

    default: Sequence[str]
    names: Mapping[str, Mapping[str, Sequence[str]]]
    needs: Mapping[str, Sequence[str]]
    identities: Mapping[str, str]

    def actions(self, target: str) -> Sequence[str] | None:
        """The actions that `stage:name` a stage or DEFAULT stands for; None when it is none of them."""
        if target == DEFAULT:
            return list(dict.fromkeys(name for of in self.default for name in self.actions(of) or ()))
        stage, colon, name = target.partition(":")
        by_name = self.names.get(stage)
        if by_name is None:
            return None
        return by_name.get(name) if colon else list(dict.fromkeys(one for of in by_name.values() for one in of))

    def closure(self, names: Iterable[str]) -> list[str]:
        """The actions of these names and all that they need, in an order that can be run."""
        found = closure(names, self.needs.__getitem__)
        return [name for name in self.needs if name in found]


def find(root: Path, load: Callable[[], Workspace]) -> Index:
    """The index of the folder `root`: as it was kept, or that of the workspace which `load` gives."""
    read = _read(root)
    found = _kept(root, read)
    if found is None:
        space = load()
        found = _of(space.plan, space.default)
        _keep(root, read, found, _asked_for(space.plan))
    return found


def _of(plan: Plan, default: Sequence[str]) -> Index:
    from rules.plan import identities

    needs = {name: action.needs() for name, action in plan.actions.items()}
    own = {name: it for name, it in identities(plan).items() if not _reads_a_folder(plan.actions[name])}
    return Index(default=default, names=plan.names, needs=needs, identities=own)


def _reads_a_folder(action: Action) -> bool:
    return any(isinstance(source, Local) for _, source in action.inputs)


def _kept(root: Path, read: str) -> Index | None:
    try:
        data = json.loads(tree.text(str(_path(root))))
        same = data["read"] == read and all(_is(root / name, content) for name, content in data["files"].items())
        return Index(**data["index"]) if same else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _is(path: Path, content: str) -> bool:
    """Whether the file has this digest; with "" it need only be there."""
    return path.is_file() and (not content or digest.of_file(path) == content)


def _asked_for(plan: Plan) -> dict[str, str]:
    """The user's files that a check asks for without a look into them, ""; and those that were read, their digests."""
    entries = plan.spec.models.values()
    named = [of for entry in entries for of in (entry.eval and entry.eval.data, entry.bench.prompts) if of]
    read = {it.root: it for action in plan.actions.values() for _, it in action.inputs if isinstance(it, Files)}
    theirs = [it for place, it in read.items() if not any(map(Path(place).is_relative_to, _folders()))]
    contents = {str(Path(it.root, path)): content for it in theirs for path, content in it.members}
    return {**{name.removeprefix("file:"): "" for name in named}, **contents}


def _keep(root: Path, read: str, found: Index, files: Mapping[str, str]) -> None:
    """Unless a folder of the user's was read, or what is read has changed meanwhile."""
    if len(found.identities) == len(found.needs) and read == _read(root):
        with contextlib.suppress(OSError):
            tree.write(_path(root), json.dumps({"read": read, "files": files, "index": vars(found)}))


def _folders() -> tuple[Path, ...]:
    """Where our code, release data, tools and templates lie; in a wheel the templates lie inside."""
    return (_HERE,) if (_HERE / "templates").is_dir() else (_HERE, _HERE.parent / "templates")


def _read(root: Path) -> str:
    """The digest of models.toml and models.lock, our code, release data, tools and templates, and of what says which
    Python and which libraries read them. "" when they cannot be read.
    """
    try:
        lock = digest.of_file(root / NAME) if (root / NAME).exists() else "no lock"
        texts = (digest.of_file(root / "models.toml"), lock)
    except OSError:
        return ""
    libraries = Path(sysconfig.get_path("purelib")).stat().st_mtime_ns
    parts = [str(_VERSION), sys.version, str(libraries), *texts]
    for folder in _folders():
        names = sorted(name for name in tree.names(folder) if "__pycache__" not in name)
        parts += [f"{name} {digest.of_file(folder / name)}" for name in names]
    return digest.of_text("\n".join(parts))


def _path(root: Path) -> Path:
    return root / "artifacts" / "memo" / "index.json"
