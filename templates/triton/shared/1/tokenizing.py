"""The tokenizer of a model directory: the light `tokenizers` library where tokenizer.json exists, else transformers.

Importing transformers costs a server seconds of start and half a gigabyte per process.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TRUE = ("true", "1", "t", "y", "yes")
FALSE = ("false", "0", "f", "n", "no")
PROBES = "abcdefghijklmnopqrstuvwxyz0123456789"


def parameter(model_config: dict[str, Any], name: str) -> str:
    """A parameter of config.pbtxt; empty or an unfilled ${name} is upstream's word for unset."""
    value = str(model_config["parameters"].get(name, {}).get("string_value", ""))
    return "" if value.startswith("${") else value


def flag(model_config: dict[str, Any], name: str, *, default: bool) -> bool:
    """A yes/no parameter in upstream's spellings. Raises ValueError for another word."""
    word = parameter(model_config, name).strip().lower()
    if word and word not in TRUE + FALSE:
        raise ValueError(f"parameter {name} is {word!r}: say true or false")
    return word in TRUE if word else default


def directory(args: dict[str, str], model_config: dict[str, Any], name: str) -> Path:
    """A directory named by a parameter; a relative one starts at the model's own directory, so it can be moved."""
    return Path(args["model_repository"]) / parameter(model_config, name)


class Tokenizer:
    """Text to ids and back. `end_id` and `pad_id` are None where the tokenizer declares none."""

    def __init__(self, folder: Path) -> None:
        self._fast: Any = None
        self._slow: Any = None
        if (folder / "tokenizer.json").is_file():
            import tokenizers

            self._fast = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
            self._fast.no_truncation()
            self._fast.no_padding()
            declared = _declared_specials(folder)
            self.end_id = self.id(declared.get("eos_token", ""))
            self.pad_id = self.id(declared.get("pad_token", ""))
        else:
            from transformers import AutoTokenizer

            self._slow = AutoTokenizer.from_pretrained(folder, local_files_only=True, padding_side="left")
            self.end_id, self.pad_id = self._slow.eos_token_id, self._slow.pad_token_id
        self._anchor = self._find_anchor()

    @property
    def size(self) -> int:
        """Ids in the vocabulary, added tokens included."""
        return int(self._fast.get_vocab_size()) if self._fast is not None else len(self._slow)

    def id(self, token: str) -> int | None:
        """The id that the vocabulary gives to a token."""
        found = self._slow.get_vocab().get(token) if self._fast is None else self._fast.token_to_id(token)
        return None if found is None else int(found)

    def token(self, number: int) -> str | None:
        """The token as the vocabulary writes it, or None for an id that it lacks."""
        decoder = self._slow if self._fast is None else self._fast
        found = decoder.convert_ids_to_tokens(number) if self._fast is None else decoder.id_to_token(number)
        return None if found is None else str(found)

    def encode(self, text: str, *, special: bool) -> list[int]:
        """The ids of `text`, with the tokenizer's special tokens if asked."""
        if self._fast is not None:
            return list(self._fast.encode(text, add_special_tokens=special).ids)
        return list(self._slow.encode(text, add_special_tokens=special))

    def decode(self, ids: list[int], *, skip_special: bool) -> str:
        """The text of `ids` as the beginning of a text (a SentencePiece tokenizer drops its leading space)."""
        decoder = self._slow if self._fast is None else self._fast
        return str(decoder.decode(ids, skip_special_tokens=skip_special))

    def decode_more(self, ids: list[int], *, skip_special: bool) -> str:
        """The text of `ids` as a continuation: decoded behind a known letter, which is then cut off."""
        text = self.decode([*self._anchor, *ids], skip_special=skip_special)
        return text[1:] if self._anchor else text

    def _find_anchor(self) -> list[int]:
        """One id that decodes to exactly one letter, or none if the vocabulary has no such."""
        for letter in PROBES:
            known = self.id(letter)
            for ids in ([] if known is None else [known], self.encode(letter, special=False)):
                if len(ids) == 1 and self.decode(ids, skip_special=False) == letter:
                    return ids
        return []


def _declared_specials(folder: Path) -> dict[str, str]:
    """eos_token, pad_token, ... of tokenizer_config.json and special_tokens_map.json, as plain strings."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            for key, value in json.loads((folder / name).read_text("utf-8")).items():
                token = value.get("content") if isinstance(value, dict) else value
                if key.endswith("_token") and isinstance(token, str):
                    found[key] = token
    return found
