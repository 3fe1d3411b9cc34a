"""The actions every engine family shares, and that the tools' bytes are part of their keys."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from pathlib import Path

import pytest

from rules import digest, steps
from rules.action import Action, Files, Local, Output, Pinned, manifest
from rules.locked import Held, Locked
from rules.source import Source
from rules.spec import Eval, read
from rules.taken import Choice
from rules.variant import expand
from tests.space import SPEC

TINY = steps.source("m", Source(scheme="tiny", where="qwen2"), Path("/data"), Choice(), {})
FILE = steps.source("m", Source(scheme="file", where="ckpt"), Path("/data"), Choice(), {})
RENDERING = steps.Rendering(overlays=("openvino",), values={"b": True, "a": 1})
BUILD = steps.repository("m_x", "m", "engine:m_x", RENDERING)
PLACED = steps.repository("m_x", "m", "engine:m_x", replace(RENDERING, contract="0.11.0", root="/repository"))
SMOKE = steps.smoke("m_x", "m")
TRUSTING = Choice(trust_remote_code=True)
HELD = Locked(
    commit="c0ffee",
    files=(
        Held("README.md", 9, "0" * 64),
        Held("config.json", 2, "1" * 64),
        Held("model.safetensors", 8, "2" * 64),
        Held("modeling_own.py", 7, "3" * 64),
    ),
)
ON_HF, ON_MODELSCOPE = Source(scheme="hf", where="o/n", revision="main"), Source(scheme="modelscope", where="O/N")
HUB = steps.source("m", ON_HF, Path("/data"), Choice(), {ON_HF.name: HELD})
(VARIANT,) = expand(read(SPEC)[0])
HERE = Path(__file__)
ASK = steps.ask(VARIANT, Eval(data=f"file:{HERE.name}", size=3), HERE.parent)
SCORE = steps.score("m_x", ["exact_match", "chrf"], HERE, HERE)
ALL = (TINY, FILE, HUB, BUILD, PLACED, SMOKE, ASK, SCORE)


@pytest.mark.parametrize("action", ALL, ids=lambda action: action.name)
def test_every_placeholder_of_a_command_is_an_input(action: Action) -> None:
    used = {name for word in action.argv for name in re.findall(r"\{(\w+)\}", word)}
    ours = {"python", "out", *(("warm", "digests") if action is HUB else ())}
    assert used == {*ours, *(name for name, _ in action.inputs)}


@pytest.mark.parametrize("action", [it for it in ALL if it is not HUB], ids=lambda action: action.name)
def test_a_tool_runs_isolated_and_its_bytes_are_keyed(action: Action) -> None:
    assert action.argv[:3] == ("{python}", "-I", "{tool}")
    tool = dict(action.inputs)["tool"]
    assert isinstance(tool, Files)
    assert tool.members == (("", digest.of_file(Path(tool.root))),)


def test_what_is_pinned_is_keyed_by_its_digests_alone() -> None:
    """Not by the hub, the commit or the program that brings it: a newer downloader downloads nothing again."""
    elsewhere = steps.source("other", ON_MODELSCOPE, Path(), Choice(), {ON_MODELSCOPE.name: replace(HELD, commit="1")})
    assert manifest(elsewhere, {}) == manifest(HUB, {})
    assert [line for line in manifest(HUB, {}).splitlines() if line.startswith("input")] == [
        f"input files config.json sha256:{'1' * 64}",
        f"input files model.safetensors sha256:{'2' * 64}",
    ]


def test_the_commit_is_what_is_downloaded() -> None:
    pinned = dict(HUB.inputs)["files"]
    assert isinstance(pinned, Pinned)
    assert pinned.place == "hf:o/n@c0ffee"


def test_code_of_the_model_is_a_part_of_the_key_once_it_is_trusted() -> None:
    trusting = steps.source("m", ON_HF, Path(), Choice(trust_remote_code=True), {ON_HF.name: HELD})
    assert f"input files modeling_own.py sha256:{'3' * 64}" in manifest(trusting, {})
    assert "trust-remote-code" in str(steps.source("m", Source(scheme="file", where="c"), Path(), TRUSTING, {}).argv)


def test_a_source_that_is_not_locked_is_planned_and_never_has_the_key_of_one_that_is() -> None:
    loose = steps.source("m", ON_HF, Path(), Choice(), {})
    assert "not pinned" in manifest(loose, {})
    assert manifest(loose, {}) != manifest(HUB, {})


def test_a_file_source_is_taken_from_below_the_root() -> None:
    assert dict(FILE.inputs)["checkpoint"] == Local(path="/data/ckpt")


def test_an_absolute_file_source_is_taken_as_it_is() -> None:
    action = steps.source("m", Source(scheme="file", where="/data/ckpt"), Path("/data"), Choice(), {})
    assert dict(action.inputs)["checkpoint"] == Local(path="/data/ckpt")


def test_overlays_come_after_the_shared_templates() -> None:
    folders = [word for word in BUILD.argv if word.startswith("--templates=")]
    assert folders == ["--templates={templates_triton}", "--templates={templates_openvino}"]


def test_values_are_sorted_and_written_as_in_a_config_pbtxt() -> None:
    assert [word for word in BUILD.argv if word.startswith("--set=")] == ["--set=a=1", "--set=b=true"]


def test_a_repository_is_rendered_for_the_place_where_the_server_sees_it() -> None:
    assert not [word for word in BUILD.argv if word.startswith("--root")]
    assert "--root=/repository" in PLACED.argv


def test_a_repository_follows_the_contract_of_its_release() -> None:
    assert dict(PLACED.inputs)["contract"] == steps.release("0.11.0")
    assert dict(BUILD.inputs)["contract"] == steps.release("main")


def test_the_repository_sees_only_the_tokenizer_of_the_source() -> None:
    assert dict(BUILD.inputs)["tokenizer"] == Output(action="source:m", only=steps.TOKENIZER)


def test_templates_are_sorted_hold_no_caches_and_are_read_once() -> None:
    files = steps.templates("triton")
    assert list(files.members) == sorted(files.members)
    assert files.members
    assert not [path for path, _ in files.members if "__pycache__" in path]
    assert steps.templates("triton") is files


@pytest.mark.parametrize("tool", sorted(path.stem for path in (steps.HERE / "tools").glob("*.py")))
def test_a_tool_is_its_own_complete_digest(tool: str) -> None:
    """It imports nothing of ours: neither rules nor another tool."""
    tree = ast.parse((steps.HERE / "tools" / f"{tool}.py").read_text())
    siblings = {path.stem for path in (steps.HERE / "tools").glob("*.py")}
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    found |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name.split(".")[0] for name in found} & {"rules", *siblings}


@pytest.mark.parametrize("action", ALL, ids=lambda action: action.name)
def test_a_tool_takes_the_arguments_it_is_given(action: Action) -> None:
    tool = dict(action.inputs)["tool"]
    assert isinstance(tool, Files)
    offered = set(re.findall(r'"(--[a-z-]+)"', Path(tool.root).read_text()))
    given = {word.partition("=")[0] for word in action.argv[3:]}
    assert given <= offered


def test_questions_are_asked_up_to_the_shapes_length_unless_told_otherwise() -> None:
    assert "--max-tokens=64" in ASK.argv
    assert "--size=3" in ASK.argv
    assert not [word for word in ASK.argv if word.startswith("--column")]
    asked = Eval(data=f"file:{HERE.name}", max_tokens=5)
    assert "--max-tokens=5" in steps.ask(VARIANT, asked, HERE.parent).argv


def test_a_likelihood_is_of_expected_answers_which_every_question_must_have() -> None:
    asked = Eval(data=f"file:{HERE.name}", likelihood=True)
    assert {"--likelihood", "--answered"} <= set(steps.ask(VARIANT, asked, HERE.parent).argv)
    assert not {"--likelihood", "--answered"} & set(ASK.argv)


def test_other_questions_are_another_action(tmp_path: Path) -> None:
    texts = []
    for text in ("one", "two"):
        (tmp_path / "q.jsonl").write_text(text)
        texts.append(dict(steps.ask(VARIANT, Eval(data="file:q.jsonl"), tmp_path).inputs)["data"])
    assert texts[0] != texts[1]


def test_a_server_of_another_command_is_launched_in_the_place_of_ours() -> None:
    made = steps.launched(SMOKE, ["mpirun", "-n", "1"])
    assert dict(made.inputs)["server"] == steps.tool("serve_engine")
    assert dict(made.env) == {"ENGINES_LAUNCHER": "{launcher}/launch.py", "ENGINES_SERVER": '["mpirun", "-n", "1"]'}
    assert dict(made.inputs)["launcher"] == steps.tool("launch")
    assert made.argv == SMOKE.argv


def test_how_long_an_engine_may_load_is_keyed_only_where_somebody_said_it() -> None:
    said = steps.launched(SMOKE, ["mpirun"], 60.0)
    assert dict(said.env)["ENGINES_LOAD_SECONDS"] == "60"
    assert set(steps.launched(SMOKE, ["mpirun"]).env) == set(said.env) - {("ENGINES_LOAD_SECONDS", "60")}


def test_a_tool_that_is_a_folder_is_keyed_whole() -> None:
    paths = [path for path, _ in steps.tool("launch").members]
    assert {"launch.py", "logs.py", "ports.py"} <= set(paths)
    assert not [path for path in paths if "pycache" in path]


def test_questions_are_asked_behind_the_server_that_the_smoke_test_starts() -> None:
    smoke = steps.launched(SMOKE, ["mpirun", "-n", "1"])
    made = steps.served(ASK, smoke)
    for name in ("server", "launcher"):
        assert dict(made.inputs)[name] == dict(smoke.inputs)[name]
    assert (made.env, dict(made.inputs)["data"]) == (smoke.env, dict(ASK.inputs)["data"])
    assert dict(steps.served(ASK, SMOKE).inputs) == dict(ASK.inputs), "of the embedded lane, serve.py"
