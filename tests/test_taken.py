"""Which files are taken: nothing that can run code unless it is asked for, nothing twice, never half a checkpoint."""

from __future__ import annotations

from typing import Any

import pytest

from rules.locked import Held
from rules.spec import Model
from rules.taken import Choice, choice, problems, taken

# Files that real repositories have, and whether they are taken by default.
USUAL = {
    "config.json": True,
    "generation_config.json": True,
    "model-00001-of-00002.safetensors": True,
    "model.safetensors.index.json": True,
    "tokenizer.json": True,
    "tokenizer.model": True,
    "qwen.tiktoken": True,
    "chat_template.jinja": True,
    "merges.txt": True,
    ".gitattributes": False,
    "README.md": False,
    "consolidated.safetensors": False,
    "consolidated.00.pth": False,
    "flax_model.msgpack": False,
    "onnx/model.onnx": False,
    "onnx/config.json": False,
    "original/params.json": False,
    "pytorch_model.bin": False,
    "pytorch_model.bin.index.json": False,
    "modeling_own.py": False,
    "training_args.bin": False,
}


def _entry(**more: Any) -> Model:
    shape = {"batch": 1, "isl": 1, "osl": 1}
    return Model.model_validate(
        {"source": "hf:o/n", "toolchain": "cpu", "precisions": ["fp32"], "shapes": [shape], **more}
    )


def _told(entry: Model, *paths: str) -> list[str]:
    files = [Held(path, 1, "1" * 64) for path in paths]
    return [problem.what for problem in problems("models.m", entry, files)]


def test_settings_tokenizer_and_safetensors_are_taken_and_nothing_else() -> None:
    assert taken(Choice(), USUAL) == tuple(path for path, wanted in USUAL.items() if wanted)


def test_include_adds_and_exclude_wins() -> None:
    wanted = Choice(include=("original/*", "README.md"), exclude=("*.md", "tokenizer.model"))
    assert set(taken(wanted, USUAL)) - set(taken(Choice(), USUAL)) == {"original/params.json"}
    assert set(taken(Choice(), USUAL)) - set(taken(wanted, USUAL)) == {"tokenizer.model"}


def test_pickles_are_taken_where_they_are_allowed_and_there_are_no_safetensors() -> None:
    wanted = Choice(allow_pickle=True)
    assert taken(wanted, USUAL) == taken(Choice(), USUAL)
    assert taken(wanted, ["config.json", "pytorch_model.bin", "pytorch_model.bin.index.json", "optimizer.pt"]) == (
        "config.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    )


def test_the_models_own_code_is_taken_where_it_is_trusted() -> None:
    assert "modeling_own.py" in taken(Choice(trust_remote_code=True), USUAL)


@pytest.mark.parametrize(("key", "pattern"), [("allow_pickle", "*.bin"), ("trust_remote_code", "*.py")])
def test_what_can_run_code_is_not_included_without_its_key(key: str, pattern: str) -> None:
    (told,) = _told(_entry(include=[pattern]))
    assert told == f"models.m.include: '{pattern}' can run code when it is loaded"
    assert _told(_entry(include=[pattern], **{key: True})) == []


def test_a_choice_without_weights_or_settings_is_told() -> None:
    assert _told(_entry(), "config.json", "model.safetensors") == []
    assert _told(_entry(), "model.gguf") == [
        "models.m.source: has no config.json",
        "models.m.source: has no *.safetensors",
    ]
    assert _told(_entry(exclude=["*.safetensors"]), "config.json", "model.safetensors")
    assert _told(_entry(allow_pickle=True), "config.json", "pytorch_model.bin") == []


def test_pickled_weights_alone_say_what_would_take_them() -> None:
    files = (Held("config.json", 1, "1" * 64), Held("pytorch_model.bin", 1, "1" * 64))
    (problem,) = problems("models.m", _entry(), files)
    assert problem.hint.startswith("allow_pickle = true")


def test_a_tiny_source_has_no_files_to_choose_from() -> None:
    assert _told(_entry(source="tiny:qwen2", trust_remote_code=True))
    assert _told(_entry(source="tiny:qwen2")) == []


def test_a_tool_is_told_nothing_of_the_usual_choice() -> None:
    assert choice(_entry()).arguments() == ()
    said = choice(_entry(include=["a"], exclude=["b"], allow_pickle=True, trust_remote_code=True)).arguments()
    assert said == ("--include=a", "--exclude=b", "--allow-pickle", "--trust-remote-code")
