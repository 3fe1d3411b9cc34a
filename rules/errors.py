"""Every error a user can see has one shape: what happened, the facts, a hint.

    BuildError
      Misconfigured   the configuration is wrong: exit 3, all problems at once
      StepFailed      a user's step failed (exit code, last log lines, log path): exit 1

Anything else that escapes is our bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["BuildError", "Misconfigured", "Problem", "StepFailed", "nearest", "writing"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MACHINES = (*_FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
_LISTED = 24  # good words in a hint: all releases of TensorRT-LLM, and not the names of 10,000 variants


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong. `what` is lower case and names the thing first; `facts` are (name, value) pairs."""

    what: str
    facts: tuple[tuple[str, str], ...] = ()
    hint: str = ""

    def __str__(self) -> str:
        width = max((len(name) for name, _ in self.facts), default=0)
        lines = [self.what]
        lines += [f"    {name.ljust(width)}  {value}" for name, value in self.facts]
        if self.hint:
            lines.append(f"    hint: {self.hint}")
        return "\n".join(lines)


class BuildError(Exception):
    """Base of all errors that are the user's to mend; `str()` is what the user reads."""

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class Misconfigured(BuildError):
    """The configuration is wrong. Carries every problem found, not the first."""


class StepFailed(BuildError):
    """A step of the user's build failed. Never cached."""


@contextmanager
def writing(name: str) -> Iterator[None]:
    """A full, read-only or failing disk ends the step `name`; any other OSError is our bug and stays what it is."""
    try:
        yield
    except OSError as error:
        if error.errno not in _MACHINES:
            raise
        hint = "free some space: doit cache gc" if error.errno in _FULL else "may we write there?"
        problem = Problem(what=f"{name} could not be kept", facts=(("reason", str(error)),), hint=hint)
        raise StepFailed(problem) from error


def nearest(word: str, words: Sequence[str]) -> str:
    """A hint that names the good word closest to `word`, or lists the good words, two dozen at most, when none is."""
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    more = f" and {len(words) - _LISTED} more" if len(words) > _LISTED else ""
    return f"one of: {', '.join(words[:_LISTED])}{more}" if words else ""
