"""Which files of a source an entry takes: settings, tokenizer and safetensors, unless it says otherwise.

Pickled weights and Python files can run code when they are loaded, so an entry has to ask for them by name.
rules/tools/fetch.py decides the same way for a folder on disk (tests/tools/test_fetch.py holds the two together).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch

from rules.errors import Problem
from rules.locked import Held
from rules.spec import Model

__all__ = ["CODE", "PICKLED", "Choice", "choice", "problems", "taken"]

KINDS = ("*.json", "*.jsonl", "*.safetensors", "*.jinja", "*.model", "*.tiktoken", "merges.txt", "vocab.txt")
# The same weights once more, in another framework's or the model's own format.
LEFT_OUT = ("pytorch_model*", "flax_model*", "tf_model*", "openvino_*", "consolidated*", ".*")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
PICKLED = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
CODE = ("*.py",)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """`include` adds to the usual kinds, `exclude` wins over all; patterns are of whole paths, `*` matches `/` too."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    allow_pickle: bool = False
    trust_remote_code: bool = False

    def arguments(self) -> tuple[str, ...]:
        """What the tool that takes the files is told of it; nothing when it is the usual one."""
        patterns = [*(f"--include={it}" for it in self.include), *(f"--exclude={it}" for it in self.exclude)]
        return (*patterns, *self.trust())

    def trust(self) -> tuple[str, ...]:
        """What a tool that loads the model is told of it."""
        flags = {"--allow-pickle": self.allow_pickle, "--trust-remote-code": self.trust_remote_code}
        return tuple(name for name, given in flags.items() if given)

    def risky(self) -> tuple[str, ...]:
        """Patterns of the files, beside the usual ones, that a tool that loads the model sees."""
        return (*(PICKLED if self.allow_pickle else ()), *(CODE if self.trust_remote_code else ()))


def choice(entry: Model) -> Choice:
    """What `entry` says of it."""
    return Choice(
        include=tuple(entry.include),
        exclude=tuple(entry.exclude),
        allow_pickle=entry.allow_pickle,
        trust_remote_code=entry.trust_remote_code,
    )


def taken(wanted: Choice, paths: Iterable[str]) -> tuple[str, ...]:
    """The paths that are taken, in their order; pickled weights only where there are no safetensors."""
    paths = tuple(paths)
    found = {path for path in paths if _plain(wanted, path)}
    if wanted.allow_pickle and not any(path.endswith(".safetensors") for path in found):
        found |= {path for path in paths if _is(path, PICKLED) and not _is(path, wanted.exclude)}
    return tuple(path for path in paths if path in found)


def problems(path: str, entry: Model, files: Iterable[Held]) -> Iterator[Problem]:
    """What is wrong with the choice of the entry at `path`, and with what it leaves of the `files` that are locked."""
    given = choice(entry) != Choice()
    if given and entry.source.startswith("tiny:"):
        what = f"{path}: include, exclude, allow_pickle and trust_remote_code mean nothing to a tiny: source"
        yield Problem(what=what, hint="leave them out")
    for key, kinds, allowed in (("allow_pickle", PICKLES, entry.allow_pickle), ("trust_remote_code", CODE, False)):
        for pattern in entry.include:
            if _is(pattern, kinds) and not (allowed or getattr(entry, key)):
                what = f"{path}.include: {pattern!r} can run code when it is loaded"
                yield Problem(what=what, hint=f"write {key} = true if you trust who made it")
    names = tuple(held.path for held in files)  # of a folder on disk, fetch.py tells all
    if names:
        yield from _parts(path, names, taken(choice(entry), names))


def _parts(path: str, names: tuple[str, ...], left: tuple[str, ...]) -> Iterator[Problem]:
    """A checkpoint has weights and settings."""
    pickles = [name for name in names if _is(name, PICKLES)]
    if "config.json" not in left:
        hint = "name the repository of a Hugging Face checkpoint"
        yield Problem(what=f"{path}.source: has no config.json", hint=hint)
    if not any(_is(name, ("*.safetensors", *PICKLES)) for name in left):
        hint = "allow_pickle = true takes pickled weights, which can run code when loaded" if pickles else ""
        facts = (("has", ", ".join(pickles or names)[:200]),)
        yield Problem(what=f"{path}.source: has no *.safetensors", facts=facts, hint=hint or "see include and exclude")


def _plain(wanted: Choice, path: str) -> bool:
    if _is(path, wanted.exclude) or (_is(path, PICKLES) and not wanted.allow_pickle):
        return False
    if _is(path, CODE):
        return wanted.trust_remote_code
    return _is(path, wanted.include) or ("/" not in path and _is(path, KINDS) and not _is(path, LEFT_OUT))


def _is(path: str, kinds: Iterable[str]) -> bool:
    return any(fnmatch(path, kind) for kind in kinds)
