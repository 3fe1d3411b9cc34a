"""Where models are published: one file per kind of place. They say which files there are; a tool brings them.

hf          huggingface.py    through huggingface_hub: HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE
modelscope  modelscope.py     its HTTP API: MODELSCOPE_ENDPOINT, MODELSCOPE_API_TOKEN
s3          bucket.py         a folder of a bucket: AWS_*
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol, cast

from rules.errors import BuildError, Problem

__all__ = [
    "Heard",
    "Hub",
    "HubError",
    "Listed",
    "Listing",
    "connect",
]

Heard = Callable[[str], None]


class HubError(BuildError):
    """A hub has not what is asked for, or does not give it to us. Its text holds no credentials and no signed URL.

    `silent`: nobody answered, and would not for another question.
    """

    def __init__(self, problems: Problem | Iterable[Problem], *, silent: bool = False) -> None:
        super().__init__(problems)
        self.silent = silent


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One file as a hub lists it: path, bytes, and SHA-256 where the hub tells it.

    `blob` is git's name of its content where there is one; `tag` a bucket's word for its state.
    """

    path: str
    size: int
    sha256: str = ""
    blob: str = ""
    tag: str = ""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """All files at `commit` ("" where there are none). Of a `gated` repository some files may be kept from us."""

    commit: str
    files: tuple[Listed, ...]
    gated: bool = False


class Hub(Protocol):
    """A hub. Every method may raise HubError; `read` and `sha256` may be called from several threads at once."""

    def list(self, where: str, revision: str) -> Listing:
        """The files of `where` at `revision`."""

    def read(self, where: str, commit: str, path: str) -> bytes:
        """A small file."""

    def sha256(self, where: str, commit: str, file: Listed, heard: Heard) -> str:
        """SHA-256 of a file of which the hub does not tell it: it is read, and what it tells is compared."""


def connect(scheme: str, heard: Heard) -> Hub:
    """The hub behind a source's scheme; talks to nobody yet. `heard` is told why it is asked again.

    Its module is imported here: it costs up to a second.
    """
    name = {"hf": "huggingface", "modelscope": "modelscope", "s3": "bucket"}[scheme]
    return cast("Hub", import_module(f"rules.hubs.{name}").open_hub(heard))
