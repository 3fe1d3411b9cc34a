"""The index of a plan is kept until anything that the plan is made from changes."""

from __future__ import annotations

import shutil
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rules import index, steps, workspace
from rules.errors import Misconfigured
from rules.index import DEFAULT, Index
from rules.workspace import Workspace
from tests import lane
from tests.fakes import PROJECT
from tests.space import SPEC

VARIANT = "m_int8_wo_isl256_osl64_bs8"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "models.toml").write_text(SPEC)
    return tmp_path


def found(root: Path) -> tuple[Index, int]:
    """The index, and how often the workspace had to be loaded for it."""
    loads = []

    def load() -> Workspace:
        workspace.load.cache_clear()
        loads.append(root)
        return workspace.load(root)

    return index.find(root, load), len(loads)


def test_it_is_kept_and_is_the_same_when_read_again(root: Path) -> None:
    first, loads = found(root)
    assert loads == 1
    again, loads = found(root)
    assert loads == 0
    for target in ("build", f"smoke:{VARIANT}", "engine:m", DEFAULT, "build:nothing", "nothing"):
        assert list(again.actions(target) or ()) == list(first.actions(target) or ())
    assert again.closure([f"smoke:{VARIANT}"]) == list(first.needs)
    assert again.identities == first.identities


def test_names_stand_for_what_the_workspace_says(root: Path) -> None:
    index_of, space = found(root)[0], workspace.load(root)
    for target in ("build", f"smoke:{VARIANT}", "engine:m", "checkpoint", "source:m"):
        assert tuple(index_of.actions(target) or ()) == space.actions(target)
    assert index_of.actions("build:nothing") is None
    assert index_of.actions("nothing") is None


def test_another_models_toml_is_another_index(root: Path) -> None:
    found(root)
    (root / "models.toml").write_text(SPEC.replace("osl = 64", "osl = 32"))
    other, loads = found(root)
    assert (loads, other.actions("build:m_int8_wo_isl256_osl32_bs8") is None) == (1, False)


def test_another_tool_template_or_line_of_ours_is_another_index(
    root: Path, shared_site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = Path(shutil.copytree(shared_site / "rules", tmp_path / "site/rules"))
    monkeypatch.setattr(index, "_HERE", rules)
    found(root)
    assert found(root)[1] == 0
    (rules / "tools/render.py").write_text("# another tool\n")
    assert found(root)[1] == 1
    (rules / "templates/triton/ensemble/more.txt").write_text("")
    assert found(root)[1] == 1
    (rules / "spec.py").unlink()
    assert found(root)[1] == 1
    assert found(root)[1] == 0


def test_another_python_or_another_library_is_another_index(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found(root)
    monkeypatch.setattr(sys, "version", "4.0")
    assert found(root)[1] == 1
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(PROJECT / "tests"))
    assert found(root)[1] == 1


def test_another_models_lock_is_another_index(root: Path) -> None:
    found(root)
    for text in ('{"version": 1, "sources": {}}', '{"version": 1, "sources": {}} '):
        (root / "models.lock").write_text(text)
        assert found(root)[1] == 1
    (root / "models.lock").unlink()
    assert found(root)[1] == 1


def test_a_plan_is_made_from_nothing_else(root: Path) -> None:
    """What a plan opens or lists must be in what the index is kept under: whoever lets it read more extends both."""
    for cached in (steps.tool, steps.release, steps.templates, workspace.load):
        cached.cache_clear()
    with opened() as paths:
        found(root)
    known = (PROJECT / "rules", PROJECT / "templates", root / "artifacts", Path(sys.prefix), Path(sys.base_prefix))
    names = {path for path in paths if not any(path.is_relative_to(place) for place in known)}
    assert {path.relative_to(root).as_posix() for path in names} <= {"models.toml", "models.lock"}
    assert root / "models.toml" in names
    assert PROJECT / "rules/tools/render.py" in paths


@contextmanager
def opened() -> Iterator[set[Path]]:
    """The paths that this process opens or lists meanwhile."""
    heard: set[Path] = set()
    listening = [True]

    def hear(event: str, args: tuple[Any, ...]) -> None:
        if listening and event in ("open", "os.listdir", "os.scandir") and isinstance(args[0], (str, Path)):
            heard.add(Path(args[0]).absolute())

    sys.addaudithook(hear)  # for ever; so it can be told to stop listening
    try:
        yield heard
    finally:
        listening.clear()


def test_questions_that_are_gone_are_told(root: Path) -> None:
    (root / "questions.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    (root / "models.toml").write_text(SPEC + 'eval = { data = "file:questions.jsonl", metrics = ["contains"] }\n')
    found(root)
    assert found(root)[1] == 0
    (root / "questions.jsonl").unlink()
    with pytest.raises(Misconfigured, match=r"questions\.jsonl does not exist"):
        found(root)


def test_prompts_that_are_gone_are_told(root: Path) -> None:
    (root / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    (root / "models.toml").write_text(SPEC + 'bench = { prompts = "file:prompts.jsonl" }\n')
    found(root)
    assert found(root)[1] == 0
    (root / "prompts.jsonl").unlink()
    with pytest.raises(Misconfigured, match=r"prompts\.jsonl does not exist"):
        found(root)


def test_other_calibration_texts_are_another_index(root: Path) -> None:
    (root / "models.toml").write_text(lane.toml(precisions='["fp16", "fp8"]', calibration=lane.TEXTS))
    lane.texts(root)
    first, loads = found(root)
    assert (loads, found(root)[1]) == (1, 0)
    (root / "texts.jsonl").write_text(64 * '{"input": "b"}\n')
    other, loads = found(root)
    assert loads == 1
    changed = {name for name in first.needs if first.identities[name] != other.identities[name]}
    assert {name.partition(":")[0] for name in changed} == {"checkpoint", "engine", "build", "smoke"}
    assert all("fp8" in name for name in changed)


def test_a_plan_that_reads_a_folder_of_the_users_is_not_kept(root: Path) -> None:
    (root / "ckpt").mkdir()
    (root / "ckpt/config.json").write_text("{}")
    (root / "models.toml").write_text(SPEC.replace("tiny:qwen2", "file:ckpt"))
    first, loads = found(root)
    assert loads == 1
    assert set(first.needs) - set(first.identities) == {"source:m"}
    assert found(root)[1] == 1


def test_what_changes_while_the_plan_is_made_is_not_kept(root: Path) -> None:
    def load() -> Workspace:
        workspace.load.cache_clear()
        made = workspace.load(root)
        (root / "models.toml").write_text(SPEC + "\n")
        return made

    index.find(root, load)
    (root / "models.toml").write_text(SPEC)
    assert found(root)[1] == 1


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"read": "", "index": {}}'])
def test_an_index_that_is_not_whole_is_none(root: Path, text: str) -> None:
    found(root)
    (root / "artifacts/memo/index.json").write_text(text)
    assert found(root)[1] == 1
