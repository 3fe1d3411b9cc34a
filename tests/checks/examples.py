"""A rule is shown by an entry that it refuses and one that it lets pass, each a whole models.toml of one model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rules import check
from rules.source import HUB
from tests.lane import texts, toml

__all__ = ["CPU", "FILE", "Example", "Examples", "Tiny", "folder", "said"]

CPU: Mapping[str, Any] = {
    "source": '"tiny:qwen2"',
    "toolchain": '"cpu"',
    "precisions": '["int8_wo"]',
    "shapes": "[{ batch = 8, isl = 256, osl = 64 }]",
}
_GPU = {"toolchain": '"t"', "precisions": '["fp16"]'}
FILE: Mapping[str, Any] = {**_GPU, "source": '"file:there"'}  # 16 heads, 4 KV heads, 6 layers, 4096 positions


@dataclass(frozen=True)
class Example:
    """Arguments of `toml` for an entry that is refused and for one that passes, and what is said, with which hint.

    `model` is that of the source: a tiny one, none that is known (""), or Qwen2-72B.
    """

    bad: Mapping[str, Any]
    good: Mapping[str, Any]
    what: str
    hint: str
    model: str | None = None

    def text(self, changed: Mapping[str, Any]) -> str:
        """models.toml with these changes."""
        source = {None: {}, "": {"source": '"hf:some/model"'}}.get(
            self.model, {**CPU, **_GPU, "source": f'"tiny:{self.model}"'}
        )
        return toml(**{**source, **changed})


@dataclass(frozen=True)
class Tiny(Example):
    """An example of a tiny Qwen2, where no other is named."""

    model: str | None = "qwen2"


Examples = Mapping[str, list[Example]]


# Folder -> its config.json: what the rules are shown on; `odd` has heads of 12.5 columns.
CONFIGS: Mapping[str, Mapping[str, object]] = {
    "there": {
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "num_hidden_layers": 6,
        "max_position_embeddings": 4096,
        "hidden_size": 2048,
    },
    "odd": {"num_attention_heads": 8, "hidden_size": 100},
    "phi3": {"model_type": "phi3"},
    "mistral": {"model_type": "mistral"},
    "Qwen2-72B": json.loads(HUB.read_text())["Qwen/Qwen2-7B"],
}


# A tokenizer of words that begins with <s>; and a model that says nothing of how an answer ends.
WORDS = {
    "model": {"type": "WordLevel", "vocab": {"<s>": 0, "a": 1, "</s>": 2}, "unk_token": "a"},
    "pre_tokenizer": {"type": "WhitespaceSplit"},
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    },
}
HEADS = {"num_attention_heads": 16, "num_key_value_heads": 4, "num_hidden_layers": 6, "hidden_size": 2048}
TOKENIZERS: Mapping[str, Mapping[str, object]] = {
    "Chat-Instruct": {
        "config.json": HEADS,
        "tokenizer.json": WORDS,
        "generation_config.json": {"eos_token_id": [2, 7]},
        "tokenizer_config.json": {"bos_token": "<s>", "eos_token": "</s>", "chat_template": "{{ bos_token }}{{ x }}"},
    },
    "bare-chat": {"config.json": HEADS, "tokenizer.json": WORDS, "tokenizer_config.json": {}},
}


def folder(root: Path) -> Path:
    """`root` with the checkpoints of CONFIGS and TOKENIZERS, prompts of 2, 4 and 5 words, and calibration texts."""
    for name, config in CONFIGS.items():
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps(config))
    for name, files in TOKENIZERS.items():
        (root / name).mkdir()
        for file, content in files.items():
            (root / name / file).write_text(json.dumps(content))
    (root / "asked.jsonl").write_text("".join(f'{{"input": "{"a " * words}"}}\n' for words in (2, 4, 5)))
    texts(root)
    (root / "folder.jsonl").mkdir()
    (root / "asked.txt").touch()
    return root


def said(rule: str, text: str, root: Path) -> list[str]:
    """What the rule of that id says of `text`."""
    return [str(finding.problem) for finding in check.examine(text, root) if finding.id == rule]
