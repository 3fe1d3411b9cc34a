"""The postprocessing model: token ids to text.

It sees one response at a time. A response that carries fewer ids than SEQUENCE_LENGTH counts continues a stream, and
is decoded as a continuation: a SentencePiece tokenizer then keeps the space before the first word, so that the
streamed pieces add up to the text of the whole. The engine only cuts where characters are complete.

In the contracts of releases up to 0.13 all else that the engine says (log-probabilities, logits, the index in a batch)
passes through here: OUT_X is X, or a zero where the engine said nothing, since their answers have every output.

SEQUENCE_LENGTH may hold one number more than there are beams: the number of a stream whose client may go without the
engine being told. A request without beams asks how far such streams have come.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import triton_python_backend_utils as pb
from tokenizing import Tokenizer, directory, flag

REMEMBERED = 4096  # streams


class TritonPythonModel:
    """One response per request, made of that request alone; beside it the progress of streams is remembered."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the tokenizer; an unusable one fails the model's load, not the first request."""
        config = json.loads(args["model_config"])
        self.skip_special = flag(config, "skip_special_tokens", default=True)
        self.seen: dict[int, int] = {}
        self.passing = {
            output["name"]: (pb.triton_string_to_numpy(output["data_type"]), len(output["dims"]))
            for output in config["output"]
            if output["name"].startswith("OUT_")
        }
        self.tokenizer = Tokenizer(directory(args, config, "tokenizer_dir"))

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response per request."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        tokens = pb.get_input_tensor_by_name(request, "TOKENS_BATCH").as_numpy()
        lengths = pb.get_input_tensor_by_name(request, "SEQUENCE_LENGTH").as_numpy()
        beams = math.prod(tokens.shape[:-1])
        rows, numbers = tokens.reshape(beams, tokens.shape[-1]).tolist(), lengths.ravel().tolist()
        if not beams:
            return self._progress(numbers)
        try:
            text = [self._text(ids, length) for ids, length in zip(rows, numbers[:beams], strict=True)]
        except (ValueError, OverflowError) as mistake:
            shapes = f"TOKENS_BATCH {list(tokens.shape)}, SEQUENCE_LENGTH {list(lengths.shape)}"
            return pb.InferenceResponse(error=pb.TritonError(f"tokens cannot be decoded: {mistake} ({shapes})"))
        if len(numbers) == beams + 1:
            self._note(numbers[-1], numbers[0])
        output = np.array([line.encode("utf-8") for line in text], np.object_).reshape(tokens.shape[:-1])
        return pb.InferenceResponse([pb.Tensor("OUTPUT", output), *self._passed(request, tokens.shape[0])])

    def _passed(self, request: Any, rows: int) -> Iterator[Any]:
        """The tensors that only pass through."""
        for name, (kind, axes) in self.passing.items():
            given = pb.get_input_tensor_by_name(request, name.removeprefix("OUT_"))
            yield pb.Tensor(name, np.zeros((rows, *[1] * axes), kind) if given is None else given.as_numpy())

    def _text(self, ids: list[int], length: int) -> str:
        if length > len(ids):
            return self.tokenizer.decode_more(ids, skip_special=self.skip_special)
        return self.tokenizer.decode(ids[: max(length, 0)], skip_special=self.skip_special)

    def _note(self, stream: int, total: int) -> None:
        """Remember how far a stream has come; the oldest are forgotten."""
        self.seen.pop(stream, None)
        self.seen[stream] = total
        if len(self.seen) > REMEMBERED:
            del self.seen[next(iter(self.seen))]

    def _progress(self, streams: list[int]) -> Any:
        """The engine's question: how many ids of these streams arrived here."""
        totals = np.array([[str(self.seen.get(stream, 0)).encode() for stream in streams]], np.object_)
        return pb.InferenceResponse([pb.Tensor("OUTPUT", totals)])
