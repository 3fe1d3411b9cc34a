"""One prompt to continue, as a request asked for it, and the answer's own channel."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the answer is to hold beside token ids."""

    stream: bool = False
    log_probs: bool = False
    context_logits: bool = False
    include_input: bool = False
    num_input_tokens: bool = False
    num_output_tokens: bool = False
    batch_index: int | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """One sequence (or one beam search). `prompt` is int32 [n]; `stop_words` are lists of ids."""

    prompt: Any
    sampling: Sampling
    wanted: Wanted
    pad_id: int
    stop_words: tuple[tuple[int, ...], ...] = ()


@dataclass(kw_only=True)
class Channel:
    """A request's way back: shared by the sequences of its batch, closed when the last has ended."""

    send: Callable[..., None]
    is_cancelled: Callable[[], bool]
    request_id: str
    final_flag: int
    open_jobs: int
    sent: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def gone(self) -> bool:
        """Whether the client has cancelled. Triton frees what this asks with the final response: never asked after."""
        with self._lock:
            return self.open_jobs > 0 and self.is_cancelled()

    def answer(self, response: Any) -> None:
        """Send a response after which more may come."""
        self.sent += 1
        self.send(response)

    def end(self, response: Any = None) -> None:
        """A sequence has ended, with a last response or without; the last one closes the channel.

        An error behind other responses goes before the final flag and not with it: through a BLS, Triton 2.51 would
        lose the flag with the error, and the BLS would wait for ever.
        """
        with self._lock:
            self.open_jobs -= 1
            flags = 0 if self.open_jobs else self.final_flag
            if response is not None and response.has_error() and self.sent:
                self.send(response)
                response = None
            if response is not None:
                self.sent += 1
                self.send(response, flags=flags)
            elif flags:
                self.send(flags=flags)
