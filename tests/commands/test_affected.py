"""`doit affected --since REV`: the variants that a change touches, without building anything."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import lane
from tests.space import Space

INT8, FP16 = "m_int8_wo_isl256_osl64_bs8", "m_fp16_isl256_osl64_bs8"


def commit(space: Space, *more: str) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(space.root)]
    for words in (["init", "-q"], ["add", "models.toml", "dodo.py", "rules", *more], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True, capture_output=True)


@pytest.fixture
def clone(tmp_path: Path, shared_site: Path) -> Space:
    """A project with its own rules in git, as this one is, and two variants."""
    root = tmp_path / "clone"
    root.mkdir()
    space = Space(root, root)
    shutil.copytree(shared_site, root, dirs_exist_ok=True)
    space.write("models.toml", space.read("models.toml").replace('["int8_wo"]', '["int8_wo", "fp16"]'))
    commit(space)
    return space


def affected(space: Space) -> list[str]:
    result = space.run("affected", "--since", "HEAD")
    assert result.rc == 0, result.err
    assert bool(result.out) is not bool(result.err)
    return result.out.split()


def test_nothing_changed_is_nothing_affected(clone: Space) -> None:
    assert affected(clone) == []
    assert clone.ran() == []


def test_a_comment_affects_nothing(clone: Space) -> None:
    clone.write("models.toml", clone.read("models.toml") + "\n# a comment\n")
    assert affected(clone) == []


def test_a_new_variant_is_affected_alone(clone: Space) -> None:
    clone.write("models.toml", clone.read("models.toml").replace('"fp16"', '"fp16", "fp32"'))
    assert affected(clone) == ["m_fp32_isl256_osl64_bs8"]


def test_an_option_affects_the_variants_of_its_model(clone: Space) -> None:
    clone.write("models.toml", clone.read("models.toml") + "serving = { streaming = false }\n")
    assert affected(clone) == [INT8, FP16]


def test_a_tool_affects_what_it_makes(clone: Space) -> None:
    tool = "rules/tools/openvino_quantize.py"
    clone.write(tool, clone.read(tool) + "# changed\n")
    assert affected(clone) == [INT8, FP16]


def test_a_template_affects_every_variant(clone: Space) -> None:
    template = "rules/templates/triton/ensemble/config.pbtxt.j2"
    clone.write(template, clone.read(template) + "# changed\n")
    assert affected(clone) == [INT8, FP16]


def test_calibration_texts_affect_what_is_measured_on_them(clone: Space) -> None:
    clone.write("models.toml", lane.toml(precisions='["fp8", "fp16"]', calibration=lane.TEXTS))
    lane.texts(clone.root)
    commit(clone, "texts.jsonl")
    assert affected(clone) == []
    clone.write("texts.jsonl", 64 * '{"input": "b"}\n')
    assert affected(clone) == ["m_fp8_isl2048_osl1024_bs8"]


def test_a_file_in_a_folder_that_is_a_source_affects_its_variants(clone: Space) -> None:
    clone.write("model/config.json", "{}")
    clone.write("models.toml", clone.read("models.toml").replace("tiny:qwen2", "file:model"))
    commit(clone, "model")
    assert affected(clone) == []
    clone.write("model/config.json", '{"model_type": "qwen2"}')
    assert affected(clone) == [INT8, FP16]


def test_the_old_revision_is_planned_by_its_own_rules(clone: Space) -> None:
    """A default that moved in the code is a change of every variant that did not write it out."""
    backend = "rules/backends/openvino.py"
    clone.write(
        backend,
        clone.read(backend).replace("streaming: bool = Field(default=True", "streaming: bool = Field(default=False"),
    )
    assert affected(clone) == [INT8, FP16]


def test_an_old_revision_that_is_wrong_affects_everything(clone: Space) -> None:
    right = clone.read("models.toml")
    clone.write("models.toml", right + "nonsense = 1\n")
    commit(clone)
    clone.write("models.toml", right)
    assert affected(clone) == [INT8, FP16]


def test_a_project_without_rules_in_git_is_planned_by_the_installed_ones(workspace: Space) -> None:
    (workspace.root / "rules").mkdir()
    workspace.write("rules/.keep", "")
    commit(workspace)
    shutil.rmtree(workspace.root / "rules")
    assert affected(workspace) == []
    workspace.write("models.toml", workspace.read("models.toml").replace("osl = 64", "osl = 65"))
    assert affected(workspace) == ["m_int8_wo_isl256_osl65_bs8"]


def test_json_is_one_object(clone: Space) -> None:
    clone.write("models.toml", clone.read("models.toml").replace('"fp16"', '"fp16", "fp32"'))
    result = clone.run("affected", "--since", "HEAD", "--json")
    assert json.loads(result.out) == {"version": 1, "since": "HEAD", "variants": ["m_fp32_isl256_osl64_bs8"]}


@pytest.mark.parametrize(("words", "said"), [(["--since", "nowhere"], "is not a revision"), ([], "needs --since")])
def test_a_revision_that_there_is_not_is_one_error(clone: Space, words: list[str], said: str) -> None:
    result = clone.run("affected", *words)
    assert result.rc == 3
    assert said in result.err
    assert "Traceback" not in result.err
