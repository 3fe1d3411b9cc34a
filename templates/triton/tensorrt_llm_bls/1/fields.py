"""Which of the client's fields goes where: TensorRT-LLM's names on both sides."""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb
from tokenizing import parameter

SERVER_OWN = ("triton_", "sequence_", "priority", "timeout", "binary_data_output")
# client -> preprocessing
PREPROCESSING = {
    "text_input": "QUERY",
    "decoder_text_input": "DECODER_QUERY",
    "max_tokens": "REQUEST_OUTPUT_LEN",
    "bad_words": "BAD_WORDS_DICT",
    "stop_words": "STOP_WORDS_DICT",
    "embedding_bias_words": "EMBEDDING_BIAS_WORDS",
    "embedding_bias_weights": "EMBEDDING_BIAS_WEIGHTS",
    "end_id": "END_ID",
    "pad_id": "PAD_ID",
    "prompt_table_extra_id": "PROMPT_TABLE_EXTRA_ID",
}
# preprocessing -> engine
PREPARED = {
    "INPUT_ID": "input_ids",
    "REQUEST_INPUT_LEN": "input_lengths",
    "REQUEST_OUTPUT_LEN": "request_output_len",
    "DECODER_INPUT_ID": "decoder_input_ids",
    "REQUEST_DECODER_INPUT_LEN": "decoder_input_lengths",
    "BAD_WORDS_IDS": "bad_words_list",
    "STOP_WORDS_IDS": "stop_words_list",
    "EMBEDDING_BIAS": "embedding_bias",
    "OUT_END_ID": "end_id",
    "OUT_PAD_ID": "pad_id",
    "OUT_PROMPT_TABLE_EXTRA_IDS": "prompt_table_extra_ids",
}
# client -> engine, where the names differ; all others keep theirs
RENAMED = {"top_k": "runtime_top_k", "top_p": "runtime_top_p", "length_penalty": "len_penalty", "stream": "streaming"}
# parameter without which a field cannot be honoured -> the fields
NEEDS = {
    "multimodal_encoders_name": (
        "image_input", "image_bytes_input", "image_url_input", "image_sizes_input", "video_bytes_input",
    ),
    "tensorrt_llm_draft_model_name": ("num_draft_tokens", "use_draft_logits"),
}  # fmt: skip


def refuse_unset(tensors: dict[str, Any], config: dict[str, Any]) -> None:
    """Raise ValueError for fields that this repository has no model for; a false or a zero asks for nothing."""
    for setting, fields in NEEDS.items():
        asked = [name for name in fields if name in tensors and tensors[name].as_numpy().any()]
        if asked and not parameter(config, setting):
            raise ValueError(f"not supported by this repository: {', '.join(asked)} ({setting} is not set)")


def preprocessing_inputs(tensors: dict[str, Any]) -> list[Any]:
    """What preprocessing is asked."""
    return [renamed(tensors[name], target) for name, target in PREPROCESSING.items() if name in tensors]


def engine_inputs(tensors: dict[str, Any], prepared: dict[str, Any]) -> list[Any]:
    """What the engine is asked: preprocessing's answer, and the client's fields that are not text or pictures."""
    elsewhere = {*PREPROCESSING, *(field for fields in NEEDS.values() for field in fields)}
    own = {name: tensor for name, tensor in tensors.items() if name not in elsewhere}
    return [
        *(renamed(prepared[name], target) for name, target in PREPARED.items() if name in prepared),
        *(renamed(tensor, RENAMED.get(name, name)) for name, tensor in own.items()),
    ]


def renamed(tensor: Any, name: str) -> Any:
    """The same values under another name, with the batch dimension that the contract's `reshape` took away."""
    values = tensor.as_numpy()
    return pb.Tensor(name, values.reshape(-1, 1) if values.ndim == 1 else values)
