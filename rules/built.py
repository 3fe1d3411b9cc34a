"""An engine of trtllm-build as it lies in a folder: what a server must know of it before it is started.

World size, limits and version are read from what was built and never typed. The layout is that of releases 0.8 to 1.2:
`config.json` with version, pretrained_config and build_config, and `rank<N>.engine` for each rank.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rules.errors import Misconfigured, Problem

__all__ = ["Built", "read"]

_BYTES = {"FP8": 1, "INT8": 1}  # of a value in the KV cache; others are 16 bits wide


@dataclass(frozen=True, kw_only=True)
class Built:
    """`ranks` are the bytes of each rank's engine, `request` those of the KV cache of one full request, per rank."""

    version: str
    ranks: tuple[int, ...]
    request: int
    batch: int

    @property
    def world_size(self) -> int:
        """Ranks in all, one GPU each."""
        return len(self.ranks)


def read(folder: Path) -> Built:
    """The engine in `folder`. Raises Misconfigured with all that is wrong with it."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        version, model, build = config["version"], config["pretrained_config"], config["build_config"]
        world = int(model["mapping"]["world_size"])
        built = Built(
            version=str(version),
            ranks=tuple(_size(folder / f"rank{rank}.engine") for rank in range(world)),
            request=_token(model) * _longest(build),
            batch=int(build["max_batch_size"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as reason:
        facts = (("folder", str(folder)), ("reason", repr(reason)))
        problem = Problem(what="the engine's config.json cannot be read", facts=facts, hint="doit engine:NAME makes it")
        raise Misconfigured(problem) from None
    wrong = _wrong_files(folder, built)
    if wrong:
        raise Misconfigured(wrong)
    return built


def _wrong_files(folder: Path, built: Built) -> list[Problem]:
    """Rank files that are missing or empty, and those beyond the world size."""
    lost = [f"rank{rank}.engine" for rank, size in enumerate(built.ranks) if not size]
    names = {f"rank{rank}.engine" for rank in range(built.world_size)}
    strange = sorted({path.name for path in folder.glob("rank*.engine")} - names)
    facts = (("world size", f"{built.world_size}, of config.json"), ("folder", str(folder)))
    return [
        *(Problem(what=f"{name} is missing or empty", facts=facts, hint="build the engine again") for name in lost),
        *(Problem(what=f"{name} is of another engine", facts=facts, hint="remove it") for name in strange),
    ]


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _token(model: Mapping[str, Any]) -> int:
    """Bytes that one token has in the KV cache of one rank: keys and values of its layers and its KV heads."""
    mapping, heads = model["mapping"], int(model["num_attention_heads"])
    kv_heads = -(-int(model.get("num_key_value_heads") or heads) // int(mapping["tp_size"]))
    layers = -(-int(model["num_hidden_layers"]) // int(mapping["pp_size"]))
    width = int(model.get("head_size") or int(model["hidden_size"]) // heads)
    quantized = (model.get("quantization") or {}).get("kv_cache_quant_algo")
    return 2 * layers * kv_heads * width * _BYTES.get(str(quantized), 2)


def _longest(build: Mapping[str, Any]) -> int:
    """Tokens of the longest request: up to 0.10 the two lengths, since 0.11 their sum."""
    if build.get("max_seq_len"):
        return int(build["max_seq_len"])
    return int(build["max_input_len"]) + int(build["max_output_len"])
