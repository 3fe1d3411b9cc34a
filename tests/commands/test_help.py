"""`doit help`, `--help`, and what is said to a word that is no command and no target."""

from __future__ import annotations

import pytest

from tests.lane import toml
from tests.space import SPEC, Space

VARIANT = "m_int8_wo_isl256_osl64_bs8"
QUESTIONS = 'eval = { data = "file:questions.jsonl", metrics = ["contains"] }\n'


def test_without_a_word_every_stage_and_every_command_of_ours_has_a_line(workspace: Space) -> None:
    out = workspace.build("help")
    for word in ("source:NAME", "smoke:NAME", "bench:NAME", "check", "plan", "serve", "report", "cache", "list"):
        assert f" {word} " in out


@pytest.mark.parametrize("words", [["plan", "--help"], ["-h", "plan"], ["plan", "smoke", "--help"]])
def test_a_command_says_its_options_where_people_ask_for_them(workspace: Space, words: list[str]) -> None:
    result = workspace.run(*(words if words[0] != "-h" else ["plan", "-h"]))
    assert (result.rc, result.out) == (0, workspace.build("help", "plan"))


@pytest.mark.parametrize("words", [["help", "smoke:m"], ["smoke:m", "--help"]])
def test_of_a_target_it_says_what_it_stands_for_what_it_is_made_from_and_where_it_lies(
    workspace: Space, words: list[str]
) -> None:
    out = workspace.build(*words)
    for line in (f"    smoke:{VARIANT}\n", f"    build:{VARIANT}\n", f"  is put into artifacts/smoke/{VARIANT}\n"):
        assert line in out
    assert workspace.ran() == []


def test_a_task_of_the_users_is_told_as_doit_tells_it(workspace: Space) -> None:
    other = "def task_other():\n    'says a word'\n    return {'actions': None}\n"
    workspace.write("dodo.py", workspace.read("dodo.py") + other)
    assert workspace.build("help", "other") == "other  says a word\n"


def test_an_option_that_there_is_not_is_told_with_the_nearest(workspace: Space) -> None:
    result = workspace.run("plan", "--jsn")
    assert (result.rc, result.out) == (3, "")
    assert result.err == (
        "ERROR: doit plan: option --jsn not recognized\n    hint: did you mean '--json'?; doit help plan says more\n"
    )


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("m", "'m' is a name without a stage\n    hint: doit build:m, smoke:m, bench:m"),
        ("smok", "'smok' is no command and no target\n    hint: did you mean 'smoke'?"),
        ("lsit", "'lsit' is no command and no target\n    hint: did you mean 'list'?"),
        ("build:m_int8", "there is no 'build:m_int8'\n    hint: did you mean 'build:m_int8_wo'"),
        ("eval:m", "eval:m: there are no questions to ask\n    hint: give its entry eval = "),
        ("k8s:m", "k8s:m: an engine for the CPU has no manifests"),
        ("zzz", "'zzz' is no command and no target\n    hint: doit help, doit list"),
    ],
)
@pytest.mark.parametrize("before", [[], ["help"]])
def test_a_word_that_is_nothing_is_told_with_what_it_may_have_meant(
    workspace: Space, before: list[str], word: str, said: str
) -> None:
    result = workspace.run(*before, word)
    assert result.rc == 3
    assert f"ERROR: {said}" in result.err


def test_questions_are_a_target_where_an_entry_has_them(workspace: Space) -> None:
    workspace.write("models.toml", SPEC + QUESTIONS)
    workspace.write("questions.jsonl", '{"text": "a"}\n')
    assert f"eval:{VARIANT}" in workspace.build("help", "eval:m")


def test_a_models_toml_with_mistakes_takes_no_help_away(workspace: Space) -> None:
    workspace.write("models.toml", toml('precisions = "fp16"'))
    assert "Serving" in workspace.build("help")
