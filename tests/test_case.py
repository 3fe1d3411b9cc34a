"""One entry under examination: what rules read of it, and when they say nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rules.case import Case, about, case
from rules.errors import Problem
from tests.lane import setting, toml


@about
def always(of: Case) -> Iterator[Problem]:
    """Tells something of every case."""
    yield Problem(what=of.release.version)


def test_a_rule_is_told_the_release_of_its_toolchain() -> None:
    assert [problem.what for problem in always(setting(toml("0.13.0"), Path()))] == ["0.13.0"]
    assert always.__name__ == "always"


def test_a_rule_is_silent_where_there_is_no_such_release() -> None:
    for release in ("0.13", "main", ""):
        assert not list(always(setting(toml(release), Path())))


def test_what_is_served_is_what_is_true() -> None:
    of = case(setting(toml(serving='{ a = true, b = false, c = "true" }'), Path()))
    assert of
    assert of.served("a", "b", "c", "d") == ["a"]


def test_defaults_are_modelopt_and_the_cache_of_the_weights() -> None:
    of = case(setting(toml(), Path()))
    assert of
    assert (of.upstream, of.kv_cache_dtype, of.family, of.path) == (False, "auto", "", "models.m")
    of = case(setting(toml(build='{ quantizer = "upstream", kv_cache_dtype = "fp8" }'), Path(), "llama"))
    assert of
    assert (of.upstream, of.kv_cache_dtype, of.family) == (True, "fp8", "llama")
