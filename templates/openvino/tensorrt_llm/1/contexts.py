"""Logits of whole prompts: what upstream calls context logits.

GenAI's pipeline keeps its logits, and its `echo` of a prompt's log-probabilities leaves out what the prefix cache
holds. So the engine's IR is compiled a second time, plainly, when first a request asks for them, and each such prompt
goes through it in one step of its own. The weights are then in memory twice, until the server ends.
"""

from __future__ import annotations

import queue
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from answer import Answer
from reply import failure

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  through which Triton takes a Python model's tensors
SPARE = 2 << 20  # by how much Triton's pool grows, and what else is in an answer


class Contexts(threading.Thread):
    """Gives answers their context logits, one after the other, and hands on those whose text the batcher makes."""

    def __init__(
        self, load: Callable[[], Callable[[Any], Any]], submit: Callable[[list[Answer]], None], cancelled_code: Any
    ) -> None:
        """`load` compiles: its result takes int32 [n] and returns float32 [n, vocabulary]."""
        super().__init__(daemon=True)
        self._load = load
        self._submit = submit
        self._cancelled_code = cancelled_code
        self._forward: Callable[[Any], Any] | None = None
        self._waiting: queue.SimpleQueue[Answer | None] = queue.SimpleQueue()
        self._stopping = False
        self._most = 0  # bytes sent at once: Triton's pool keeps what it once had

    def put(self, answers: list[Answer]) -> None:
        """Queue; may be called from any thread."""
        for answer in answers:
            self._waiting.put(answer)

    def stop(self) -> None:
        """End the thread; what waits is answered as cancelled."""
        self._stopping = True
        self._waiting.put(None)
        self.join()

    def run(self) -> None:
        """Work until the end."""
        while (answer := self._waiting.get()) is not None:
            try:
                self._serve(answer)
            except (RuntimeError, ValueError, MemoryError) as reason:
                answer.channel.end(failure(f"return_context_logits: {reason}"))

    def _serve(self, answer: Answer) -> None:
        if self._stopping or answer.channel.gone():
            answer.channel.end(failure("cancelled", self._cancelled_code))
            return
        self._forward = self._forward or self._load()
        answer.context_logits = self._forward(answer.job.prompt)
        self._require_room(answer.context_logits.nbytes)
        if answer.job.sampling.only_likeliest:
            answer.add(*likeliest(answer.context_logits[-1]))
            answer.end()
        else:
            self._submit([answer])

    def _require_room(self, size: int) -> None:
        """Raise ValueError where Triton would lose the answer, and its client would wait for ever."""
        room = shutil.disk_usage(SHARED_MEMORY).free + self._most - SPARE
        if size > room:
            mib = f"{size / 2**20:.1f} MiB of logits, room for {max(room, 0) / 2**20:.1f} MiB"
            raise ValueError(f"{SHARED_MEMORY} is too small: {mib} (docker run --shm-size)")
        self._most = max(self._most, size)


def likeliest(logits: Any) -> tuple[list[int], list[float]]:
    """The best token of float32 [vocabulary], and its log-probability, as lists of one."""
    token = int(logits.argmax())
    return [token], [-float(np.log(np.exp((logits - logits[token]).astype(np.float64)).sum()))]
