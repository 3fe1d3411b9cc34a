"""The bytes that each token id stands for, so that text can be cut without detokenising it again and again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizing import Tokenizer

SPACE = "\u2581"  # SentencePiece writes a space as this mark


def byte_alphabet() -> dict[str, int]:
    """Character -> byte of GPT-2's byte-level BPE: printable Latin-1 stands for itself, the rest follows from 256."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


class Pieces:
    """Bytes of an id, and ids of bytes. Special tokens have no bytes: they are not text."""

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        path = folder / "tokenizer.json"
        declared: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        decoders = json.dumps(declared.get("decoder"))
        self._tokenizer = tokenizer
        self._alphabet = byte_alphabet() if '"ByteLevel"' in decoders else {}
        self._fallback = '"ByteFallback"' in decoders
        self._plain = bool(self._alphabet) or self._fallback or '"Metaspace"' in decoders
        self.strips_first_space = not self._alphabet  # so the first response must hold the first text
        self._special = {token["id"] for token in declared.get("added_tokens", []) if token["special"]}
        self._known: dict[int, tuple[bytes, bool]] = {}

    def __getitem__(self, token: int) -> tuple[bytes, bool]:
        """The id's bytes, and whether what follows may change how they are read."""
        found = self._known.get(token)
        if found is None:
            found = self._known[token] = self._look_up(token)
        return found

    def _look_up(self, token: int) -> tuple[bytes, bool]:
        text = self._tokenizer.token(token)
        if text is None or token in self._special:
            return b"", False
        if not self._plain:
            shown = self._tokenizer.decode_more([token], skip_special=True)
            return shown.encode(), shown.endswith("\ufffd")
        if self._alphabet:
            known = all(character in self._alphabet for character in text)
            return bytes(self._alphabet[character] for character in text) if known else text.encode(), False
        if self._fallback and len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            return bytes([int(text[3:5], 16)]), True
        return text.replace(SPACE, " ").encode(), False

    def ids(self, text: bytes) -> list[int]:
        """One id per byte, or none at all if the vocabulary lacks one."""
        letters = {byte: letter for letter, byte in self._alphabet.items()}
        names = [letters[byte] if letters else f"<0x{byte:02X}>" for byte in text]
        found = [self._tokenizer.id(name) for name in names]
        return [token for token in found if token is not None] if None not in found else []

    def word(self, ids: tuple[int, ...]) -> bytes:
        """The bytes of a stop word: its text where it is text, else its bytes."""
        text = self._tokenizer.decode(list(ids), skip_special=True)
        return b"".join(self[token][0] for token in ids) if "\ufffd" in text else text.encode()
