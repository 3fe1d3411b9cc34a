"""Sources: what can be written, and what a config.json says."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rules.errors import Problem
from rules.locked import Held, Locked
from rules.source import HUB, TINY, Dims, Facts, Source, dims, facts, parse, tokenizer_facts

WIDTHS = ("hidden_size", "intermediate_size", "n_embd", "n_inner", "model_type", "vocab_size", "tie_word_embeddings")
FIELDS = ("num_attention_heads", "num_key_value_heads", "num_hidden_layers", "max_position_embeddings")


@pytest.mark.parametrize("name", sorted(TINY))
def test_every_tiny_model_is_a_source(name: str) -> None:
    assert parse(f"tiny:{name}") == Source(scheme="tiny", where=name)


def test_a_path_may_hold_colons_and_spaces() -> None:
    assert parse("file:/my models/a:b") == Source(scheme="file", where="/my models/a:b")


@pytest.mark.parametrize("text", ["", "qwen2", "tiny", "tiny:", "hub:x", ":x", "File:x"])
def test_anything_else_is_a_problem_with_a_hint(text: str) -> None:
    found = parse(text)
    assert isinstance(found, Problem)
    assert found.what == f"{text!r} is not a source"
    assert found.hint == "write tiny:... or file:... or hf:... or modelscope:... or s3:..."


@pytest.mark.parametrize(
    ("text", "where", "revision"),
    [
        ("hf:Qwen/Qwen2-7B", "Qwen/Qwen2-7B", "main"),
        ("hf:gpt2@v1.0", "gpt2", "v1.0"),
        ("hf:a/b@refs/pr/1", "a/b", "refs/pr/1"),
    ],
)
def test_a_model_on_the_hub_has_a_revision(text: str, where: str, revision: str) -> None:
    assert parse(text) == Source(scheme="hf", where=where, revision=revision)


@pytest.mark.parametrize("text", ["hf:a/b/c", "hf:a b", "hf:/b", "hf:a/b@", "hf:../b/c"])
def test_what_is_no_name_on_the_hub_is_told(text: str) -> None:
    found = parse(text)
    assert isinstance(found, Problem)
    assert found.hint == "write hf:ORG/NAME or hf:ORG/NAME@REVISION"


def test_dimensions_of_known_models_are_there_before_they_are_downloaded() -> None:
    known = dims(Source(scheme="hf", where="Qwen/Qwen2-72B-Instruct", revision="main"), Path())
    assert isinstance(known, Dims)
    assert (known.heads, known.kv_heads, known.layers, known.hidden, known.family) == (64, 8, 80, 8192, "qwen2")
    other = dims(Source(scheme="hf", where="org/other", revision="main"), Path())
    assert other == Dims(heads=0, kv_heads=0, layers=0, max_positions=0)


def test_an_unknown_tiny_model_names_the_nearest() -> None:
    found = parse("tiny:qwen")
    assert isinstance(found, Problem)
    assert found.hint == "did you mean 'qwen2'?"


def _config(folder: Path, **fields: object) -> Source:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(fields))
    return Source(scheme="file", where=folder.name)


@pytest.mark.parametrize("nonsense", [-1, 0, 1 << 63, True, 2.5, "64", None, [64]])
def test_what_is_no_count_is_as_if_it_were_not_said(tmp_path: Path, nonsense: object) -> None:
    where = _config(tmp_path / "c", num_attention_heads=nonsense, n_head=12, num_hidden_layers=nonsense)
    assert dims(where, tmp_path) == Dims(heads=12, kv_heads=12, layers=0, max_positions=0)


@pytest.mark.parametrize("factor", [float("inf"), float("nan"), -2, "2"])
def test_a_factor_that_is_none_scales_nothing(tmp_path: Path, factor: object) -> None:
    where = _config(tmp_path / "c", n_positions=512, rope_scaling={"type": "linear", "factor": factor})
    assert dims(where, tmp_path) == Dims(heads=0, kv_heads=0, layers=0, max_positions=512)


def test_dimensions_come_from_llama_like_names(tmp_path: Path) -> None:
    where = _config(
        tmp_path / "c",
        num_attention_heads=64,
        num_key_value_heads=8,
        num_hidden_layers=80,
        max_position_embeddings=32768,
    )
    assert dims(where, tmp_path) == Dims(heads=64, kv_heads=8, layers=80, max_positions=32768)


def test_dimensions_come_from_gpt2_names(tmp_path: Path) -> None:
    where = _config(tmp_path / "c", n_head=12, n_layer=6, n_positions=1024)
    assert dims(where, tmp_path) == Dims(heads=12, kv_heads=12, layers=6, max_positions=1024)


def test_dimensions_come_from_the_text_part_of_a_multimodal_model(tmp_path: Path) -> None:
    where = _config(tmp_path / "c", text_config={"num_attention_heads": 16, "num_hidden_layers": 2})
    assert dims(where, tmp_path) == Dims(heads=16, kv_heads=16, layers=2, max_positions=0)


def test_what_the_config_does_not_say_is_zero(tmp_path: Path) -> None:
    assert dims(_config(tmp_path / "c"), tmp_path) == Dims(heads=0, kv_heads=0, layers=0, max_positions=0)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"x"', b"\xff\xfe"])
def test_an_unreadable_config_is_a_problem_not_a_traceback(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    found = dims(Source(scheme="file", where="."), tmp_path)
    assert isinstance(found, Problem)
    assert "cannot be read" in found.what
    assert "config.json" in found.hint


def test_a_missing_config_is_a_problem_that_says_what_a_checkpoint_is(tmp_path: Path) -> None:
    found = dims(Source(scheme="file", where="nowhere"), tmp_path)
    assert isinstance(found, Problem)
    assert found.what == f"{tmp_path}/nowhere/config.json does not exist"
    assert "*.safetensors" in found.hint


@pytest.mark.slow
@pytest.mark.parametrize("architecture", sorted(TINY))
def test_tiny_dimensions_are_those_that_the_tool_makes(project: Path, architecture: str) -> None:
    """rules/tools may not import rules, so the numbers stand twice."""
    tool = runpy.run_path(str(project / "rules" / "tools" / "tiny.py"))
    tokenizer = SimpleNamespace(bos_token_id=0, eos_token_id=1, pad_token_id=2)
    made = tool["_configuration"](architecture, tokenizer)
    config: dict[str, Any] = {name: getattr(made, name, None) for name in (*FIELDS, *WIDTHS)}
    width, heads = config["hidden_size"], config["num_attention_heads"]
    assert TINY[architecture] == Dims(
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"] or config["num_attention_heads"],
        layers=config["num_hidden_layers"],
        max_positions=config["max_position_embeddings"],
        hidden=config["hidden_size"],
        intermediate=config["intermediate_size"] or 4 * config["hidden_size"],
        family=config["model_type"],
        head_size=width // heads,
        vocab=config["vocab_size"],
        tied=config["tie_word_embeddings"],
    )


def test_every_config_that_is_carried_says_where_it_was_read() -> None:
    carried = json.loads(HUB.read_text(encoding="utf-8"))
    assert all(len(config["_source"]) > 20 for config in carried.values())


@pytest.mark.parametrize(
    ("text", "name", "where"),
    [
        ("hf:o/n", "hf:o/n@main", "o/n"),
        ("hf:o/n@v1", "hf:o/n@v1", "o/n"),
        ("modelscope:O/N", "modelscope:O/N@master", "O/N"),
        ("modelscope:O/N@v1.0.0", "modelscope:O/N@v1.0.0", "O/N"),
        ("s3://bucket/models/m/", "s3://bucket/models/m", "bucket/models/m"),
        ("s3://bucket", "s3://bucket", "bucket"),
    ],
)
def test_a_source_elsewhere_has_one_name_in_models_lock(text: str, name: str, where: str) -> None:
    found = parse(text)
    assert isinstance(found, Source)
    assert (found.name, found.where) == (name, where)


@pytest.mark.parametrize(
    "text",
    [
        "modelscope:name",
        "modelscope:a/b@",
        "s3:bucket",
        "s3://",
        "s3://b/../c",
        "s3://key@b/p",
        "s3://b/p?x=1",
        "s3://B/p",
    ],
)
def test_what_is_no_name_elsewhere_is_told_with_how_it_is_written(text: str) -> None:
    found = parse(text)
    assert isinstance(found, Problem)
    assert found.hint.startswith(f"write {text.partition(':')[0]}:")


LOCKED = Locked(
    commit="c0ffee",
    files=(Held("config.json", 2, "1" * 64),),
    config={"num_attention_heads": 6, "num_hidden_layers": 7},
    generation={"eos_token_id": 1},
    tokenizer={"files": ["tokenizer.json"]},
)


def test_what_is_locked_goes_before_what_we_knew() -> None:
    where = Source(scheme="hf", where="Qwen/Qwen2-7B", revision="main")
    before, after = facts(where, Path()), facts(where, Path(), {where.name: LOCKED})
    assert isinstance(before, Facts)
    assert isinstance(after, Facts)
    assert (before.config["num_hidden_layers"], before.files, before.pinned) == (28, (), False)
    assert (after.config, after.files, after.pinned) == (LOCKED.config, LOCKED.files, True)
    assert (after.generation, after.tokenizer) == (LOCKED.generation, LOCKED.tokenizer)
    found = dims(where, Path(), {where.name: LOCKED})
    assert isinstance(found, Dims)
    assert (found.heads, found.layers) == (6, 7)


def test_a_folder_on_disk_has_the_same_facts(tmp_path: Path) -> None:
    where = _config(tmp_path / "c", model_type="llama")
    (tmp_path / "c" / "tokenizer.json").write_text("{}")
    (tmp_path / "c" / "tokenizer_config.json").write_text('{"eos_token": {"content": "<e>"}, "chat_template": "x"}')
    (tmp_path / "c" / "generation_config.json").write_text('{"eos_token_id": 2}')
    found = facts(where, tmp_path)
    assert isinstance(found, Facts)
    assert found.generation == {"eos_token_id": 2}
    assert found.tokenizer is not None
    assert (found.tokenizer["eos_token"], found.tokenizer["chat_template"]) == ("<e>", True)
    assert [held.path for held in found.files] == sorted(path.name for path in (tmp_path / "c").iterdir())


def test_a_tokenizer_has_a_file() -> None:
    assert tokenizer_facts(["config.json"], {"eos_token": "<e>"}) is None
    found = tokenizer_facts(["tokenizer.model", "chat_template.jinja"], {})
    assert found is not None
    assert found["chat_template"] is True
