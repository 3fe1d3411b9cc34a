"""Streams are cut where the text of the pieces is the text of the whole, and stop words never show."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

TOKENIZERS = ("byte_level", "sentence_piece")
TEXT = "hello 你好 👩‍👩‍👧 wörld w"


class Lane:
    """A tokenizer with the engine's view of it."""

    def __init__(self, modules: Any, folder: Path) -> None:
        self.modules = modules
        self.tokenizer = modules.tokenizing.Tokenizer(folder)
        self.pieces = modules.pieces.Pieces(folder, self.tokenizer)

    def cutter(self, *stop: str) -> Any:
        words = tuple(tuple(self.tokenizer.encode(word, special=False)) for word in stop)
        return self.modules.cutting.Cutter(self.pieces, self.modules.cutting.StopWords(words, self.pieces))

    def text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special=True))

    def streamed(self, ids: list[int], *stop: str) -> list[str]:
        """The text of each response, made of its ids alone, as postprocessing makes it."""
        cutter, sent, pieces = self.cutter(*stop), 0, []
        for token in ids:
            cutter.add(token)
            if cutter.safe > sent and not cutter.stopped:
                pieces.append(self._piece(cutter.ids, sent, cutter.safe))
                sent = cutter.safe
            if cutter.stopped:
                break
        return [*pieces, self._piece(cutter.ids, sent, len(cutter.ids))]

    def _piece(self, ids: list[int], start: int, end: int) -> str:
        more = self.tokenizer.decode_more if start else self.tokenizer.decode
        return str(more(ids[start:end], skip_special=True))


@pytest.fixture(params=TOKENIZERS)
def lane(request: pytest.FixtureRequest, modules: Any) -> Lane:
    return Lane(modules, request.getfixturevalue(request.param))


def test_pieces_add_up_to_the_text_and_none_is_broken(lane: Lane) -> None:
    ids = lane.tokenizer.encode(TEXT, special=False)
    pieces = lane.streamed(ids)
    assert "".join(pieces) == lane.text(ids) == TEXT
    assert not [piece for piece in pieces if "\ufffd" in piece]
    assert len(pieces) > 5


@pytest.mark.parametrize("seed", range(30))
def test_any_ids_stream_as_they_read(lane: Lane, seed: int) -> None:
    chance = random.Random(seed)
    ids = [chance.randrange(lane.tokenizer.size) for _ in range(60)]
    assert "".join(lane.streamed(ids)) == lane.text(ids)


@pytest.mark.parametrize("lane", ["sentence_piece"], indirect=True)  # which alone drops it
def test_a_beginning_space_is_dropped_once_and_only_at_the_beginning(lane: Lane) -> None:
    ids = [lane.tokenizer.id(token) for token in ("\u2581w", "\u2581w")]
    assert lane.streamed(ids)[:2] == ["w", " w"]


@pytest.mark.parametrize("lane", ["sentence_piece"], indirect=True)
def test_a_stream_does_not_begin_with_a_response_without_text(lane: Lane) -> None:
    ids = [lane.tokenizer.id("<s>"), lane.tokenizer.id("\u2581w"), lane.tokenizer.id("\u2581w")]
    assert "".join(lane.streamed(ids)) == lane.text(ids) == "w w"


def test_text_ends_right_before_a_stop_word_in_the_middle_of_a_token(lane: Lane) -> None:
    ids = lane.tokenizer.encode("hello wide world", special=False)
    assert "".join(lane.streamed(ids, "ide")) == "hello w"
    assert "".join(lane.streamed(ids, "w")) == "hello "


def test_what_may_become_a_stop_word_waits_and_then_comes(lane: Lane) -> None:
    cutter = lane.cutter("lover")
    for token in lane.tokenizer.encode("hello", special=False):
        cutter.add(token)
    assert lane.text(cutter.ids[: cutter.safe]) == "hel"
    cutter.add(lane.tokenizer.encode("x", special=False)[-1])
    assert cutter.safe == len(cutter.ids)


def test_the_first_of_several_stop_words_ends_the_text(lane: Lane) -> None:
    ids = lane.tokenizer.encode("one two three", special=False)
    assert "".join(lane.streamed(ids, "three", "tw", "zzz")) == "one "


def test_a_stop_word_of_many_bytes_is_found(lane: Lane) -> None:
    ids = lane.tokenizer.encode("say 你好 again", special=False)
    assert "".join(lane.streamed(ids, "你好")) == "say "


def test_a_special_token_can_be_a_stop_word(lane: Lane) -> None:
    special = lane.tokenizer.size - 1 if lane.tokenizer.id("<s>") is None else lane.tokenizer.id("<s>")
    words = lane.modules.cutting.StopWords(((special,),), lane.pieces)
    cutter = lane.modules.cutting.Cutter(lane.pieces, words)
    for token in [*lane.tokenizer.encode("ab", special=False), special]:
        cutter.add(token)
    assert cutter.stopped
    assert lane.text(cutter.ids) == "ab"


def test_an_id_beyond_the_tokenizer_is_no_text_and_no_error(lane: Lane) -> None:
    cutter = lane.cutter()
    cutter.add(lane.tokenizer.size + 1000)
    cutter.add(lane.tokenizer.encode("a", special=False)[-1])
    assert cutter.safe == 2
