"""Fetching: a whole checkpoint comes over, and nothing that only looks like one does."""

from __future__ import annotations

import json
import runpy
import struct
import subprocess
from pathlib import Path

import pytest

from rules.taken import Choice, taken
from tests.fakes import PROJECT
from tests.made import Run
from tests.test_taken import USUAL


def _safetensors(path: Path, values: int = 4) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [values], "data_offsets": [0, 4 * values]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4 * values))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    _safetensors(folder / "model.safetensors")
    return folder


def _refusal(run_tool: Run, source: Path, out: Path) -> str:
    done = run_tool("fetch", "--source", source, "--out", out)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert "hint: " in done.stderr
    assert list(out.iterdir()) == []
    return str(done.stderr)


def test_settings_tokenizer_and_weights_come_over_and_pickles_stay(run_tool: Run, checkpoint: Path, out: Path) -> None:
    for name in ("pytorch_model.bin", "model.onnx", "training_args.pt", "README.md", "pytorch_model.bin.index.json"):
        (checkpoint / name).write_text("{}")
    (checkpoint / ".git").mkdir()
    done = run_tool("fetch", "--source", checkpoint, "--out", out)
    assert done.returncode == 0, done.stderr
    names = {path.name for path in out.iterdir()} - {"summary.txt"}
    assert names == {"config.json", "tokenizer.json", "model.safetensors"}
    assert all((out / name).read_bytes() == (checkpoint / name).read_bytes() for name in names)
    assert "pytorch_model.bin" in done.stdout


def test_everything_wrong_is_told_at_once(run_tool: Run, checkpoint: Path, out: Path) -> None:
    (checkpoint / "config.json").unlink()
    (checkpoint / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    whole = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(whole[:-1])
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    told = _refusal(run_tool, checkpoint, out)
    assert "config.json: missing" in told
    assert "tokenizer.json: is a Git LFS pointer" in told
    assert f"model.safetensors: has {len(whole) - 1} bytes, its header says {len(whole)}" in told
    assert "names missing shards: model-00002-of-00002.safetensors" in told


def test_pickled_weights_alone_are_refused_by_name(run_tool: Run, checkpoint: Path, out: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    assert "*.safetensors: missing, only pytorch_model.bin" in _refusal(run_tool, checkpoint, out)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x05\x00", struct.pack("<Q", 1 << 60), struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 4) + b"nope"],
    ids=["empty", "half a length", "huge header", "a list", "no JSON"],
)
def test_a_file_that_is_no_safetensors_is_refused(run_tool: Run, checkpoint: Path, out: Path, content: bytes) -> None:
    (checkpoint / "model.safetensors").write_bytes(content)
    assert "model.safetensors: " in _refusal(run_tool, checkpoint, out)


def test_a_missing_folder_is_refused(run_tool: Run, tmp_path: Path, out: Path) -> None:
    assert "is no folder" in _refusal(run_tool, tmp_path / "nowhere", out)


def test_links_of_a_hub_cache_become_files(run_tool: Run, checkpoint: Path, tmp_path: Path, out: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in checkpoint.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert run_tool("fetch", "--source", snapshot, "--out", out).returncode == 0
    assert not any(path.is_symlink() for path in out.iterdir())
    assert (out / "model.safetensors").read_bytes() == (checkpoint / "model.safetensors").read_bytes()


def test_a_later_edit_of_a_small_source_file_does_not_reach_the_copy(
    run_tool: Run, checkpoint: Path, out: Path
) -> None:
    before = (checkpoint / "config.json").read_text()
    assert run_tool("fetch", "--source", checkpoint, "--out", out).returncode == 0
    with (checkpoint / "config.json").open("r+") as file:
        file.write("edited")
    assert (out / "config.json").read_text() == before


def test_large_weights_take_no_second_space(run_tool: Run, checkpoint: Path, tmp_path: Path, out: Path) -> None:
    weights = checkpoint / "model.safetensors"
    _safetensors(weights, values=1 << 20)
    probe = subprocess.run(["cp", "--reflink=always", weights, tmp_path / "probe"], capture_output=True, check=False)
    if probe.returncode == 0:
        pytest.skip("this file system shares blocks, which no file's status shows")
    assert run_tool("fetch", "--source", checkpoint, "--out", out).returncode == 0
    assert (out / "model.safetensors").stat().st_ino == weights.stat().st_ino


def test_a_folder_is_chosen_from_as_a_hub_is() -> None:
    """rules/tools may not import rules, so the choice stands twice."""
    tool = runpy.run_path(str(PROJECT / "rules" / "tools" / "fetch.py"))["taken"]
    names = [*USUAL, "original/x.safetensors", "tokenizer.py"]
    for include in ((), ("original/*",), ("*",)):
        for exclude in ((), ("*.model", "config.json")):
            for pickle, code in ((False, False), (True, False), (False, True), (True, True)):
                wanted = Choice(include=include, exclude=exclude, allow_pickle=pickle, trust_remote_code=code)
                assert tool(wanted, names) == set(taken(wanted, names)), wanted
                bare = [name for name in names if not name.endswith(".safetensors")]
                assert tool(wanted, bare) == set(taken(wanted, bare)), wanted


def test_what_an_entry_includes_comes_and_what_it_excludes_stays(run_tool: Run, checkpoint: Path, out: Path) -> None:
    (checkpoint / "own").mkdir()
    for name in ("own/notes.txt", "README.md", "extra.json"):
        (checkpoint / name).write_text("{}")
    done = run_tool(
        "fetch", "--source", checkpoint, "--include=own/*", "--include=*.md", "--exclude=extra.*", "--out", out
    )
    assert done.returncode == 0, done.stderr
    assert (out / "own" / "notes.txt").exists()
    assert (out / "README.md").exists()
    assert not (out / "extra.json").exists()


def test_pickles_that_are_allowed_come_with_a_warning(run_tool: Run, checkpoint: Path, out: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    done = run_tool("fetch", "--source", checkpoint, "--allow-pickle", "--out", out)
    assert done.returncode == 0, done.stderr
    assert (out / "pytorch_model.bin").exists()
    assert "warning: pickled weights" in done.stdout
