"""What came once is not downloaded again, from whatever hub and with whatever other files it came."""

from __future__ import annotations

import json
from pathlib import Path

from rules import digest, pinned
from rules.action import Action, Pinned
from rules.store import Store

CONTENT = b"weights"
SHA256 = "ab" * 32
FILES = Pinned(place="hf:o/n@1", members=(("model.safetensors", len(CONTENT), SHA256),))
ACTION = Action(stage="source", argv=(), inputs=(("files", FILES),))


def _stored(tmp_path: Path) -> Store:
    store, made = Store(tmp_path / "store"), tmp_path / "made"
    made.mkdir()
    (made / "model.safetensors").write_bytes(CONTENT)
    pinned.index(store, ACTION, store.put("11" * 32, made, {}))
    return store


def test_a_file_that_the_store_has_is_named_with_its_digest(tmp_path: Path) -> None:
    elsewhere = Pinned(place="modelscope:O/N@2", members=(("other/name", len(CONTENT), SHA256), ("new", 1, "cd" * 32)))
    told = json.loads(pinned.listing(_stored(tmp_path), elsewhere))
    ((sha256, (path, content)),) = told["here"].items()
    assert (sha256, content) == (SHA256, digest.of_file(Path(path)))
    assert Path(path).read_bytes() == CONTENT
    assert told["files"] == [list(row) for row in elsewhere.members]


def test_a_file_that_the_store_lost_or_that_was_damaged_is_not_named(tmp_path: Path) -> None:
    store = _stored(tmp_path)
    ((path, _),) = json.loads(pinned.listing(store, FILES))["here"].values()
    Path(path).chmod(0o644)
    Path(path).write_bytes(b"damaged")
    assert json.loads(pinned.listing(store, FILES))["here"] == {}


def test_an_empty_store_has_nothing(tmp_path: Path) -> None:
    assert json.loads(pinned.listing(Store(tmp_path), FILES))["here"] == {}


def test_an_input_without_members_is_loose() -> None:
    assert pinned.loose(ACTION) == []
    assert pinned.loose(Action(stage="source", argv=(), inputs=(("f", Pinned(place="p", members=())),))) == ["p"]
