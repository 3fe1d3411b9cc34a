"""models.lock: what each source on a hub or in a bucket was found to hold. `doit lock` writes it, builds go by it.

It is in git: JSON, a file a line, so that a diff shows which file of which model changed. Beside the files it holds the
small texts that a plan and a check need before anything is downloaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from rules.errors import Problem

__all__ = ["NAME", "NOTHING", "Held", "Locked", "read", "text"]

NAME = "models.lock"
NOTHING: Mapping[str, Locked] = MappingProxyType({})
_VERSION = 1
_TOKENIZER = (
    *("files", "chat_template", "tokenizer_class", "add_bos_token", "add_eos_token"),
    *("bos_token", "eos_token", "pad_token"),
)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_BELOW = re.compile(r"(?:(?!\.{1,2}/)[^/\0]+/)*(?!\.{1,2}\Z)[^/\0]+")  # what a hub calls a file must not lead elsewhere


@dataclass(frozen=True)
class Held:
    """One file: path below the source with `/`, bytes, SHA-256; `tag` is a bucket's word for its state (ETag)."""

    path: str
    size: int
    sha256: str
    tag: str = ""


@dataclass(frozen=True, kw_only=True)
class Locked:
    """A source at `commit` ("" where there are none) with every file, sorted by path.

    `config` and `generation` are config.json and generation_config.json, {} where there is none; `tokenizer` is None
    without tokenizer files, else `files`, `chat_template` (whether there is one) and settings of tokenizer_config.json.
    """

    commit: str
    files: tuple[Held, ...]
    gated: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Mapping[str, Any] | None = None


def read(content: str) -> tuple[dict[str, Locked], list[Problem]]:
    """The text of a models.lock -> its sources by name, and what is wrong with it. "" is an empty one."""
    if not content:
        return {}, []
    try:
        data = json.loads(content)
        if data["version"] != _VERSION:
            raise ValueError(f"it is of version {data['version']}, and this is version {_VERSION}")
        return {name: _locked(entry) for name, entry in data["sources"].items()}, []
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        hint = "take the one of git, or remove it and `doit lock` anew"
        return {}, [Problem(what=f"{NAME} cannot be read", facts=(("reason", why),), hint=hint)]


def text(sources: Mapping[str, Locked]) -> str:
    """The text that `read` reads back: equal sources are equal bytes."""
    entries = ",\n".join(f"{json.dumps(name)}: {_entry(sources[name])}" for name in sorted(sources))
    return f'{{"version": {_VERSION}, "sources": {{\n{entries}\n}}}}\n'


def _entry(locked: Locked) -> str:
    small = {
        "commit": locked.commit,
        "gated": locked.gated,
        "config": locked.config,
        "generation": locked.generation,
        "tokenizer": locked.tokenizer,
    }
    lines = [f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}," for key, value in small.items()]
    rows = [[held.path, held.size, held.sha256, *filter(None, (held.tag,))] for held in locked.files]
    files = ",\n".join(f"  {json.dumps(row, ensure_ascii=False)}" for row in sorted(rows))
    return "\n".join(["{", *lines, ' "files": [', files, " ]", "}"])


def _locked(entry: Mapping[str, Any]) -> Locked:
    tokenizer = entry["tokenizer"]
    return Locked(
        commit=str(entry["commit"]),
        gated=bool(entry["gated"]),
        config=dict(entry["config"]),
        generation=dict(entry["generation"]),
        tokenizer=None if tokenizer is None else {name: tokenizer[name] for name in _TOKENIZER},
        files=tuple(_held(row) for row in entry["files"]),
    )


def _held(row: list[Any]) -> Held:
    if [type(value) for value in row] not in ([str, int, str], [str, int, str, str]) or row[1] < 0:
        raise ValueError(f"not a file: {row!r}")
    if not _BELOW.fullmatch(row[0]) or not _SHA256.fullmatch(row[2]):
        raise ValueError(f"not a file below the source: {row!r}")
    return Held(*row)
