"""The preprocessing model: prompts and word lists to token ids.

Tensor names and layouts are TensorRT-LLM's. A word list of n ids is [2, n]: the ids of all words in a row, and below
them where each word ends, padded with -1.
"""

from __future__ import annotations

import difflib
import json
from typing import Any

import numpy as np
import triton_python_backend_utils as pb
from tokenizing import Tokenizer, directory, flag

RESERVED = ("sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "binary_data_output")
SERVER_OWN = "triton_"
FIELDS = (
    "text_input", "max_tokens", "bad_words", "stop_words", "end_id", "pad_id", "top_k", "top_p", "temperature",
    "length_penalty", "repetition_penalty", "min_tokens", "min_length", "presence_penalty", "frequency_penalty",
    "seed", "random_seed", "return_log_probs", "beam_width", "stream", "num_return_sequences",
    "exclude_input_in_output", "return_num_input_tokens", "return_num_output_tokens",
    "return_context_logits",
)  # fmt: skip


class TritonPythonModel:
    """Stateless: one response per request."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the tokenizer; an unusable one fails the model's load, not the first request."""
        config = json.loads(args["model_config"])
        self.special = flag(config, "add_special_tokens", default=True)
        self.tokenizer = Tokenizer(directory(args, config, "tokenizer_dir"))
        self.end_id = self.tokenizer.end_id
        self.pad_id = self.end_id if self.tokenizer.pad_id is None else self.tokenizer.pad_id

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response per request; a request's mistake is that request's error."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            refuse_unknown(json.loads(request.parameters() or "{}"))
            tensors = {name: array for name, array in self._tensors(request) if array is not None}
        except ValueError as mistake:
            return pb.InferenceResponse(error=pb.TritonError(str(mistake)))
        return pb.InferenceResponse([pb.Tensor(name, array) for name, array in tensors.items()])

    def _tensors(self, request: Any) -> list[tuple[str, Any]]:
        ids, lengths = self._prompts(texts(request, "QUERY", "text_input"))
        rows = len(lengths)
        return [
            ("INPUT_ID", ids),
            ("REQUEST_INPUT_LEN", lengths),
            ("REQUEST_OUTPUT_LEN", array_of(request, "REQUEST_OUTPUT_LEN")),
            ("BAD_WORDS_IDS", self._words(texts(request, "BAD_WORDS_DICT", "bad_words"), rows)),
            ("STOP_WORDS_IDS", self._words(texts(request, "STOP_WORDS_DICT", "stop_words"), rows)),
            ("OUT_END_ID", one_id(request, "END_ID", self.end_id, rows)),
            ("OUT_PAD_ID", one_id(request, "PAD_ID", self.pad_id, rows)),
            *self._decoder(texts(request, "DECODER_QUERY", "decoder_text_input")),
            ("EMBEDDING_BIAS", self._bias(request, rows)),
        ]

    def _prompts(self, rows: list[list[str]]) -> tuple[Any, Any]:
        encoded = [self.tokenizer.encode("".join(row), special=self.special) for row in rows]
        ids = np.full((len(encoded), max(map(len, encoded))), self.pad_id or 0, np.int32)
        for row, tokens in enumerate(encoded):
            ids[row, : len(tokens)] = tokens
        return ids, np.array([[len(tokens)] for tokens in encoded], np.int32)

    def _words(self, rows: list[list[str]], count: int) -> Any:
        lists = [[self.tokenizer.encode(word, special=False) for word in row if word] for row in rows]
        return word_lists(lists, count) if any(lists) else None

    def _decoder(self, rows: list[list[str]]) -> list[tuple[str, Any]]:
        if not rows:
            return []
        ids, lengths = self._prompts(rows)
        return [("DECODER_INPUT_ID", ids), ("REQUEST_DECODER_INPUT_LEN", lengths)]

    def _bias(self, request: Any, rows: int) -> Any:
        words = texts(request, "EMBEDDING_BIAS_WORDS", "embedding_bias_words")
        weights = array_of(request, "EMBEDDING_BIAS_WEIGHTS")
        counts = (sum(map(len, words)), 0 if weights is None else weights.size)
        if counts[0] != counts[1]:
            raise ValueError(f"embedding_bias_words has {counts[0]} words, embedding_bias_weights {counts[1]} numbers")
        if not words or weights is None:
            return None
        bias = np.zeros((rows, self.tokenizer.size), np.float32)
        for row, (line, numbers) in enumerate(zip(words, weights.reshape(len(words), -1), strict=True)):
            for word, weight in zip(line, numbers, strict=True):
                bias[row, self.tokenizer.encode(word, special=False)] += weight
        return bias


def refuse_unknown(parameters: dict[str, Any]) -> None:
    """Raise ValueError for request parameters, which is what /generate makes of JSON keys that are no inputs."""
    unknown = sorted(key for key in parameters if key not in RESERVED and not key.startswith(SERVER_OWN))
    if unknown:
        named = ", ".join(key + suggestion(key) for key in unknown)
        raise ValueError(f"unknown request field: {named}")


def suggestion(name: str) -> str:
    """The nearest field of a request, as the end of a sentence."""
    near = difflib.get_close_matches(name, FIELDS, 1)
    return f" (did you mean {near[0]}?)" if near else ""


def array_of(request: Any, name: str) -> Any:
    """An input's array, or None."""
    tensor = pb.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def texts(request: Any, name: str, field: str) -> list[list[str]]:
    """The strings of an input per batch row; raises ValueError that names the client's `field`."""
    array = array_of(request, name)
    if array is None:
        return []
    if array.size == 0:
        raise ValueError(f"{field} is an empty tensor: give at least one string")
    rows = array.reshape(array.shape[0], -1)
    return [[decoded(value, field) for value in row] for row in rows.tolist()]


def decoded(value: bytes, field: str) -> str:
    """UTF-8 text, or ValueError that says where it is broken."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as reason:
        raise ValueError(f"{field} is not UTF-8: {reason.reason} at byte {reason.start}") from None


def one_id(request: Any, name: str, default: int | None, rows: int) -> Any:
    """A token id per row, the tokenizer's own where the client gave none."""
    given = array_of(request, name)
    if given is not None:
        return given
    return None if default is None else np.full((rows, 1), default, np.int32)


def word_lists(rows: list[list[list[int]]], count: int) -> Any:
    """int32 [count, 2, n]; one row stands for every prompt of the request."""
    rows = rows * count if len(rows) == 1 else rows
    longest = max(sum(map(len, words)) for words in rows)
    out = np.zeros((len(rows), 2, longest), np.int32)
    out[:, 1, :] = -1
    for row, words in enumerate(rows):
        flat = [token for word in words for token in word]
        out[row, 0, : len(flat)] = flat
        out[row, 1, : len(words)] = np.cumsum([len(word) for word in words])
    return out
