"""Where a checkpoint comes from: `tiny:ARCHITECTURE` is made here, `file:PATH` is a Hugging Face checkpoint on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rules.errors import Problem, nearest

__all__ = ["TINY", "Dims", "Source", "dims", "parse"]


@dataclass(frozen=True, kw_only=True)
class Dims:
    """What of a model's config.json limits how it can be built; 0 where the file does not say."""

    heads: int
    kv_heads: int
    layers: int
    max_positions: int


@dataclass(frozen=True, kw_only=True)
class Source:
    """A parsed `source`: `scheme` is tiny or file, `where` what follows the colon."""

    scheme: str
    where: str


TINY: Mapping[str, Dims] = {
    "qwen2": Dims(heads=4, kv_heads=2, layers=4, max_positions=2048),
    "llama": Dims(heads=4, kv_heads=2, layers=2, max_positions=2048),
    "gpt2": Dims(heads=4, kv_heads=4, layers=2, max_positions=1024),
}
SCHEMES = ("tiny", "file")
# The names that architectures give to one thing, from the config classes of transformers 5.5.
_FIELDS = {
    "heads": ("num_attention_heads", "n_head"),
    "kv_heads": ("num_key_value_heads", "num_attention_heads", "n_head"),
    "layers": ("num_hidden_layers", "n_layer"),
    "max_positions": ("max_position_embeddings", "n_positions"),
}


def parse(text: str) -> Source | Problem:
    """`text` as a source, or what is wrong with it."""
    scheme, colon, where = text.partition(":")
    if not colon or not where or scheme not in SCHEMES:
        return Problem(what=f"{text!r} is not a source", hint=f"write {' or '.join(f'{s}:...' for s in SCHEMES)}")
    if scheme == "tiny" and where not in TINY:
        return Problem(what=f"{text!r}: there is no tiny {where!r}", hint=nearest(where, tuple(TINY)))
    return Source(scheme=scheme, where=where)


def dims(source: Source, root: Path) -> Dims | Problem:
    """The dimensions of `source`, read from its config.json (paths are relative to `root`), or why there are none."""
    if source.scheme == "tiny":
        return TINY[source.where]
    path = root / source.where / "config.json"
    try:
        config = json.loads(path.read_text())
        return Dims(**{field: _first(config, names) for field, names in _FIELDS.items()})
    except (OSError, ValueError, AttributeError, TypeError) as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
        hint = "a Hugging Face checkpoint folder has a config.json, *.safetensors and a tokenizer.json"
        return Problem(what=f"{path} {reason}", hint=hint)


def _first(config: Mapping[str, object], names: tuple[str, ...]) -> int:
    inner = config.get("text_config")
    tables = (config, inner) if isinstance(inner, dict) else (config,)
    values = (table.get(name) for table in tables for name in names)
    return next((value for value in values if isinstance(value, int)), 0)
