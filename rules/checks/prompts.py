"""The entry's own prompts fit the engine, and the tokenizer says where an answer begins and ends."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from rules import source
from rules.checks.entry import Subject
from rules.errors import Problem
from rules.rule import Rule, warning
from rules.source import Facts
from rules.spec import Model

__all__ = ["RULES"]

_ROWS = 2000  # a few seconds' worth at most
_COLUMNS = ("input", "text_input", "text", "prompt")
_CHAT = re.compile(r"(?i)(?<![a-z])(?:chat|instruct|it)(?![a-z])")


@warning("raise isl, or shorten the prompts", "backend#624", "TRT-LLM#2702", "TRT-LLM#1780")
def prompts_fit_isl(subject: Subject) -> Iterator[Problem]:
    """The questions of `eval` and prompts of `bench`, tokenised as the server does, fit isl: it refuses longer ones."""
    try:
        lengths = list(_lengths(subject))
    except ValueError as error:
        what, hint = f"{subject.path}.source: its tokenizer.json cannot be read", "the server could not load it either"
        yield Problem(what=what, facts=(("reason", str(error)),), hint=hint)
        return
    for index, shape in enumerate(subject.entry.shapes):
        longer = sum(length > shape.isl for length in lengths)
        if longer:
            what = f"{subject.path}.shapes[{index}]: {longer} of {len(lengths)} prompts are longer than isl {shape.isl}"
            facts = (("longest", f"{max(lengths)} tokens"),)
            yield Problem(what=what, facts=facts, hint=f"isl = {max(lengths)} holds them all")


@warning("take a tokenizer_config.json with a chat_template, or format prompts yourself", "backend#445", "backend#234")
def chat_template_there(subject: Subject) -> Iterator[Problem]:
    """A model that was tuned on conversations says how one is written."""
    facts = _facts(subject)
    if facts.tokenizer and not facts.tokenizer["chat_template"] and _CHAT.search(subject.entry.source):
        what = f"{subject.path}.source: no chat template, of a model that is called a chat model"
        yield Problem(what=what, hint="prompts are tokenised as they are sent")


@warning("add_special_tokens = false in `serving`, where requests are formatted", "backend#445", "backend#446")
def special_tokens_once(subject: Subject) -> Iterator[Problem]:
    """A chat template that writes the first token, and a tokenizer that adds it, make two of it."""
    facts, template = _facts(subject), _template(subject)
    begin = facts.tokenizer["bos_token"] if facts.tokenizer else None
    adds = facts.tokenizer["add_bos_token"] is not False if facts.tokenizer else False
    if begin and adds and "bos_token" in template and subject.entry.serving.get("add_special_tokens") is not False:
        what = f"{subject.path}.serving.add_special_tokens: formatted prompts will begin with {begin} twice"
        yield Problem(what=what, hint="write false, if requests are formatted with the chat template")


@warning("send end_id, or the others as stop_words", "backend#57", "backend#82", "TRT-LLM#5670")
def every_stop_token(subject: Subject) -> Iterator[Problem]:
    """TensorRT-LLM's Triton backend stops at one end_id, the tokenizer's; some models end answers in several ways."""
    ends = _facts(subject).generation.get("eos_token_id")
    if isinstance(ends, list) and len(ends) > 1 and any(family.device == "gpu" for _, family in subject.families()):
        what = f"{subject.path}.source: generation_config.json ends answers at {', '.join(map(str, ends))}"
        yield Problem(what=what, hint="the server stops at one of them; send the others' text as stop_words")


@warning("write eos_token into generation_config.json and tokenizer_config.json", "TRT-LLM#228", "TRT-LLM#250")
def stop_token_there(subject: Subject) -> Iterator[Problem]:
    """Something says which token ends an answer: else each one runs to max_tokens."""
    facts = _facts(subject)
    said = (facts.generation.get("eos_token_id"), facts.config.get("eos_token_id"))
    if facts.tokenizer and not facts.tokenizer["eos_token"] and said == (None, None):
        yield Problem(what=f"{subject.path}.source: nothing says which token ends an answer", hint="set eos_token")


RULES: tuple[Rule[Subject], ...] = (
    prompts_fit_isl,
    chat_template_there,
    special_tokens_once,
    every_stop_token,
    stop_token_there,
)


def _facts(subject: Subject) -> Facts:
    where = source.parse(subject.entry.source)
    found = where if isinstance(where, Problem) else source.facts(where, subject.root, subject.spec.locked)
    return Facts() if isinstance(found, Problem) else found


def _folder(subject: Subject) -> Path | None:
    """Where the model's files lie, if they lie here."""
    where = source.parse(subject.entry.source)
    if isinstance(where, Problem) or where.scheme != "file":
        return subject.fetched
    return subject.root / where.where


def _template(subject: Subject) -> str:
    folder = _folder(subject)
    texts = [_text(folder / name) for name in ("tokenizer_config.json", "chat_template.jinja")] if folder else []
    return "".join(text for text in texts if "chat_template" in text or "{%" in text)


def _lengths(subject: Subject) -> Iterator[int]:
    """Tokens of each prompt; none where the prompts, the tokenizer or its library are not at hand.

    Raises ValueError for a tokenizer.json that is none.
    """
    folder, files = _folder(subject), _files(subject.entry)
    rules = _text(folder / "tokenizer.json") if folder and files else ""
    if not rules:
        return
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return
    try:
        tokenizer = Tokenizer.from_str(rules)
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(str(error)) from error
    special = subject.entry.serving.get("add_special_tokens") is not False
    for file, column in files:
        for row in islice(_rows(subject.root / file.removeprefix("file:")), _ROWS):
            prompt = next((row[name] for name in (column, *_COLUMNS) if name in row), None)
            if isinstance(prompt, str):
                yield len(tokenizer.encode(prompt, add_special_tokens=special))


def _files(entry: Model) -> list[tuple[str, str | None]]:
    """Each file of prompts, once, and the column that holds them."""
    asked = [(entry.eval.data, entry.eval.column)] if entry.eval else []
    loads = [(entry.bench.prompts, entry.bench.column)] if entry.bench.prompts else []
    return list(dict.fromkeys([*asked, *loads]))


def _rows(file: Path) -> Iterator[Mapping[str | None, Any]]:
    """The tables of a .jsonl, read as far as they are asked for; none from where it cannot be read."""
    with suppress(OSError, UnicodeDecodeError), file.open(encoding="utf-8") as lines:
        for line in lines:  # ends at no U+2028, as splitlines would
            with suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict):
                    yield row


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
