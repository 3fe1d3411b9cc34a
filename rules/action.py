"""One action, and the one text that is both its key and its explanation.

Action     what to run, on which inputs, to make which outputs
manifest   the text form of all that is keyed; key = BLAKE3 of it, and `doit why` prints its changed lines
Receipt    what came out: (path, digest, size, executable) of each file, sorted, and nothing else
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Literal

from rules import digest

__all__ = [
    "MEASURED",
    "Action",
    "Entry",
    "Files",
    "Input",
    "Local",
    "Output",
    "Pinned",
    "Receipt",
    "closure",
    "key",
    "manifest",
]

MEASURED = ("bench", "eval")  # observations of what `build` makes: no actions, since they are made anew each time
MANIFEST_VERSION = 1  # bump when the text's meaning changes: every key changes with it
_DIGEST = re.compile(r"[0-9a-f]{64}")
_BELOW = re.compile(r"(?:(?!\.{1,2}/)[^/\0]+/)*(?!\.{1,2}\Z)[^/\0]+")  # a receipt from elsewhere must not write outside


@dataclass(frozen=True, kw_only=True)
class Files:
    """Files that are in git (a tool, a template folder). `members` are (path below `root`, BLAKE3) pairs, sorted.

    `root` is where they lie on this machine and is not keyed; a single file has the member path "". Without members
    nothing of it is keyed: a program that brings what is pinned elsewhere cannot bring anything else.
    """

    root: str
    members: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Local:
    """A folder of the user's that is not in git, such as a checkpoint. Keyed by content, not by `path`."""

    path: str


@dataclass(frozen=True, kw_only=True)
class Pinned:
    """Files that lie elsewhere, such as on a hub. Keyed by the path and SHA-256 of each, and not by where that is.

    `members` are (path, bytes, SHA-256), sorted; without any it is not known yet what lies at `place`. The action is
    given a file with JSON: `place`, `files` (the members), and `here`: SHA-256 -> a file on this machine that has it,
    and its BLAKE3.
    """

    place: str
    members: tuple[tuple[str, int, str], ...]


@dataclass(frozen=True, kw_only=True)
class Output:
    """What another action makes. `only` are the glob patterns of the files this action may see; () is all of them."""

    action: str
    only: tuple[str, ...] = ()


Input = Files | Local | Output | Pinned


@dataclass(frozen=True, kw_only=True)
class Action:
    """A command with everything it depends on.

    In `argv` and `env`, `{out}` is the output folder, `{python}` the toolchain's interpreter, `{name}` the place of the
    input of that name, and `{warm}` a folder that outlives the command and that all actions of one `warm` share: what
    lies there saves time and decides nothing. `{digests}` is a file where the command may say the BLAKE3 of its
    outputs, as a JSON table of paths. `passes` are variables of the user's that it may see, when it runs here and in
    no container. `tests/test_action.py` lists each field as keyed or not.
    """

    # keyed
    stage: str
    argv: tuple[str, ...]
    inputs: tuple[tuple[str, Input], ...] = ()
    outputs: tuple[str, ...] = ()
    toolchain: tuple[tuple[str, str], ...] = ()
    platform: str = ""
    env: tuple[tuple[str, str], ...] = ()
    # not keyed
    name: str = ""
    gpus: int = 0
    timeout_s: float | None = None
    sharing: Literal["remote", "local", "never"] = "remote"
    runner: Literal["local", "docker", "podman"] = "local"  # what it is the same in is in `toolchain`
    warm: str = ""  # the folder's name; "" is none
    passes: tuple[str, ...] = ()

    def needs(self) -> tuple[str, ...]:
        """The names of the actions whose outputs this one reads."""
        return tuple(source.action for _, source in self.inputs if isinstance(source, Output))


@dataclass(frozen=True)
class Entry:
    """One output file: path below the output folder with `/`, BLAKE3, bytes, and whether it may be executed."""

    path: str
    digest: str
    size: int
    executable: bool = False


@dataclass(frozen=True)
class Receipt:
    """The outputs of an action, sorted by path."""

    entries: tuple[Entry, ...]
    _digests: dict[tuple[str, ...], str] = field(default_factory=dict, compare=False, repr=False)

    def text(self) -> str:
        """The receipt file: one JSON list a line, so that equal outputs are equal bytes and a diff is readable."""
        rows = [
            f'[{json.dumps(e.path)}, "{e.digest}", {e.size}, {"true" if e.executable else "false"}]'
            for e in self.entries
        ]
        return '{"version": 1, "files": [\n' + ",\n".join(rows) + "\n]}\n"

    @staticmethod
    def parse(text: str) -> Receipt:
        """Reads `text()` back. Raises ValueError when `text` is anything else."""
        try:
            data = json.loads(text)
        except RecursionError:  # from a remote anything may come
            raise ValueError("it is nested too deep") from None
        if not isinstance(data, dict) or data.get("version") != 1 or not isinstance(data.get("files"), list):
            raise ValueError("not a version 1 receipt")
        entries = tuple(_entry(row) for row in data["files"])
        paths = [entry.path for entry in entries]
        if paths != sorted(set(paths)):
            raise ValueError("its paths are not sorted, or one is there twice")
        folders = {str(folder) for path in paths if "/" in path for folder in PurePosixPath(path).parents}
        if not folders.isdisjoint(paths):
            raise ValueError("one path is a file and a folder")
        return Receipt(entries)

    def only(self, patterns: tuple[str, ...]) -> Receipt:
        """The part of it that matches one of `patterns`; all of it when there are none."""
        if not patterns:
            return self
        return Receipt(tuple(e for e in self.entries if any(fnmatch(e.path, pattern) for pattern in patterns)))

    def digest(self, only: tuple[str, ...] = ()) -> str:
        """BLAKE3 of every path, content and run bit, as far as `only` goes. Computed once: thousands may ask."""
        if only not in self._digests:
            self._digests[only] = digest.of_text(self.only(only).text())
        return self._digests[only]

    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.entries)


def manifest(action: Action, digests: Mapping[str, str]) -> str:
    """The text of all that is keyed. `digests` gives the tree digest of each `Local` and `Output` input by its name.

    Raises KeyError when the digest of an input is not known yet.
    """
    lines = [f"manifest {MANIFEST_VERSION}", f"stage {_one_line(action.stage)}"]
    lines += [f"arg {_one_line(arg)}" for arg in action.argv]
    lines += [f"env {_one_line(name)}={_one_line(value)}" for name, value in sorted(action.env)]
    lines += _toolchain_lines(action.toolchain)
    lines += [f"platform {_one_line(action.platform)}"]
    for name, source in sorted(action.inputs, key=lambda pair: pair[0]):
        lines += _input_lines(name, source, digests)
    lines += [f"output {_one_line(pattern)}" for pattern in sorted(action.outputs)]
    return "\n".join(lines) + "\n"


def key(text: str) -> str:
    """The key of an action: BLAKE3 of its manifest."""
    return digest.of_text(text)


def closure(names: Iterable[str], needs: Callable[[str], Iterable[str]]) -> set[str]:
    """`names`, all that they need, all that that needs, and so on."""
    pending, found = list(names), set[str]()
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending += needs(name)
    return found


def _input_lines(name: str, source: Input, digests: Mapping[str, str]) -> list[str]:
    if isinstance(source, Files):
        return _member_lines(name, source.members)
    if isinstance(source, Pinned):
        return _pinned_lines(name, source)
    seen = " ".join(_word(pattern) for pattern in source.only) if isinstance(source, Output) else ""
    return [" ".join(("input", _word(name), *filter(None, (seen and f"({seen})",)), digests[name]))]


@lru_cache(maxsize=1024)
def _member_lines(name: str, members: tuple[tuple[str, str], ...]) -> list[str]:
    return [" ".join(("input", _word(name), *filter(None, (_word(path),)), of)) for path, of in members]


def _pinned_lines(name: str, source: Pinned) -> list[str]:
    if not source.members:
        return [f"input {_word(name)} of {_one_line(source.place)}, not pinned"]
    return [f"input {_word(name)} {_word(path)} sha256:{sha256}" for path, _, sha256 in source.members]


@lru_cache(maxsize=1024)
def _toolchain_lines(toolchain: tuple[tuple[str, str], ...]) -> list[str]:
    return [f"toolchain {_word(name)} {_one_line(version)}" for name, version in sorted(toolchain)]


@lru_cache(maxsize=1 << 16)
def _one_line(text: str) -> str:
    """Newlines and backslashes escaped: two different arguments never give one text."""
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")


@lru_cache(maxsize=1 << 16)
def _word(text: str) -> str:
    """Spaces escaped too, for what is not the last of its line."""
    return _one_line(text).replace(" ", "\\ ")


_TYPES = [str, str, int, bool]


def _entry(row: object) -> Entry:
    if isinstance(row, list) and list(map(type, row)) == _TYPES:
        path, content, size, executable = row
        path.encode("utf-8", "surrogateescape")  # what no file can be called is a ValueError too
        if _BELOW.fullmatch(path) and _DIGEST.fullmatch(content) and size >= 0:
            return Entry(path, content, size, executable)
    raise ValueError(f"not an entry of a receipt: {row!r}")
