"""The postprocessing model: token ids to text.

It sees one response at a time. A response that carries fewer ids than SEQUENCE_LENGTH counts continues a stream, and
is decoded as a continuation: a SentencePiece tokenizer then keeps the space before the first word, so that the
streamed pieces add up to the text of the whole. The engine only cuts where characters are complete.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import triton_python_backend_utils as pb
from tokenizing import Tokenizer, directory, flag


class TritonPythonModel:
    """Stateless: one response per request."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the tokenizer; an unusable one fails the model's load, not the first request."""
        config = json.loads(args["model_config"])
        self.skip_special = flag(config, "skip_special_tokens", default=True)
        self.tokenizer = Tokenizer(directory(args, config, "tokenizer_dir"))

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response per request."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        tokens = pb.get_input_tensor_by_name(request, "TOKENS_BATCH").as_numpy()
        lengths = pb.get_input_tensor_by_name(request, "SEQUENCE_LENGTH").as_numpy()
        try:
            rows = tokens.reshape(math.prod(tokens.shape[:-1]), tokens.shape[-1])
            pairs = zip(rows.tolist(), lengths.ravel().tolist(), strict=True)
            text = [self._text(row, length) for row, length in pairs]
        except (ValueError, OverflowError) as mistake:
            shapes = f"TOKENS_BATCH {list(tokens.shape)}, SEQUENCE_LENGTH {list(lengths.shape)}"
            return pb.InferenceResponse(error=pb.TritonError(f"tokens cannot be decoded: {mistake} ({shapes})"))
        output = np.array([line.encode("utf-8") for line in text], np.object_).reshape(tokens.shape[:-1])
        return pb.InferenceResponse([pb.Tensor("OUTPUT", output)])

    def _text(self, ids: list[int], length: int) -> str:
        if length > len(ids):
            return self.tokenizer.decode_more(ids, skip_special=self.skip_special)
        return self.tokenizer.decode(ids[: max(length, 0)], skip_special=self.skip_special)
