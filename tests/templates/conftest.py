"""The engine model's own modules, imported as Triton's stub imports them: by bare name from the model's directory."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

TEMPLATES = Path(__file__).parents[2] / "templates"
FOLDERS = (TEMPLATES / "triton/shared/1", TEMPLATES / "openvino/tensorrt_llm/1")


class Modules:
    """`modules.cutting` is templates/openvino/tensorrt_llm/1/cutting.py."""

    def __getattr__(self, name: str) -> Any:
        return importlib.import_module(name)


@pytest.fixture(scope="session")
def modules() -> Iterator[Modules]:
    before = set(sys.modules)
    sys.path[:0] = map(str, FOLDERS)
    sys.dont_write_bytecode, setting = True, sys.dont_write_bytecode
    yield Modules()
    sys.dont_write_bytecode = setting
    del sys.path[: len(FOLDERS)]
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and "templates" in str(sys.modules[name].__file__):
            del sys.modules[name]


@pytest.fixture(scope="session")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 style tokenizer: 256 byte tokens, then " w", then the special <|end|>."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(letters)} | {"\u0120w": 256}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("\u0120", "w")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    return _saved(tokenizer, tmp_path_factory.mktemp("byte_level"))


@pytest.fixture(scope="session")
def sentence_piece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama style tokenizer: a mark for spaces, one byte token per byte, the first space dropped in decoding."""
    plain = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *"abcdefghijklmnopqrstuvwxyz"]
    vocabulary = {token: index for index, token in enumerate([*plain, "\u2581w"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("\u2581", "w")], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["<unk>", "<s>"])
    return _saved(tokenizer, tmp_path_factory.mktemp("sentence_piece"))


def _saved(tokenizer: Any, folder: Path) -> Path:
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
