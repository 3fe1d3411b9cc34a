"""Finds out which clients have gone, so that their places in the batch are free for others.

Triton 2.51 tells a model that its request was cancelled, unless the request came from an ensemble: an ensemble merely
stops passing on what the model sends (measured over gRPC and HTTP; core pull request 263 describes it). So for
the streams of ensembles postprocessing is asked how much it has seen. The question takes the same queue as the
responses themselves: an answer that lacks what was sent long before the question means that nobody listens.
A request of an ensemble that does not stream gives no sign before its end, and runs to it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb

if TYPE_CHECKING:
    from batcher import Batcher, Running

ASK_EVERY_S = 0.2
SUSPICIONS = 3  # in a row: with several instances of postprocessing each sees only a part


class Watch(threading.Thread):
    """Marks jobs as cancelled."""

    def __init__(self, batcher: Batcher, seen: Callable[[list[int]], list[int]], period_s: float) -> None:
        super().__init__(daemon=True)
        self._batcher = batcher
        self._seen = seen
        self._period_s = period_s
        self._next_question = 0.0
        self._sent: dict[int, int] = {}  # stream -> ids sent at the last question
        self._suspicions: dict[int, int] = {}

    def run(self) -> None:
        """Work while there are jobs, sleep while there are none."""
        while not self._batcher.stopping:
            live = self._batcher.live()
            for running in live:
                running.cancelled |= running.answer.channel.gone()
            if time.monotonic() >= self._next_question:
                self._next_question = time.monotonic() + ASK_EVERY_S
                self._ask({one.answer.number: one for one in live if one.answer.number is not None})
            time.sleep(self._period_s)

    def _ask(self, streams: dict[int, Running]) -> None:
        before, self._sent = self._sent, {number: one.answer.sent for number, one in streams.items()}
        asked = [number for number in streams if before.get(number, 0)]
        totals = self._seen(asked) if asked else []
        suspicions = self._suspicions
        self._suspicions = {}
        for number, total in zip(asked, totals, strict=False):
            if total < before[number]:
                self._suspicions[number] = suspicions.get(number, 0) + 1
                streams[number].cancelled |= self._suspicions[number] >= SUSPICIONS


def streams_seen(postprocessing: str, numbers: list[int]) -> list[int]:
    """How many ids of each stream postprocessing has detokenised; empty when it cannot be asked."""
    question = [
        pb.Tensor("TOKENS_BATCH", np.zeros((1, 0, 0), np.int32)),
        pb.Tensor("SEQUENCE_LENGTH", np.array([numbers], np.int32)),
    ]
    request = pb.InferenceRequest(model_name=postprocessing, requested_output_names=["OUTPUT"], inputs=question)
    try:
        response: Any = request.exec()
    except pb.TritonModelException:  # it is being unloaded, or never was loaded
        return []
    if response.has_error():
        return []
    return [int(number) for number in response.output_tensors()[0].as_numpy().ravel()]
