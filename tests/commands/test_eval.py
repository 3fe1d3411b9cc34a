"""`doit eval`, the command; what an evaluation is, tests/test_evaluation.py says."""

from __future__ import annotations

import pytest

from tests.space import Space
from tests.test_evaluation import ASK, REFERENCE, SCORE, SPEC, VARIANT

RECORD = "\n(out.parents[3] / 'control/argv').write_text(' '.join(sys.argv))\n"


@pytest.fixture
def asked(workspace: Space) -> Space:
    """A workspace with questions, which remembers how they were asked."""
    workspace.write("models.toml", SPEC)
    workspace.write("q.jsonl", '{"input": "q", "expected": "e"}\n')
    workspace.write("control/ask.py", ASK + RECORD)
    workspace.write("control/score.py", SCORE)
    workspace.write("control/figures", '{"exact_match": 1.0, "agreement": 0.99}')
    return workspace


def test_variants_and_their_reference_are_built_and_asked(asked: Space) -> None:
    out = asked.build("eval", VARIANT)
    assert f"build:{REFERENCE}" in out
    assert "exact_match          1.0000" in out
    assert asked.ran()[-4:] == ["ask", "score", "ask", "score"]


def test_a_broken_gate_is_exit_1(asked: Space) -> None:
    asked.write("control/figures", '{"exact_match": 0.5}')
    result = asked.run("eval", VARIANT)
    assert result.rc == 1
    assert "exact_match is 0.5, must be at least 0.9" in result.err


def test_a_server_that_runs_already_is_asked_and_none_is_started(asked: Space) -> None:
    asked.build("eval", VARIANT)
    asked.ran()
    asked.build("eval", VARIANT, "--url", "http://127.0.0.1:8000/")
    assert asked.ran() == ["ask", "score"]
    argv = asked.read("control/argv").split()
    assert "--url=127.0.0.1:8000" in argv
    assert not [word for word in argv if word.startswith(("--server", "--repository"))]


def test_whose_answers_they_are_must_be_known(asked: Space) -> None:
    result = asked.run("eval", REFERENCE, "--url=127.0.0.1:8000")
    assert result.rc == 1
    assert f"build:{REFERENCE} was never made here" in result.err
    assert asked.ran() == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("n",), "models.n has no questions"),
        (("m", "--url=127.0.0.1:8000"), "at a URL there is one variant"),
        (("nobody",), "there is no 'build:nobody'"),
    ],
)
def test_what_cannot_be_asked_is_exit_3(asked: Space, arguments: tuple[str, ...], told: str) -> None:
    result = asked.run("eval", *arguments)
    assert result.rc == 3
    assert told in result.err
    assert "Traceback" not in result.err
