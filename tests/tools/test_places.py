"""Reading from a hub: what is asked of whom, and messages without secrets. tests/tools/test_hub.py has the faults."""

from __future__ import annotations

import hashlib
import runpy
from types import SimpleNamespace
from typing import Any

import pytest

from tests.fakes import PROJECT
from tests.hub import Hub, Repository, checkpoint, running

PLACES = runpy.run_path(str(PROJECT / "rules" / "tools" / "places.py"))


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


def test_a_range_is_read_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(Hub({"o/n": Repository(files=checkpoint())})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        content = hub.repositories["o/n"].files["model.safetensors"]
        file = SimpleNamespace(path="model.safetensors", size=len(content), sha256=hashlib.sha256(content).hexdigest())
        place = PLACES["connect"]("hf:o/n@" + hub.repositories["o/n"].commit)
        assert b"".join(place.read(file, 10, 20_000)) == content[10:20_000]
        assert b"".join(place.read(file, 20_000, len(content))) == content[20_000:]
        place.close()
        assert [it.host for it in hub.requests] == ["hub", "cdn", "cdn"], "where the bytes are is asked once"


def test_names_of_files_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9/")
    url = PLACES["connect"]("modelscope:o/n@a/b").url("folder/a b&c.json")
    assert url == "http://127.0.0.1:9/api/v1/models/o/n/repo?Revision=a%2Fb&FilePath=folder%2Fa%20b%26c.json"
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert PLACES["connect"]("hf:o/n@c").url("a b?.json") == "http://127.0.0.1:9/o/n/resolve/c/a%20b%3F.json"


@pytest.mark.parametrize("name", ["hf:o/n@c", "modelscope:o/n@c"])
def test_offline_is_said_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "true")
    with pytest.raises(RuntimeError, match="HF_HUB_OFFLINE is set"):
        PLACES["connect"](name)


def test_a_message_has_neither_queries_nor_addresses_of_objects() -> None:
    error: Any = ValueError("<urllib3.X object at 0x7f00>: http://h/p?Signature=abc broke\nmore")
    assert PLACES["scrub"](error) == "http://h/p broke"
    assert PLACES["scrub"](TimeoutError()) == "TimeoutError"
