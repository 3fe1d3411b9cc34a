"""`doit lock`: every file of every hub's model by commit and SHA-256, drift by name, and never a token."""

from __future__ import annotations

import hashlib
import json
import signal
import socket
from collections.abc import Iterator

import pytest

from rules import locked, source
from rules.commands import lock
from rules.commands.lock import differences
from rules.hubs.huggingface import HuggingFace
from rules.locked import Held, Locked
from rules.source import Source
from tests.hub import TOKEN, Hub, Repository, checkpoint, running
from tests.space import HEAD, Result, Space

MODEL = """
[models.{name}]
source = "{source}"
toolchain = "cpu"
precisions = ["fp32"]
shapes = [{{ batch = 8, isl = 256, osl = 64 }}]
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running(Hub({"o/n": Repository(files=checkpoint())})) as found:
        yield found


def _lock(space: Space, hub: Hub, *args: str, **env: str) -> Result:
    return space.run("lock", *args, **hub.env(), **env)


def _sources(space: Space) -> dict[str, Locked]:
    found, problems = locked.read(space.read("models.lock"))
    assert problems == []
    return found


@pytest.fixture
def both(workspace: Space) -> Space:
    """Two models of the same files, from two hubs, and one that is made here."""
    entries = {"a": "hf:o/n", "b": "modelscope:o/n", "c": "tiny:qwen2"}
    workspace.write("models.toml", HEAD + "".join(MODEL.format(name=name, source=it) for name, it in entries.items()))
    return workspace


def test_every_source_on_a_hub_is_pinned_to_a_commit_and_every_file_to_its_sha256(both: Space, hub: Hub) -> None:
    result = _lock(both, hub)
    assert result.rc == 0, result.err
    found = _sources(both)
    files = hub.repositories["o/n"].files
    wanted = tuple(Held(path, len(it), hashlib.sha256(it).hexdigest()) for path, it in sorted(files.items()))
    assert set(found) == {"hf:o/n@main", "modelscope:o/n@master"}
    assert {it.commit for it in found.values()} == {hub.repositories["o/n"].commit}
    assert all(it.files == wanted for it in found.values())
    assert "hf:o/n@main: c0ffee00c0ff, 7 files" in result.out
    assert "    a takes 5 files" in result.out


def test_the_small_texts_that_a_plan_needs_are_there(both: Space, hub: Hub) -> None:
    _lock(both, hub)
    held = _sources(both)["hf:o/n@main"]
    assert held.config == json.loads(hub.repositories["o/n"].files["config.json"])
    assert held.generation == {"eos_token_id": [1, 2]}
    assert held.tokenizer is not None
    assert held.tokenizer["files"] == ["tokenizer.json"]
    assert held.tokenizer["chat_template"] is True
    assert held.tokenizer["eos_token"] == "<end>"


def test_locking_again_changes_no_byte_and_reads_no_file(both: Space, hub: Hub) -> None:
    _lock(both, hub)
    before = both.read("models.lock")
    hub.requests.clear()
    assert _lock(both, hub).rc == 0
    assert both.read("models.lock") == before
    assert not [it for it in hub.requests if "resolve" in it.path or "FilePath" in it.path]
    assert _lock(both, hub, "--check").rc == 0


def test_a_moved_branch_is_told_file_by_file_and_written_only_without_check(both: Space, hub: Hub) -> None:
    _lock(both, hub)
    before = both.read("models.lock")
    moved = hub.repositories["o/n"]
    moved.commit = "beef" * 10
    moved.files["config.json"] += b"\n"
    moved.files["chat_template.jinja"] = b"{{ x }}"
    del moved.files["README.md"]
    result = _lock(both, hub, "--check")
    assert result.rc == 1
    for line in ("commit c0ffee00c0ff -> beefbeefbeef", "- README.md", "+ chat_template.jinja", "~ config.json"):
        assert f"    {line}\n" in result.out
    assert both.read("models.lock") == before
    assert _lock(both, hub).rc == 0
    assert _sources(both)["hf:o/n@main"].commit == "beef" * 10


def test_one_model_may_be_locked_and_sources_that_nobody_names_go(both: Space, hub: Hub) -> None:
    assert _lock(both, hub, "a").rc == 0
    assert set(_sources(both)) == {"hf:o/n@main"}
    both.write("models.toml", HEAD + MODEL.format(name="b", source="modelscope:o/n"))
    result = _lock(both, hub)
    assert "hf:o/n@main: no model has this source any more" in result.out
    assert set(_sources(both)) == {"modelscope:o/n@master"}


def test_all_refusals_are_told_and_the_others_are_locked(both: Space, hub: Hub) -> None:
    entries = both.read("models.toml") + MODEL.format(name="d", source="hf:o/gone")
    both.write("models.toml", entries + MODEL.format(name="e", source="hf:o/n@nope"))
    result = _lock(both, hub)
    assert result.rc == 1
    assert "error: hf:o/gone is not there, or not for us" in result.err
    assert "error: hf:o/n has no revision 'nope'" in result.err
    assert set(_sources(both)) == {"hf:o/n@main", "modelscope:o/n@master"}


def test_a_gated_model_wants_a_token_before_any_file_of_any_model_is_read(both: Space, hub: Hub) -> None:
    hub.repositories["o/gated"] = Repository(files=checkpoint(), gated=True)
    both.write("models.toml", both.read("models.toml") + MODEL.format(name="g", source="hf:o/gated"))
    result = _lock(both, hub)
    assert result.rc == 1
    assert "hf:o/gated is gated, and we may not read it" in result.err
    assert _lock(both, hub, HF_TOKEN=TOKEN).rc == 0
    assert _sources(both)["hf:o/gated@main"].gated
    assert TOKEN not in both.read("models.lock")


def test_a_pointer_in_the_place_of_weights_is_refused(both: Space, hub: Hub) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    hub.repositories["o/n"].files["model.safetensors"] = pointer
    result = _lock(both, hub, "a")
    assert result.rc == 1
    assert "model.safetensors is a Git LFS pointer, not the file" in result.err
    assert not (both.root / "models.lock").exists()


def test_a_wrong_name_and_a_lock_that_cannot_be_read_are_configuration_mistakes(both: Space, hub: Hub) -> None:
    assert _lock(both, hub, "aa").rc == 3
    assert "only hf:, modelscope: and s3: sources are locked" in _lock(both, hub, "c").err
    both.write("models.lock", "<<<<<<< HEAD\n")
    result = _lock(both, hub)
    assert result.rc == 3
    assert "models.lock cannot be read" in result.err
    assert both.run("list").rc == 3


def test_offline_says_that_nothing_can_be_locked(both: Space, hub: Hub) -> None:
    result = _lock(both, hub, "a", HF_HUB_OFFLINE="1")
    assert result.rc == 1
    assert "with HF_HUB_OFFLINE nothing can be locked" in result.err
    assert not hub.requests


def test_a_source_that_is_new_has_no_differences() -> None:
    assert differences(None, Locked(commit="1", files=())) == []


def test_a_hub_that_nobody_answers_at_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    away = HuggingFace("http://127.0.0.1:9", patience_s=0.0)
    monkeypatch.setattr(lock, "connect", lambda _scheme, _heard: away)
    sources = {text: source.parse(text) for text in ("hf:o/n", "hf:o/m")}
    found, refused = lock._ask({name: it for name, it in sources.items() if isinstance(it, Source)}, {})
    assert not found
    assert [problem.what for problem in refused] == [
        "hf:o/n could not be asked",
        "hf:o/m was not asked for: its hub does not answer",
    ]


def test_ctrl_c_while_a_hub_is_waited_for_is_a_word_and_no_traceback(workspace: Space) -> None:
    """A hub that takes the question and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        workspace.write("models.toml", HEAD + MODEL.format(name="a", source="hf:o/n"))
        process = workspace.start("lock", HF_ENDPOINT=f"http://127.0.0.1:{silent.getsockname()[1]}")
        silent.settimeout(60)
        with silent.accept()[0]:
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "interrupted\n")
