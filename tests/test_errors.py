"""Every error has one shape: what, the facts in a column, a hint."""

from __future__ import annotations

import errno

import pytest

from rules.errors import BuildError, Misconfigured, Problem, StepFailed, nearest, writing


def test_a_problem_reads_as_what_then_aligned_facts_then_a_hint() -> None:
    problem = Problem(what="no space", facts=(("need", "9 GiB"), ("have", "1 GiB"), ("on", "/data")), hint="free some")
    assert str(problem) == "no space\n    need  9 GiB\n    have  1 GiB\n    on    /data\n    hint: free some"


def test_a_problem_without_facts_or_hint_is_one_line() -> None:
    assert str(Problem(what="no space")) == "no space"


def test_an_error_shows_every_problem_it_carries() -> None:
    error = Misconfigured([Problem(what="one"), Problem(what="two")])
    assert str(error) == "one\ntwo"
    assert [problem.what for problem in error.problems] == ["one", "two"]


def test_an_error_may_be_made_of_one_problem() -> None:
    assert StepFailed(Problem(what="one")).problems == (Problem(what="one"),)


@pytest.mark.parametrize("kind", [Misconfigured, StepFailed])
def test_what_the_user_can_mend_is_a_build_error(kind: type[BuildError]) -> None:
    assert issubclass(kind, BuildError)


def test_nearest_names_the_close_word() -> None:
    assert nearest("int8wo", ("fp32", "int8_wo")) == "did you mean 'int8_wo'?"


def test_nearest_lists_the_words_when_none_is_close() -> None:
    assert nearest("zzz", ("fp32", "int8_wo")) == "one of: fp32, int8_wo"


def test_of_very_many_words_the_first_are_listed_and_the_rest_counted() -> None:
    hint = nearest("zzz", [f"word{number}" for number in range(1000)])
    assert hint.startswith("one of: word0, word1, ")
    assert hint.endswith(", word23 and 976 more")


def test_nearest_of_no_words_is_no_hint() -> None:
    assert nearest("zzz", ()) == ""


@pytest.mark.parametrize(("number", "hint"), [(errno.ENOSPC, "doit cache gc"), (errno.EROFS, "may we write there")])
def test_a_disk_that_takes_no_more_is_the_users_to_mend(number: int, hint: str) -> None:
    with pytest.raises(StepFailed, match=rf"(?s)engine:m could not be kept.*here.*{hint}"), writing("engine:m"):
        raise OSError(number, "here")


def test_any_other_error_of_the_system_is_our_bug() -> None:
    with pytest.raises(FileNotFoundError), writing("engine:m"):
        raise FileNotFoundError(errno.ENOENT, "gone")
