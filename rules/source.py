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
    """What of a model's config.json limits how it can be built; 0 where the file does not say.

    `max_positions` counts what rope scaling adds. `experts` is 0 for a dense model, and else `intermediate` is the
    width of one expert and `shared` that of the one that every token passes. `tied`: the output layer is the embedding.
    """

    heads: int
    kv_heads: int
    layers: int
    max_positions: int
    hidden: int = 0
    intermediate: int = 0
    family: str = ""  # config.json's model_type
    head_size: int = 0
    vocab: int = 0
    experts: int = 0
    shared: int = 0
    tied: bool = False

    def divides(self, tp: int) -> bool:
        """Whether `tp` ranks share the heads evenly: KV heads are split, or each is on the same number of ranks."""
        kv_heads = self.kv_heads or self.heads
        return self.heads % tp == 0 and (kv_heads % tp == 0 or tp % kv_heads == 0)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A parsed `source`: `scheme` is tiny, file or hf, `where` what follows the colon, up to a hub's @revision."""

    scheme: str
    where: str
    revision: str = ""


VOCAB = 2048  # tiny.py's; all of them have it
TINY: Mapping[str, Dims] = {
    name: Dims(
        heads=4,
        kv_heads=kv_heads,
        layers=layers,
        max_positions=positions,
        hidden=256,
        intermediate=intermediate,
        family=name,
        head_size=64,
        vocab=VOCAB,
        tied=tied,
    )
    for name, kv_heads, layers, positions, intermediate, tied in (
        ("qwen2", 2, 4, 2048, 640, True),
        ("llama", 2, 2, 2048, 640, False),
        ("gpt2", 4, 2, 1024, 1024, True),
    )
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
    "intermediate": ("moe_intermediate_size", "intermediate_size", "n_inner"),
    "head_size": ("head_dim",),
    "vocab": ("vocab_size",),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts"),
    "shared": ("shared_expert_intermediate_size",),
}
_SCALED = ("linear", "dynamic", "yarn")  # the others' max_position_embeddings has the factor in it


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
    """ORG/NAME -> what of its published config.json is needed before it is fetched; `_source` says who has read it."""
    return dict(json.loads(HUB.read_text(encoding="utf-8")))


def _dims(config: Mapping[str, object]) -> Dims:
    found = {field: _first(config, names) for field, names in _FIELDS.items()}
    family = config.get("model_type")
    if family == "gpt2":  # n_inner is null in its own config: four times the width
        found["intermediate"] = found["intermediate"] or 4 * found["hidden"]
    found["head_size"] = found["head_size"] or (found["hidden"] // found["heads"] if found["heads"] else 0)
    found["max_positions"] = _scaled(found["max_positions"], config.get("rope_scaling"))
    tied = bool(config.get("tie_word_embeddings", family == "gpt2"))  # GPT-2's own config does not say
    return Dims(**found, family=family if isinstance(family, str) else "", tied=tied)


def _scaled(positions: int, scaling: object) -> int:
    """The positions that a model can be asked for. YaRN counts from the length it was trained with."""
    if not isinstance(scaling, Mapping):
        return positions
    factor, trained = scaling.get("factor"), scaling.get("original_max_position_embeddings")
    if scaling.get("rope_type", scaling.get("type")) not in _SCALED or not isinstance(factor, (int, float)):
        return positions
    return max(positions, int(factor * (trained if isinstance(trained, int) else positions)))


def _first(config: Mapping[str, object], names: tuple[str, ...]) -> int:
    inner = config.get("text_config")
    tables = (config, inner) if isinstance(inner, dict) else (config,)
    values = (table.get(name) for table in tables for name in names)
    return next((value for value in values if isinstance(value, int)), 0)
