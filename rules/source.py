"""Where a checkpoint comes from.

tiny:ARCHITECTURE       is made here
file:PATH               is a Hugging Face checkpoint on disk
hf:ORG/NAME[@REVISION]  is on Hugging Face's hub. It can be planned; bringing it here is not built yet
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rules.errors import Problem, nearest

__all__ = ["TINY", "Dims", "Source", "dims", "parse"]

HUB = Path(__file__).parent / "hub.json"


@dataclass(frozen=True, kw_only=True)
class Dims:
    """What of a model's config.json limits how it can be built; 0 where the file does not say."""

    heads: int
    kv_heads: int
    layers: int
    max_positions: int
    hidden: int = 0
    intermediate: int = 0
    family: str = ""  # config.json's model_type


@dataclass(frozen=True, kw_only=True)
class Source:
    """A parsed `source`: `scheme` is tiny, file or hf, `where` what follows the colon, up to a hub's @revision."""

    scheme: str
    where: str
    revision: str = ""


TINY: Mapping[str, Dims] = {
    "qwen2": Dims(heads=4, kv_heads=2, layers=4, max_positions=2048, hidden=256, intermediate=640, family="qwen2"),
    "llama": Dims(heads=4, kv_heads=2, layers=2, max_positions=2048, hidden=256, intermediate=640, family="llama"),
    "gpt2": Dims(heads=4, kv_heads=4, layers=2, max_positions=1024, hidden=256, intermediate=1024, family="gpt2"),
}
SCHEMES = ("tiny", "file", "hf")
_HUB_NAME = re.compile(r"(?P<where>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+))?")
# The names that architectures give to one thing, from the config classes of transformers 5.5.
_FIELDS = {
    "heads": ("num_attention_heads", "n_head"),
    "kv_heads": ("num_key_value_heads", "num_attention_heads", "n_head"),
    "layers": ("num_hidden_layers", "n_layer"),
    "max_positions": ("max_position_embeddings", "n_positions"),
    "hidden": ("hidden_size", "n_embd"),
    "intermediate": ("intermediate_size", "n_inner"),
}


def parse(text: str) -> Source | Problem:
    """`text` as a source, or what is wrong with it."""
    scheme, colon, where = text.partition(":")
    if not colon or not where or scheme not in SCHEMES:
        return Problem(what=f"{text!r} is not a source", hint=f"write {' or '.join(f'{s}:...' for s in SCHEMES)}")
    if scheme == "tiny" and where not in TINY:
        return Problem(what=f"{text!r}: there is no tiny {where!r}", hint=nearest(where, tuple(TINY)))
    if scheme == "hf":
        name = _HUB_NAME.fullmatch(where)
        if name is None:
            return Problem(what=f"{text!r} is not a source", hint="write hf:ORG/NAME or hf:ORG/NAME@REVISION")
        return Source(scheme=scheme, where=name["where"], revision=name["revision"] or "main")
    return Source(scheme=scheme, where=where)


def dims(source: Source, root: Path) -> Dims | Problem:
    """The dimensions of `source`, read from its config.json (paths are relative to `root`), or why there are none.

    Of a model on the hub they are known when rules/hub.json has its config, and else all 0.
    """
    if source.scheme == "tiny":
        return TINY[source.where]
    if source.scheme == "hf":
        return _dims(_hub().get(source.where, {}))
    path = root / source.where / "config.json"
    try:
        return _dims(json.loads(path.read_text()))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
        hint = "a Hugging Face checkpoint folder has a config.json, *.safetensors and a tokenizer.json"
        return Problem(what=f"{path} {reason}", hint=hint)


@cache
def _hub() -> dict[str, dict[str, object]]:
    """ORG/NAME -> what of its published config.json is needed before it is downloaded."""
    return dict(json.loads(HUB.read_text(encoding="utf-8")))


def _dims(config: Mapping[str, object]) -> Dims:
    found = {field: _first(config, names) for field, names in _FIELDS.items()}
    family = config.get("model_type")
    if family == "gpt2":  # n_inner is null in its own config: four times the width
        found["intermediate"] = found["intermediate"] or 4 * found["hidden"]
    return Dims(**found, family=family if isinstance(family, str) else "")


def _first(config: Mapping[str, object], names: tuple[str, ...]) -> int:
    inner = config.get("text_config")
    tables = (config, inner) if isinstance(inner, dict) else (config,)
    values = (table.get(name) for table in tables for name in names)
    return next((value for value in values if isinstance(value, int)), 0)
