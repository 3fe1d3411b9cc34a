"""Texts that a person has read: a change of one is a change of every key, of every task name or of what a user sees.

`pytest tests/test_golden.py --update-golden` writes them anew; the diff is what is reviewed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from rules import plan
from rules.action import Output, manifest
from tests.space import Space

Golden = Callable[[str, str], None]

ENTRIES = {
    "tiny_int4": """
source = "tiny:qwen2"
precisions = ["int4_wo"]
shapes = [{ batch = 8, isl = 256, osl = 64 }]
""",
    "file_fp32_with_options": """
source = "file:checkpoints/llama"
precisions = ["fp32"]
shapes = [{ batch = 1, isl = 1024, osl = 1 }]
build = { max_num_tokens = 512 }
serving = { streaming = false, max_beam_width = 4 }
""",
}


@pytest.mark.parametrize("name", ENTRIES)
def test_the_manifests_of_an_entry(name: str, tmp_path: Path, golden: Golden) -> None:
    """With `<...>` for digests, so that an edit of a tool or a template changes none of them."""
    config = tmp_path / "checkpoints" / "llama" / "config.json"
    config.parent.mkdir(parents=True)
    config.write_text("{}")
    head = '[toolchains.cpu]\nbackend = "openvino"\n[models.m]\ntoolchain = "cpu"\n'
    made = plan.load(head + ENTRIES[name], tmp_path)
    texts = []
    for action in made.actions.values():
        digests = {at: f"<outputs of {of.action}>" for at, of in action.inputs if isinstance(of, Output)}
        text = manifest(action, {"checkpoint": "<digest>", **digests})
        texts.append(f"# {action.name}\n" + _without_digests(text))
    golden(f"manifests/{name}.txt", "\n".join(texts))


def _without_digests(text: str) -> str:
    text = re.sub(
        r"(input templates_\w+) \S+ [0-9a-f]{64}\n(?:\1 \S+ [0-9a-f]{64}\n)*", r"\1 <files> <digests>\n", text
    )
    return re.sub(r"\b[0-9a-f]{64}\b", "<digest>", text)


def test_a_manifest_without_placeholders_names_every_template(project: Path) -> None:
    """What the goldens leave out."""
    entry = "[toolchains.cpu]\nbackend = 'openvino'\n[models.m]\ntoolchain = 'cpu'" + ENTRIES["tiny_int4"]
    action = plan.load(entry, project).actions["build:m_int4_wo_isl256_osl64_bs8"]
    text = manifest(action, {"engine": "0", "tokenizer": "0"})
    for folder in ("triton", "openvino"):
        for path in (project / "templates" / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert f"input templates_{folder} {path.relative_to(project / 'templates' / folder)} " in text


def test_doit_list(workspace: Space, project: Path, golden: Golden) -> None:
    for path in ("models.toml", "data/calibration.jsonl", "data/questions.jsonl"):
        workspace.write(path, (project / path).read_text())
    golden("list.txt", _squeezed(workspace.build("list")))


def test_doit_list_all(workspace: Space, golden: Golden) -> None:
    golden("list_all.txt", _squeezed(workspace.build("list", "--all")))


def _squeezed(text: str) -> str:
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def test_every_mistake_of_a_models_toml_at_once(workspace: Space, project: Path, golden: Golden) -> None:
    workspace.write("models.toml", (project / "tests" / "golden" / "mistakes.toml").read_text())
    result = workspace.run("list")
    assert result.rc == 3
    assert not result.out
    golden("mistakes.txt", result.err.replace(str(workspace.root), "<folder>"))
