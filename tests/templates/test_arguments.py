"""A request's tensors become jobs, or one error that names the field as the client knows it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest


@pytest.fixture
def settings(modules: Any) -> Any:
    return modules.settings.Settings(
        max_batch_size=4, max_input_len=8, max_output_len=16, max_seq_len=20, max_num_tokens=8, vocab_size=100,
        eos_token_ids=(2, 3), pad_token_id=0, max_beam_width=2, kv_cache_tokens=64, prefix_caching=True,
        chunked_context=True, exclude_input=True, decoupled=True, cancellation_check_s=0.1, max_queue_size=0,
    )  # fmt: skip


def _request(**more: Any) -> dict[str, Any]:
    """A valid request of one prompt of three ids; values given as plain numbers become tensors of one row."""
    tensors: dict[str, Any] = {"input_ids": [[5, 6, 7, 0]], "input_lengths": [3], "request_output_len": [4], **more}
    kinds = {bool: np.bool_, int: np.int32, float: np.float32}
    found = {}
    for name, value in tensors.items():
        rows = value if isinstance(value, list) else [value]
        array = np.array(rows)
        found[name] = array.astype(kinds.get(type(array.ravel()[0].item()), array.dtype) if array.size else np.int32)
    return found


def _job(modules: Any, settings: Any, **more: Any) -> Any:
    jobs = modules.arguments.jobs(_request(**more), settings)
    assert len(jobs) == 1
    return jobs[0]


def test_padding_is_not_prompt(modules: Any, settings: Any) -> None:
    assert _job(modules, settings).prompt.tolist() == [5, 6, 7]


def test_a_batch_is_a_job_per_prompt_with_its_index(modules: Any, settings: Any) -> None:
    tensors = _request(input_ids=[[5, 6], [7, 0]], input_lengths=[2, 1], request_output_len=[4, 5])
    jobs = modules.arguments.jobs(tensors, settings)
    assert [(job.prompt.tolist(), job.sampling.max_tokens, job.wanted.batch_index) for job in jobs] == [
        ([5, 6], 4, 0),
        ([7], 5, 1),
    ]


def test_the_models_ends_are_the_default_and_an_own_end_replaces_them(modules: Any, settings: Any) -> None:
    assert _job(modules, settings).sampling.end_ids == (2, 3)
    assert _job(modules, settings, end_id=3).sampling.end_ids == (3, 2)
    assert _job(modules, settings, end_id=9).sampling.end_ids == (9,)
    assert _job(modules, settings, end_id=-1).sampling.end_ids == ()


def test_both_names_of_a_field_are_known(modules: Any, settings: Any) -> None:
    job = _job(modules, settings, min_length=2, random_seed=7)
    assert (job.sampling.min_tokens, job.sampling.seed) == (2, 7)
    with pytest.raises(ValueError, match="min_tokens 1 and min_length 2"):
        _job(modules, settings, min_tokens=1, min_length=2)


def test_stop_words_are_read_from_upstreams_layout(modules: Any, settings: Any) -> None:
    assert _job(modules, settings, stop_words_list=[[[8, 9, 4], [2, 3, -1]]]).stop_words == ((8, 9), (4,))
    with pytest.raises(ValueError, match="stop_words"):
        _job(modules, settings, stop_words_list=[[[8, 9], [2, 1]]])


def test_a_huge_list_of_stop_words_is_refused_with_numbers(modules: Any, settings: Any) -> None:
    count = modules.arguments.MAX_STOP_WORDS + 1
    with pytest.raises(ValueError, match=f"stop_words: {count} words"):
        _job(modules, settings, stop_words_list=[[[8] * count, list(range(1, count + 1))]])


@pytest.mark.parametrize(
    ("tensor", "value", "field"),
    [
        ("bad_words_list", [[[1], [1]]], "bad_words"),
        ("embedding_bias", [[0.5]], "embedding_bias_words"),
        ("decoder_input_ids", [[1]], "decoder_text_input"),
        ("draft_input_ids", [[1]], "draft_input_ids"),
        ("num_return_sequences", 2, "num_return_sequences"),
        ("return_generation_logits", True, "return_generation_logits"),
        ("return_perf_metrics", True, "return_perf_metrics"),
        ("lora_task_id", 0, "lora_task_id"),
        ("runtime_top_p_min", 0.5, "runtime_top_p_min"),
        ("a_field_of_tomorrow", 1, "a_field_of_tomorrow"),
    ],
)
def test_what_the_engine_cannot_do_is_refused_by_name(
    modules: Any, settings: Any, tensor: str, value: Any, field: str
) -> None:
    with pytest.raises(ValueError, match=rf"not supported by the openvino engine: {field}$"):
        _job(modules, settings, **{tensor: value})


@pytest.mark.parametrize(
    ("tensor", "value"), [("return_generation_logits", False), ("num_return_sequences", 1), ("bad_words_list", [[]])]
)
def test_what_asks_for_nothing_is_accepted(modules: Any, settings: Any, tensor: str, value: Any) -> None:
    _job(modules, settings, **{tensor: value})


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"input_ids": [[5] * 9], "input_lengths": 9}, "the prompt has 9 tokens, the engine takes 8"),
        ({"input_lengths": 0}, "text_input is empty"),
        ({"input_lengths": 5}, "input_lengths is 5, but input_ids has 4"),
        ({"input_ids": [[5, 100, 7]]}, "outside the vocabulary"),
        ({"request_output_len": 17}, "max_tokens is 17, the engine makes at most 16"),
        ({"input_ids": [[5] * 8], "input_lengths": 8, "request_output_len": 13}, "8 prompt tokens . max_tokens 13"),
        ({"end_id": 100}, "end_id is 100"),
        ({"pad_id": -1}, "pad_id is -1"),
        ({"streaming": True, "beam_width": 2}, "stream is true and beam_width is 2"),
        ({"temperature": [0.5, 0.5]}, "temperature has shape"),
        ({"streaming": True, "return_context_logits": True}, "stream is true with return_context_logits"),
    ],
)
def test_a_limit_is_told_with_its_numbers(modules: Any, settings: Any, more: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        _job(modules, settings, **more)


def test_logits_of_the_prompt_are_wanted_when_asked_for(modules: Any, settings: Any) -> None:
    assert _job(modules, settings, return_context_logits=True).wanted.context_logits
    assert not _job(modules, settings, return_context_logits=False).wanted.context_logits


def test_more_logits_than_one_answer_should_hold_are_refused_with_numbers(modules: Any) -> None:
    modules.arguments.check_logits(1765, 152_064)
    with pytest.raises(ValueError, match="4096 tokens x 152064 logits are 2376 MiB: at most 1024"):
        modules.arguments.check_logits(4096, 152_064)


def test_a_missing_input_is_named(modules: Any, settings: Any) -> None:
    tensors = _request()
    del tensors["request_output_len"]
    with pytest.raises(ValueError, match="missing input: request_output_len"):
        modules.arguments.jobs(tensors, settings)
