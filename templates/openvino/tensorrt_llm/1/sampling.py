"""How one request chooses tokens: TensorRT-LLM's fields, checked, and what they are for OpenVINO GenAI."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Number = int | float

PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")
PENALTY = 2.0  # GenAI takes presence and frequency penalties within +-2, as OpenAI does


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Greedy unless top_k > 1 or top_p > 0; top_k 0 means no limit, top_p 1 likewise."""

    max_tokens: int
    min_tokens: int = 0
    top_k: int = 0
    top_p: float = 0.0
    temperature: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    length_penalty: float = 0.0
    seed: int = 0
    beam_width: int = 1
    early_stopping: bool = False
    end_ids: tuple[int, ...] = ()
    log_probs: bool = False

    @property
    def greedy(self) -> bool:
        """One candidate: no top_p without top_k, a top_k of one, or no heat at all."""
        return self.top_k == 1 or (self.top_k == 0 and self.top_p <= 0) or self.temperature == 0

    @property
    def only_likeliest(self) -> bool:
        """The whole answer is the prompt's likeliest next token."""
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        lengths = (self.max_tokens, self.min_tokens, self.beam_width)
        return self.greedy and lengths == (1, 0, 1) and penalties == (1, 0, 0)


def checked(sampling: Sampling, max_beam_width: int) -> Sampling:
    """The same, or ValueError that names the client's field."""
    for name in ("top_p", "temperature", "length_penalty", *PENALTIES):
        require(math.isfinite(getattr(sampling, name)), name, getattr(sampling, name), "a finite number")
    require(sampling.max_tokens > 0, "max_tokens", sampling.max_tokens, "at least 1")
    require(0 <= sampling.min_tokens <= sampling.max_tokens, "min_tokens", sampling.min_tokens, "0 to max_tokens")
    require(sampling.top_k >= 0, "top_k", sampling.top_k, "0 (no limit) or more")
    require(sampling.top_p <= 1, "top_p", sampling.top_p, "at most 1")
    require(sampling.temperature >= 0, "temperature", sampling.temperature, "0 or more")
    require(sampling.repetition_penalty > 0, "repetition_penalty", sampling.repetition_penalty, "more than 0")
    for name in PENALTIES[1:]:
        value = getattr(sampling, name)
        require(-PENALTY <= value <= PENALTY, name, value, f"-{PENALTY:g} to {PENALTY:g}")
    require(0 < sampling.beam_width <= max_beam_width, "beam_width", sampling.beam_width, f"1 to {max_beam_width}")
    if sampling.beam_width > 1:
        require(sampling.greedy, "beam_width", sampling.beam_width, "1 with top_k, top_p: beams do not sample")
        require(sampling.temperature == 1, "temperature", sampling.temperature, "1 with beam_width > 1")
    return sampling


def require(holds: bool, field: str, value: Number, allowed: str) -> None:  # noqa: FBT001  the point of the function
    """Raise ValueError: the field, what was sent, what may be sent."""
    if not holds:
        raise ValueError(f"{field} is {value}: must be {allowed}")


def generation_config(genai: Any, sampling: Sampling) -> Any:
    """GenAI's form. Fields are set only where they matter: GenAI refuses e.g. a top_p of 0 even when greedy."""
    config = genai.GenerationConfig()
    for name, value in options(sampling).items():
        setattr(config, name, value)
    if sampling.end_ids:
        config.stop_token_ids = set(sampling.end_ids)
        config.set_eos_token_id(sampling.end_ids[0])
    else:
        config.ignore_eos = True
    if sampling.beam_width > 1 and sampling.early_stopping:
        config.stop_criteria = genai.StopCriteria.EARLY
    return config


def options(sampling: Sampling) -> Mapping[str, object]:
    """The plain attributes of a GenerationConfig."""
    found: dict[str, object] = {
        "max_new_tokens": sampling.max_tokens,
        "min_new_tokens": sampling.min_tokens,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "logprobs": int(sampling.log_probs),
    }
    if sampling.beam_width > 1:
        beams = sampling.beam_width
        return found | {"num_beams": beams, "num_return_sequences": beams, "length_penalty": sampling.length_penalty}
    if sampling.greedy:
        return found | {"do_sample": False}
    found |= {"do_sample": True, "temperature": sampling.temperature, "rng_seed": sampling.seed}
    if sampling.top_k:
        found["top_k"] = sampling.top_k
    return found | {"top_p": sampling.top_p if sampling.top_p > 0 else 1.0}
