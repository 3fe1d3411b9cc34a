"""Where a checkpoint comes from.

tiny:ARCHITECTURE               is made here
file:PATH                       is a Hugging Face checkpoint on disk
hf:ORG/NAME[@REVISION]          is on Hugging Face's hub
modelscope:ORG/NAME[@REVISION]  is on ModelScope
s3://BUCKET/PREFIX              is a folder of a bucket

The last three are pinned in models.lock: without it they can be planned, and building them says `doit lock`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

from rules.errors import Problem, nearest
from rules.locked import NOTHING, Held, Locked

__all__ = ["ELSEWHERE", "TINY", "Dims", "Facts", "Source", "dims", "dims_of", "facts", "parse", "tokenizer_facts"]

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
    """A parsed `source`: `scheme` is one of SCHEMES, `where` what follows the colon, up to a hub's @revision."""

    scheme: str
    where: str
    revision: str = ""

    @property
    def name(self) -> str:
        """What models.lock calls it: the revision is always written."""
        middle = "://" if self.scheme == "s3" else ":"
        return f"{self.scheme}{middle}{self.where}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a source before any of its weights is read.

    `config` and `generation` are config.json and generation_config.json, {} where unknown or not there (as of a tiny
    source, whose dimensions are known without). `tokenizer` is what models.lock says of it, None where unknown or not
    there. `files` are () where unknown, and of a `file:` source without SHA-256. `pinned` is False for a source
    elsewhere that models.lock does not have.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Mapping[str, Any] | None = None
    files: tuple[Held, ...] = ()
    pinned: bool = True


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
SCHEMES = ("tiny", "file", "hf", "modelscope", "s3")
ELSEWHERE = ("hf", "modelscope", "s3")
_BRANCH = {"hf": "main", "modelscope": "master"}
_REVISION = r"(?:@(?P<revision>[\w./-]+))?"
# How each is written after its colon, and what to say when it is not.
_WRITTEN: Mapping[str, tuple[re.Pattern[str], str]] = {
    "hf": (
        re.compile(rf"(?P<where>[\w.-]+(?:/[\w.-]+)?){_REVISION}"),
        "write hf:ORG/NAME or hf:ORG/NAME@REVISION",
    ),
    "modelscope": (
        re.compile(rf"(?P<where>[\w.-]+/[\w.-]+){_REVISION}"),
        "write modelscope:ORG/NAME or modelscope:ORG/NAME@REVISION",
    ),
    "s3": (
        re.compile(r"//(?P<where>[a-z0-9][a-z0-9.-]+(?:/(?!\.{1,2}(?:/|\Z))[^/\s?#@]+)*)/?"),
        "write s3://BUCKET/PREFIX, without a login and a query",
    ),
}
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "*.tiktoken", "vocab.json", "vocab.txt")
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
_MOST = 1 << 24  # of anything that a config.json counts: a larger number is a mistake, as one below 1 is
_SCALED = ("linear", "dynamic", "yarn")  # the others' max_position_embeddings has the factor in it


def parse(text: str) -> Source | Problem:
    """`text` as a source, or what is wrong with it."""
    scheme, colon, where = text.partition(":")
    if not colon or not where or scheme not in SCHEMES:
        return Problem(what=f"{text!r} is not a source", hint=f"write {' or '.join(f'{s}:...' for s in SCHEMES)}")
    if scheme == "tiny" and where not in TINY:
        return Problem(what=f"{text!r}: there is no tiny {where!r}", hint=nearest(where, tuple(TINY)))
    written = _WRITTEN.get(scheme)
    if written is None:
        return Source(scheme=scheme, where=where)
    pattern, hint = written
    found = pattern.fullmatch(where)
    if found is None:
        return Problem(what=f"{text!r} is not a source", hint=hint)
    revision = found.groupdict().get("revision") or _BRANCH.get(scheme, "")
    return Source(scheme=scheme, where=found["where"], revision=revision)


def dims(source: Source, root: Path, locked: Mapping[str, Locked] = NOTHING) -> Dims | Problem:
    """The dimensions of `source`, as its config.json has them; all 0 where that is not known."""
    if source.scheme == "tiny":
        return TINY[source.where]
    if source.scheme == "file":  # of thousands of variants each asks: no more than this is read
        config = _config(root / source.where)
        return config if isinstance(config, Problem) else _dims(config)
    found = facts(source, root, locked)
    return found if isinstance(found, Problem) else _dims(found.config)


def dims_of(text: str, root: Path, locked: Mapping[str, Locked] = NOTHING) -> Dims | Problem:
    """`dims` of the source that `text` writes, or what is wrong with it."""
    where = parse(text)
    return where if isinstance(where, Problem) else dims(where, root, locked)


def facts(source: Source, root: Path, locked: Mapping[str, Locked] = NOTHING) -> Facts | Problem:
    """What is known of `source`, or why it cannot be (paths are relative to `root`).

    Of a source elsewhere that is what models.lock has; before it is locked, the config.json that rules/hub.json has.
    """
    if source.scheme == "file":
        return _on_disk(root / source.where)
    if source.scheme == "tiny":
        return Facts()
    held = locked.get(source.name)
    if held is None:
        return Facts(config=_hub().get(source.where, {}) if source.scheme in _BRANCH else {}, pinned=False)
    return Facts(config=held.config, generation=held.generation, tokenizer=held.tokenizer, files=held.files)


def _on_disk(folder: Path) -> Facts | Problem:
    config = _config(folder)
    if isinstance(config, Problem):
        return config
    files = tuple(Held(it.name, it.stat().st_size, "") for it in sorted(folder.iterdir()) if it.is_file())
    generation, tokenizer = (_optional(folder / name) for name in ("generation_config.json", "tokenizer_config.json"))
    names = {held.path for held in files}
    return Facts(config=config, generation=generation, tokenizer=tokenizer_facts(names, tokenizer), files=files)


def _config(folder: Path) -> dict[str, Any] | Problem:
    path = folder / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        config.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
        hint = "a Hugging Face checkpoint folder has a config.json, *.safetensors and a tokenizer.json"
        return Problem(what=f"{path} {reason}", hint=hint)
    return config


def _optional(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def tokenizer_facts(names: Collection[str], config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What models.lock says of a tokenizer: from the names of the files beside it and its tokenizer_config.json."""
    found = sorted(name for name in names if any(fnmatch(name, kind) for kind in _TOKENIZERS))
    if not found:
        return None
    plain = {name: config.get(name) for name in ("tokenizer_class", "add_bos_token", "add_eos_token")}
    special = {name: _content(config.get(name)) for name in ("bos_token", "eos_token", "pad_token")}
    template = bool(config.get("chat_template")) or any(name.startswith("chat_template") for name in names)
    return {"files": found, "chat_template": template, **plain, **special}


def _content(token: object) -> object:
    """A special token is written as its text, or as a table with its text."""
    return token.get("content") if isinstance(token, Mapping) else token


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
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind not in _SCALED or not isinstance(factor, (int, float)) or not 0 < factor < _MOST:
        return positions
    return max(positions, int(factor * (trained if isinstance(trained, int) else positions)))


def _first(config: Mapping[str, object], names: tuple[str, ...]) -> int:
    inner = config.get("text_config")
    tables = (config, inner) if isinstance(inner, dict) else (config,)
    values = (table.get(name) for table in tables for name in names)
    return next((value for value in values if type(value) is int and 0 < value <= _MOST), 0)
