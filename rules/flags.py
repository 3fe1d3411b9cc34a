"""What a user writes for a flag or a setting of a release, checked against the release's own table and put into words.

Nothing here knows what a flag means; rules/translate.py does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from rules.errors import Problem, nearest
from rules.release import Flag, Placeholder, Program, Release, having

__all__ = ["mistake", "setting_problems", "unknown_flag", "unknown_setting", "value_problem", "word", "words"]


def words(flag: Flag, value: object) -> list[str]:
    """`value` as it is typed after the program's name: `--x 8`, `--x enable`, `--x`, or nothing for a flag left off."""
    name = f"--{flag.name}"
    if flag.type == "flag":
        return [name] if value else []
    many = value if isinstance(value, list) else [value]
    return [name, *(word(flag, one) for one in many)]


def word(flag: Flag, value: object) -> str:
    """One value. True and false are `enable` and `disable`, as every switch of trtllm-build has it."""
    if isinstance(value, bool):
        on = "auto" if "auto" in flag.choices and not flag.switch else "enable"
        return on if value else "disable"
    return str(value)


def value_problem(path: str, flag: Flag, value: object) -> Problem | None:
    """What is wrong with `value` for `flag`, told at `path`; None when nothing is."""
    many = value if isinstance(value, list) and flag.nargs in ("+", 2) else [value]
    for one in many:
        wrong = mistake(flag, one)
        if wrong:
            what, hint = wrong
            return Problem(what=f"{path}: {what}", facts=(("got", repr(value)[:80]),), hint=hint)
    return None


def mistake(flag: Flag, value: object) -> tuple[str, str] | None:
    """(what, hint) for one value that `flag` does not take."""
    if flag.choices:
        taken = (word(flag, value) if isinstance(value, bool) else value) in flag.choices
        return None if taken else ("is not one of its choices", nearest(str(value), tuple(map(str, flag.choices))))
    takes, what, hint = _TYPES[flag.type]
    return None if takes(value) else (what, hint)


def unknown_flag(path: str, name: str, release: Release, program: Program, known: tuple[str, ...]) -> Problem:
    """A flag that `release` does not have: which releases have it, or which name is near. `known` may be written."""
    there = having(lambda one: one.flag(program, name))
    what = f"{path}.{name}: TensorRT-LLM {release.version} has no --{name}"
    if there:
        return Problem(what=what, facts=(("releases with it", _runs(there)),), hint="leave it out, or change `release`")
    return Problem(what=what, hint=nearest(name, known))


def unknown_setting(path: str, name: str, release: Release, known: tuple[str, ...]) -> Problem:
    """The same for a placeholder of the templates."""
    there = having(lambda one: name in one.placeholders())
    what = f"{path}.{name}: the templates of TensorRT-LLM {release.version} have no {name}"
    if there:
        return Problem(what=what, facts=(("releases with it", _runs(there)),), hint="leave it out, or change `release`")
    return Problem(what=what, hint=nearest(name, known))


def setting_problems(path: str, settings: Mapping[str, Placeholder], given: Mapping[str, object]) -> Iterator[Problem]:
    """The values of `given` that their placeholders cannot take."""
    for name, value in given.items():
        wrong = _setting_mistake(settings[name], value) if name in settings else None
        if wrong:
            what, hint = wrong
            yield Problem(what=f"{path}.{name}: {what}", facts=(("got", repr(value)[:80]),), hint=hint)


def _setting_mistake(setting: Placeholder, value: object) -> tuple[str, str] | None:
    if setting.type == "word":
        return None if value in setting.words else ("is not one of its words", nearest(str(value), setting.words))
    takes, what, hint = _TYPES[setting.type]
    return None if takes(value) else (what, hint)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: object) -> bool:
    return isinstance(value, float) or _whole(value)


def _fraction(value: object) -> bool:
    return isinstance(value, (int, float)) and _number(value) and 0 <= value <= 1


# Type of a flag or a setting -> what is taken, and what is said of anything else.
_TYPES: Mapping[str, tuple[Callable[[object], bool], str, str]] = {
    "flag": (lambda value: isinstance(value, bool), "must be true or false", "the flag takes no value"),
    "bool": (lambda value: isinstance(value, bool), "must be true or false", "write it without quotes"),
    "int": (_whole, "must be a whole number", "write it without quotes and point"),
    "float": (_number, "must be a number", "write it without quotes"),
    "fraction": (_fraction, "must be a number from 0 to 1", "write it without quotes"),
    "str": (lambda value: isinstance(value, (str, bool)), "must be a string", "write it in quotes"),
    "text": (lambda value: isinstance(value, str) or _whole(value), "must be a string", "write it in quotes"),
}


def _runs(versions: tuple[str, ...]) -> str:
    """`0.8.0 to 0.11.0`, or the list when it is short."""
    return ", ".join(versions) if len(versions) < 4 else f"{versions[0]} to {versions[-1]}"
