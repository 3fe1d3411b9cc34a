"""What is sent: the user's prompts of a .jsonl, or made-up ones of given lengths; and how tokens are counted.

A line is `{"input" | "text_input" | "text" | "prompt": ..., "output" | "expected"?: ..., "max_tokens" |
"output_tokens"?: ...}`: the dialects of GenAI-Perf, AIPerf, trtllm-bench and of most files that people have.
"""

from __future__ import annotations

import functools
import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TEXT = ("input", "text_input", "text", "prompt")
EXPECTED = ("expected", "output")
LENGTH = ("max_tokens", "output_tokens")
_WORDS = 4000  # enough that no two prompts begin alike; more only takes longer to find

Encode = Callable[[str], Sequence[int]]


class Bad(Exception):
    """A prompt file or a tokenizer that cannot be used: the user's to mend."""


@dataclass(frozen=True)
class Prompt:
    """`max_tokens` is the length asked for; `input_tokens` are counted without special tokens."""

    text: str
    max_tokens: int
    expected: str | None = None
    input_tokens: int | None = None


def read(path: Path, max_tokens: int, column: str | None = None) -> list[Prompt]:
    """The prompts of a .jsonl, in order. Raises Bad with every line that is wrong."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise Bad(f"{path} cannot be read: {error}") from error
    found, wrong = [], []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                found.append(_prompt(json.loads(line), max_tokens, (column,) if column else TEXT))
            except (ValueError, TypeError) as error:
                wrong.append(f"line {number}: {error}")
    if wrong or not found:
        raise Bad("\n    ".join([f"{path} has {'lines that are no prompts' if wrong else 'no prompts'}", *wrong[:10]]))
    return found


def synthetic(settings: Mapping[str, Any], count: int, encode: Encode, tokenizer: Any) -> list[Prompt]:
    """`count` prompts of the asked-for lengths: isl tokens as the engine sees them, special tokens included.

    Words are tokens of the vocabulary that stay one token after a space, so that lengths are exact for the usual
    byte-level and sentencepiece vocabularies; no two prompts share a beginning that a KV cache could reuse.
    """
    chosen = random.Random(settings["seed"])
    words = _words(tokenizer, encode)
    special = len(tokenizer.encode("").ids)
    made = []
    for _ in range(count):
        isl = max(1, _length(chosen, settings["isl"], settings["isl_stddev"], settings["isl_max"]) - special)
        osl = max(1, _length(chosen, settings["osl"], settings["osl_stddev"], settings["osl_max"]))
        made.append(Prompt(text=_of_length(chosen, words, isl, encode), max_tokens=osl))
    return made


def tokenizer(folder: Path | None) -> Any:
    """The `tokenizers.Tokenizer` of a folder with a tokenizer.json, or None without a folder. Raises Bad."""
    if folder is None:
        return None
    from tokenizers import Tokenizer

    try:
        found = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises Exception itself
        raise Bad(f"{folder} has no tokenizer.json that can be read: {error}") from error
    found.no_truncation()
    found.no_padding()
    return found


def encoder(found: Any) -> Encode:
    """Text to ids without special tokens; each prompt is asked for many times."""

    @functools.lru_cache(maxsize=1 << 14)
    def encode(text: str) -> Sequence[int]:
        ids: Sequence[int] = found.encode(text, add_special_tokens=False).ids
        return ids

    return encode


def digest(prompts: Sequence[Prompt]) -> str:
    """Equal for equal prompts in equal order."""
    rows = ([one.text, one.max_tokens, one.expected] for one in prompts)
    return hashlib.blake2b("\n".join(map(json.dumps, rows)).encode(), digest_size=32).hexdigest()


def _prompt(row: object, max_tokens: int, columns: Sequence[str]) -> Prompt:
    if not isinstance(row, dict):
        raise TypeError("not an object")
    text = [row[name] for name in columns if name in row]
    if len(text) != 1 or not isinstance(text[0], str) or not text[0]:
        raise ValueError(f"needs exactly one of {', '.join(columns)}, a text that is not empty")
    expected = next((row[name] for name in EXPECTED if isinstance(row.get(name), str)), None)
    length = next((row[name] for name in LENGTH if name in row), max_tokens)
    if not isinstance(length, int) or isinstance(length, bool) or length < 1:
        raise ValueError(f"max_tokens is {length!r}, not a count")
    return Prompt(text=text[0], max_tokens=length, expected=expected)


def _words(found: Any, encode: Encode) -> list[str]:
    """Words that are one token each when a space is before them."""
    return list(_single(found, encode)) or ["a"]


def _single(found: Any, encode: Encode) -> Iterator[str]:
    number = 0
    for token in sorted(found.get_vocab(with_added_tokens=False)):
        word = token.lstrip("\u0120\u2581")
        if (
            word != token
            and word.isascii()
            and word.isalpha()
            and len(encode(f"a {word} {word}")) == len(encode("a")) + 2
        ):
            number += 1
            yield word
            if number == _WORDS:
                return


def _of_length(chosen: random.Random, words: Sequence[str], length: int, encode: Encode) -> str:
    """A text of `length` tokens; where the vocabulary does not allow it, the nearest below."""
    picked = [chosen.choice(words) for _ in range(length)]
    while len(picked) > 1 and len(encode(" ".join(picked))) > length:
        picked.pop()
    return " ".join(picked)


def _length(chosen: random.Random, mean: int, deviation: float, most: int | None) -> int:
    drawn = round(chosen.gauss(mean, deviation)) if deviation else mean
    return min(drawn, most) if most else drawn
