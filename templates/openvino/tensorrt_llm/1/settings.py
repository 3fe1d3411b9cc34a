"""What the engine directory and config.pbtxt fix for the life of the server."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizing import flag, parameter

BLOCK = 32  # tokens in a KV cache block of OpenVINO's CPU plugin


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Limits of the engine (engine.json) and choices of the repository (config.pbtxt); lengths are tokens."""

    max_batch_size: int
    max_input_len: int
    max_output_len: int
    max_seq_len: int
    max_num_tokens: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    max_beam_width: int
    kv_cache_tokens: int
    prefix_caching: bool
    chunked_context: bool
    exclude_input: bool
    decoupled: bool
    cancellation_check_s: float
    max_queue_size: int

    @property
    def kv_blocks(self) -> int:
        """Blocks of BLOCK tokens."""
        return -(-self.kv_cache_tokens // BLOCK)


def load_settings(engine: Path, config: dict[str, Any]) -> Settings:
    """Raise ValueError when the repository asks for what the engine cannot hold."""
    shape = json.loads((engine / "engine.json").read_text("utf-8"))
    queue = config.get("dynamic_batching", {}).get("default_queue_policy", {})
    beams = number(config, "max_beam_width", default=shape["max_beam_width"])
    settings = Settings(
        max_batch_size=shape["max_batch_size"],
        max_input_len=shape["max_input_len"],
        max_output_len=shape["max_output_len"],
        max_seq_len=shape["max_seq_len"],
        max_num_tokens=shape["max_num_tokens"],
        vocab_size=shape["vocab_size"],
        eos_token_ids=tuple(shape["eos_token_ids"]),
        pad_token_id=shape["pad_token_id"] or 0,
        max_beam_width=beams,
        kv_cache_tokens=number(config, "max_tokens_in_paged_kv_cache", default=default_cache(shape, beams)),
        prefix_caching=flag(config, "enable_kv_cache_reuse", default=True),
        chunked_context=flag(config, "enable_chunked_context", default=False),
        exclude_input=flag(config, "exclude_input_in_output", default=False),
        decoupled=bool(config.get("model_transaction_policy", {}).get("decoupled", False)),
        cancellation_check_s=number(config, "cancellation_check_period_ms", default=100) / 1000,
        max_queue_size=int(queue.get("max_queue_size", 0)),
    )
    check(settings)
    return settings


def number(config: dict[str, Any], name: str, *, default: int) -> int:
    """A positive integer parameter."""
    text = parameter(config, name)
    if text and not (text.isdigit() and int(text) > 0):
        raise ValueError(f"parameter {name} is {text!r}: give a positive integer or leave it empty")
    return int(text) if text else default


def default_cache(shape: dict[str, Any], beams: int) -> int:
    """Room for a full batch of full-length sequences, and for one full-width beam search, in whole blocks."""
    full = -(-int(shape["max_seq_len"]) // BLOCK) * BLOCK
    return full * max(int(shape["max_batch_size"]), beams)


def check(settings: Settings) -> None:
    """Raise ValueError for a combination with which some request could never run."""
    if settings.kv_cache_tokens < settings.max_seq_len:
        raise ValueError(
            f"max_tokens_in_paged_kv_cache is {settings.kv_cache_tokens}, but one sequence of this engine may take "
            f"{settings.max_seq_len} tokens (max_seq_len)"
        )
    if not settings.chunked_context and settings.max_num_tokens < settings.max_input_len:
        raise ValueError(
            f"enable_chunked_context is false, so one step must hold a whole prompt of {settings.max_input_len} tokens "
            f"(max_input_len), but the engine's max_num_tokens is {settings.max_num_tokens}"
        )
