"""Answers in TensorRT-LLM's tensors. Only what was asked for is sent."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton_python_backend_utils as pb
from job import Job


def response(
    job: Job,
    beams: list[list[int]],
    log_probs: list[list[float]],
    *,
    start: int = 0,
    stream: int | None = None,
    context_logits: Any = None,
) -> Any:
    """A response of one or more beams; `log_probs` are those of all generated ids, of which `start` went before.

    To an ensemble a `stream` is told apart: its sequence_length is [ids so far, number of the stream], from which
    postprocessing knows that a text goes on, and later tells how much of the stream it has seen.
    """
    longest = max(map(len, beams))
    lengths = [len(ids) for ids in beams] if stream is None else [start + len(beams[0]), stream]
    tensors = [
        pb.Tensor("output_ids", np.array([[padded(ids, longest, job.pad_id) for ids in beams]], np.int32)),
        pb.Tensor("sequence_length", np.array([lengths], np.int32)),
        *counts(job, beams, start),
    ]
    if job.wanted.batch_index is not None:
        tensors.append(pb.Tensor("batch_index", np.array([[job.wanted.batch_index]], np.int32)))
    if context_logits is not None:
        tensors.append(pb.Tensor("context_logits", context_logits[None]))
    return pb.InferenceResponse([*tensors, *probabilities(job, log_probs, start)])


def padded(items: list[Any], length: int, filler: Any) -> list[Any]:
    """`items` filled up to `length`."""
    return items if len(items) == length else [*items, *[filler] * (length - len(items))]


def counts(job: Job, beams: list[list[int]], start: int) -> list[Any]:
    """num_input_tokens and num_output_tokens (all beams together; in a stream, so far)."""
    prompt = len(job.prompt)
    echoed = prompt if job.wanted.include_input else 0
    numbers = {}
    if job.wanted.num_input_tokens:
        numbers["num_input_tokens"] = prompt
    if job.wanted.num_output_tokens:
        numbers["num_output_tokens"] = start + sum(len(ids) - echoed for ids in beams)
    return [pb.Tensor(name, np.array([[number]], np.int32)) for name, number in numbers.items()]


def probabilities(job: Job, log_probs: list[list[float]], start: int) -> list[Any]:
    """cum_log_probs [1, beams] of all ids and output_log_probs [1, beams, n] of those from `start`, in nats."""
    if not job.wanted.log_probs:
        return []
    longest = max(map(len, log_probs))
    cumulated = [sum(values) for values in log_probs]
    each = [padded(values, longest, 0.0)[start:] for values in log_probs]
    return [
        pb.Tensor("cum_log_probs", np.array([cumulated], np.float32)),
        pb.Tensor("output_log_probs", np.array([each], np.float32)),
    ]


def failure(message: str, code: Any = None) -> Any:
    """An error that is this request's alone."""
    error = pb.TritonError(message) if code is None else pb.TritonError(message, code)
    return pb.InferenceResponse(error=error)
