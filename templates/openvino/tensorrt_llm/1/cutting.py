"""Where a growing answer may be cut: at complete characters, and never inside what may become a stop word.

Streamed pieces are detokenised apart, so they add up to the whole text only if each ends where the characters do.
Bytes are looked up per token; nothing is detokenised here, and the work per token does not grow with the answer.
"""

from __future__ import annotations

import codecs

from pieces import Pieces


class StopWords:
    """Words to look for in the text, and id sequences without text (special tokens) to look for in the ids."""

    def __init__(self, words: tuple[tuple[int, ...], ...], pieces: Pieces) -> None:
        pairs = [(pieces.word(ids), ids) for ids in words if ids]
        self.texts = tuple({text for text, _ in pairs if text})
        self.ids = tuple(ids for text, ids in pairs if not text)
        self.longest = max(map(len, self.texts), default=0)
        self._heads = {text[:length] for text in self.texts for length in range(1, len(text))}
        self._first = {text[0] for text in self.texts}

    def find(self, text: bytearray, start: int) -> int | None:
        """Where the first word begins that lies at or behind `start`."""
        places = [place for word in self.texts if (place := text.find(word, max(start, 0))) >= 0]
        return min(places, default=None)

    def undecided(self, text: bytearray) -> int:
        """How many bytes at the end may be the head of a word."""
        for place in range(max(len(text) - self.longest + 1, 0), len(text)):
            if text[place] in self._first and bytes(text[place:]) in self._heads:
                return len(text) - place
        return 0


class Cutter:
    """The ids of one answer. `safe` of them may be sent; after `stopped` no more belong to it."""

    def __init__(self, pieces: Pieces, stops: StopWords) -> None:
        self.ids: list[int] = []
        self.safe = 0
        self.stopped = False
        self._unsettled = False
        self.pieces = pieces
        self._stops = stops
        self._text = bytearray()
        self._ends: list[int] = []  # where each id's bytes end in the text
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> None:
        """Take the next id; it may complete a stop word, which is then cut off."""
        piece, unsettled = self.pieces[token]
        if piece:  # a token without text is skipped in detokenising, and does not settle what went before
            self._unsettled = unsettled
        self.ids.append(token)
        before = len(self._text)
        self._text += piece
        self._ends.append(len(self._text))
        self._utf8.decode(piece)
        if self._stops.texts or self._stops.ids:
            self._stop(before)
        begun = bool(self._text) or not self.pieces.strips_first_space
        if begun and not (self.stopped or self._unsettled or self._utf8.getstate()[0]):
            self.safe = max(self.safe, self._undecided())

    def _undecided(self) -> int:
        """Ids before those that may turn out to be a stop word."""
        limit = len(self._text) - self._stops.undecided(self._text)
        count = len(self.ids)
        while count and self._ends[count - 1] > limit:
            count -= 1
        return count

    def _stop(self, before: int) -> None:
        for ids in self._stops.ids:
            if tuple(self.ids[-len(ids) :]) == ids:
                return self._cut(len(self.ids) - len(ids), b"")
        place = self._stops.find(self._text, before - self._stops.longest + 1)
        if place is not None:
            kept = sum(end <= place for end in self._ends)
            start = self._ends[kept - 1] if kept else 0
            self._cut(kept, bytes(self._text[start:place]))
        return None

    def _cut(self, kept: int, rest: bytes) -> None:
        """Keep `kept` ids, and of the next the bytes before the stop word, spelt out."""
        self.ids = [*self.ids[:kept], *self.pieces.ids(rest)]
        self.stopped = True
