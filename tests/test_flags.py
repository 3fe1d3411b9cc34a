"""Values that a user writes: what each type of flag takes, how it is typed, and what is said of anything else."""

from __future__ import annotations

from typing import Any

import pytest

from rules.flags import setting_problems, unknown_flag, unknown_setting, value_problem, words
from rules.release import Flag, Placeholder, load

INT = Flag(name="n", type="int")
SWITCH = Flag(name="s", type="str", choices=("enable", "disable"))
PLUGIN = Flag(name="p", type="str", choices=("auto", "float16", "disable"))
STORE_TRUE = Flag(name="f", type="flag")
TEXT = Flag(name="t", type="str")
MANY = Flag(name="m", type="str", nargs="+", choices=("a", "b"))

TYPED: list[tuple[Flag, Any, list[str]]] = [
    (INT, 8, ["--n", "8"]),
    (SWITCH, True, ["--s", "enable"]),
    (SWITCH, False, ["--s", "disable"]),
    (SWITCH, "enable", ["--s", "enable"]),
    (PLUGIN, "float16", ["--p", "float16"]),
    (PLUGIN, False, ["--p", "disable"]),
    (PLUGIN, True, ["--p", "auto"]),
    (STORE_TRUE, True, ["--f"]),
    (STORE_TRUE, False, []),
    (TEXT, "x y", ["--t", "x y"]),
    (MANY, ["a", "b"], ["--m", "a", "b"]),
    (Flag(name="x", type="float"), 0.5, ["--x", "0.5"]),
]


@pytest.mark.parametrize(("flag", "value", "expected"), TYPED)
def test_a_value_is_typed_as_the_program_wants_it(flag: Flag, value: Any, expected: list[str]) -> None:
    assert value_problem("at", flag, value) is None
    assert words(flag, value) == expected


REFUSED: list[tuple[Flag, Any, str]] = [
    (INT, "8", "must be a whole number"),
    (INT, True, "must be a whole number"),
    (INT, 1.5, "must be a whole number"),
    (SWITCH, "on", "is not one of its choices"),
    (SWITCH, 1, "is not one of its choices"),
    (PLUGIN, "float61", "is not one of its choices"),
    (STORE_TRUE, "enable", "must be true or false"),
    (TEXT, 3, "must be a string"),
    (MANY, ["a", "c"], "is not one of its choices"),
    (INT, [1, 2], "must be a whole number"),
]


@pytest.mark.parametrize(("flag", "value", "what"), REFUSED)
def test_a_value_that_the_program_would_refuse_is_told(flag: Flag, value: Any, what: str) -> None:
    problem = value_problem("at", flag, value)
    assert problem
    assert problem.what == f"at: {what}"
    assert problem.hint


def test_a_choice_that_is_near_is_named() -> None:
    problem = value_problem("at", PLUGIN, "float61")
    assert problem
    assert problem.hint == "did you mean 'float16'?"


@pytest.mark.parametrize(
    ("release", "name", "there"),
    [
        ("0.12.0", "use_custom_all_reduce", "0.8.0 to 0.11.0"),
        ("0.10.0", "kv_cache_type", "0.13.0 to 1.2.1"),
        ("0.11.0", "builder_force_num_profiles", "0.12.0, 0.13.0, 0.14.0"),
    ],
)
def test_a_flag_of_other_releases_names_them(release: str, name: str, there: str) -> None:
    problem = unknown_flag("models.m.build", name, load(release), "build", ())
    assert problem.what == f"models.m.build.{name}: TensorRT-LLM {release} has no --{name}"
    assert problem.facts == (("releases with it", there),)


def test_a_flag_of_no_release_names_the_nearest() -> None:
    problem = unknown_flag("at", "use_paged_contxt_fmha", load("0.11.0"), "build", ("use_paged_context_fmha",))
    assert problem.hint == "did you mean 'use_paged_context_fmha'?"


def test_a_setting_of_other_releases_names_them() -> None:
    problem = unknown_setting("at", "enable_trt_overlap", load("0.11.0"), ())
    assert problem.facts == (("releases with it", "0.8.0, 0.9.0"),)


SETTINGS = {
    "b": Placeholder(name="b", type="bool", unset=""),
    "i": Placeholder(name="i", type="int", unset=""),
    "f": Placeholder(name="f", type="fraction", unset=""),
    "w": Placeholder(name="w", type="word", words=("max_utilization", "x"), unset=""),
    "t": Placeholder(name="t", type="text", unset=""),
}


def test_settings_take_what_their_placeholder_means() -> None:
    assert not list(setting_problems("at", SETTINGS, {"b": True, "i": 3, "f": 0.9, "w": "x", "t": "0,1", "other": 1}))
    assert not list(setting_problems("at", SETTINGS, {"f": 1, "t": 4096}))


@pytest.mark.parametrize(
    ("name", "value"),
    [("b", "True"), ("b", 1), ("i", "3"), ("i", True), ("f", 1.5), ("f", "0.9"), ("w", "y"), ("t", 0.5)],
)
def test_other_values_are_told_with_what_was_got(name: str, value: Any) -> None:
    (problem,) = setting_problems("at", SETTINGS, {name: value})
    assert problem.what.startswith(f"at.{name}: ")
    assert problem.facts == (("got", repr(value)),)
    assert problem.hint
