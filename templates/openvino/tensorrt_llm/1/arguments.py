"""From the tensors of a request to jobs; what the engine cannot do is refused by the name that the client used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from job import Job, Wanted
from sampling import Sampling, checked
from settings import Settings

Tensors = Mapping[str, Any]

# tensor -> field of Sampling
NUMBERS = {
    "request_output_len": "max_tokens",
    "runtime_top_k": "top_k",
    "runtime_top_p": "top_p",
    "temperature": "temperature",
    "len_penalty": "length_penalty",
    "repetition_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "beam_width": "beam_width",
    "early_stopping": "early_stopping",
    "return_log_probs": "log_probs",
}
ALIASES = {"min_tokens": ("min_tokens", "min_length"), "seed": ("seed", "random_seed")}
HANDLED = {
    *NUMBERS, "input_ids", "input_lengths", "end_id", "pad_id", "stop_words_list", "min_tokens", "min_length", "seed",
    "random_seed", "streaming", "exclude_input_in_output", "return_num_input_tokens", "return_num_output_tokens",
    "return_context_logits", "stop",
}  # fmt: skip
# tensor -> what a client of ensemble or BLS calls it, where that differs
CLIENT_NAMES = {
    "bad_words_list": "bad_words",
    "embedding_bias": "embedding_bias_words",
    "decoder_input_ids": "decoder_text_input",
    "decoder_input_lengths": "decoder_text_input",
    "prompt_table_extra_ids": "prompt_table_extra_id",
}
# a value that says the same as leaving the tensor out
NEUTRAL = {"num_return_sequences": 1, "beam_search_diversity_rate": 0}
MAX_STOP_WORDS, MAX_STOP_IDS = 1024, 8192
MAX_LOGITS_MIB = 1024  # of one answer: a gRPC message ends at 2 GiB, and the same in JSON is several times as long


def jobs(tensors: Tensors, settings: Settings) -> list[Job]:
    """A job per prompt of the batch. Raises ValueError that names the field."""
    refuse_unsupported(tensors)
    lengths = tensors["input_lengths"].ravel().tolist()
    if len(lengths) > 1 and not settings.decoupled:
        raise ValueError(f"batch of {len(lengths)} prompts in one request: needs decoupled_mode = true")
    return [job(row(tensors, index, len(lengths)), index, len(lengths), settings) for index in range(len(lengths))]


def refuse_unsupported(tensors: Tensors) -> None:
    """Raise ValueError for every tensor that asks for something and that this engine does not know."""
    asked = [name for name, value in tensors.items() if name not in HANDLED and asks(name, value)]
    if asked:
        fields = ", ".join(dict.fromkeys(CLIENT_NAMES.get(name, name) for name in asked))
        raise ValueError(f"not supported by the openvino engine: {fields}")
    missing = [name for name in ("input_ids", "input_lengths", "request_output_len") if name not in tensors]
    if missing:
        raise ValueError(f"missing input: {', '.join(missing)}")


def asks(name: str, value: Any) -> bool:
    """False for an empty tensor, all false, or the value that means nothing."""
    if value.size == 0 or (value.dtype == np.bool_ and not value.any()):
        return False
    return not (name in NEUTRAL and bool((value == NEUTRAL[name]).all()))


def row(tensors: Tensors, index: int, count: int) -> dict[str, Any]:
    """The tensors of one prompt. Raises ValueError for a tensor that has another number of rows."""
    found = {}
    for name, value in tensors.items():
        if value.shape[:1] != (count,):
            raise ValueError(f"{CLIENT_NAMES.get(name, name)} has shape {list(value.shape)}, but the batch is {count}")
        found[name] = value[index]
    return found


def job(values: Tensors, index: int, count: int, settings: Settings) -> Job:
    """One prompt's job, checked against the engine's limits."""
    prompt = checked_prompt(values["input_ids"].ravel(), one(values, "input_lengths"), settings)
    numbers = {field: one(values, name) for name, field in NUMBERS.items() if name in values}
    numbers |= {field: one_of(values, names) for field, names in ALIASES.items() if set(names) & set(values)}
    sampling = checked(Sampling(**numbers, end_ids=end_ids(values, settings)), settings.max_beam_width)
    check_length(len(prompt), sampling.max_tokens, settings)
    asked = wanted(values, index if count > 1 else None, sampling, settings)
    if asked.context_logits:
        check_logits(len(prompt), settings.vocab_size)
    return Job(
        prompt=prompt,
        sampling=sampling,
        wanted=asked,
        pad_id=token_id(values, "pad_id", settings, default=settings.pad_token_id),
        stop_words=stop_words(values.get("stop_words_list")),
    )


def one(values: Tensors, name: str) -> Any:
    """The Python scalar of a tensor with one element."""
    if values[name].size != 1:
        raise ValueError(f"{CLIENT_NAMES.get(name, name)} has {values[name].size} elements: must be one")
    return values[name].item()


def one_of(values: Tensors, names: tuple[str, ...]) -> Any:
    """A field that has two names; both may be given if they agree."""
    given = {name: one(values, name) for name in names if name in values}
    if len(set(given.values())) > 1:
        said = " and ".join(f"{name} {value}" for name, value in given.items())
        raise ValueError(f"{said} are two names of one field: give one")
    return next(iter(given.values()))


def checked_prompt(ids: Any, length: int, settings: Settings) -> Any:
    """The valid ids of a padded row."""
    if not 0 <= length <= ids.size:
        raise ValueError(f"input_lengths is {length}, but input_ids has {ids.size} ids")
    if length == 0:
        raise ValueError("text_input is empty: it gives no tokens")
    if length > settings.max_input_len:
        raise ValueError(f"the prompt has {length} tokens, the engine takes {settings.max_input_len} (max_input_len)")
    prompt = ids[:length]
    if prompt.min() < 0 or prompt.max() >= settings.vocab_size:
        raise ValueError(f"input_ids holds ids outside the vocabulary (0 to {settings.vocab_size - 1})")
    return prompt


def check_length(prompt: int, output: int, settings: Settings) -> None:
    """Raise ValueError with both numbers when the answer cannot be held."""
    if output > settings.max_output_len:
        raise ValueError(f"max_tokens is {output}, the engine makes at most {settings.max_output_len} (max_output_len)")
    if prompt + output > settings.max_seq_len:
        raise ValueError(f"{prompt} prompt tokens + max_tokens {output} exceed {settings.max_seq_len} (max_seq_len)")


def check_logits(prompt: int, vocabulary: int) -> None:
    """Raise ValueError with the numbers when the context logits of a prompt are more than one answer should hold."""
    size = prompt * vocabulary * 4 >> 20
    if size > MAX_LOGITS_MIB:
        raise ValueError(
            f"return_context_logits: {prompt} tokens x {vocabulary} logits are {size} MiB: at most {MAX_LOGITS_MIB}"
        )


def end_ids(values: Tensors, settings: Settings) -> tuple[int, ...]:
    """The ids that end the text: the one asked for, all of the model's own if it is one of them, none for -1."""
    if "end_id" not in values:
        return settings.eos_token_ids
    asked = token_id(values, "end_id", settings, default=-1, lowest=-1)
    if asked in settings.eos_token_ids:
        return (asked, *(token for token in settings.eos_token_ids if token != asked))
    return () if asked == -1 else (asked,)


def token_id(values: Tensors, name: str, settings: Settings, *, default: int, lowest: int = 0) -> int:
    """An id within the vocabulary."""
    if name not in values:
        return default
    asked = int(one(values, name))
    if not lowest <= asked < settings.vocab_size:
        raise ValueError(f"{name} is {asked}: must be {lowest} to {settings.vocab_size - 1}")
    return asked


def wanted(values: Tensors, index: int | None, sampling: Sampling, settings: Settings) -> Wanted:
    """What to answer. Raises ValueError for a stream that cannot be."""
    flags = {name: bool(one(values, name)) for name in values if values[name].dtype == np.bool_}
    stream = flags.get("streaming", False)
    if stream and not settings.decoupled:
        raise ValueError("stream is true, but the model is not decoupled: set decoupled_mode = true")
    if stream and sampling.beam_width > 1:
        raise ValueError(f"stream is true and beam_width is {sampling.beam_width}: beams are known at the end only")
    if stream and flags.get("return_context_logits"):
        raise ValueError("stream is true with return_context_logits: they come whole, so ask without stream")
    return Wanted(
        stream=stream,
        log_probs=sampling.log_probs,
        context_logits=flags.get("return_context_logits", False),
        include_input=not stream and not flags.get("exclude_input_in_output", settings.exclude_input),
        num_input_tokens=flags.get("return_num_input_tokens", False),
        num_output_tokens=flags.get("return_num_output_tokens", False),
        batch_index=index,
    )


def stop_words(layout: Any) -> tuple[tuple[int, ...], ...]:
    """The words of TensorRT-LLM's layout: [2, n], ids above, below where each word ends, padded with -1."""
    if layout is None or layout.size == 0:
        return ()
    if layout.ndim != 2 or layout.shape[0] != 2:
        raise ValueError(f"stop_words_list has shape {list(layout.shape)}: must be [2, n]")
    ends = [end for end in layout[1].tolist() if end > 0]
    if ends != sorted(set(ends)) or (ends and ends[-1] > layout.shape[1]):
        raise ValueError("stop_words_list: the second row must rise and stay within the first")
    if len(ends) > MAX_STOP_WORDS or (ends and ends[-1] > MAX_STOP_IDS):
        raise ValueError(
            f"stop_words: {len(ends)} words, {ends[-1]} tokens in all: "
            f"at most {MAX_STOP_WORDS} words, {MAX_STOP_IDS} tokens"
        )
    ids = layout[0].tolist()
    return tuple(tuple(ids[start:end]) for start, end in zip([0, *ends], ends, strict=False))
