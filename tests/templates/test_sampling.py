"""Sampling fields mean what TensorRT-LLM says, and what cannot be is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("fields", "greedy"),
    [
        ({}, True),
        ({"top_k": 1, "top_p": 0.9}, True),
        ({"top_k": 0, "top_p": 0.0, "temperature": 5.0}, True),
        ({"top_p": -1.0}, True),
        ({"top_k": 50, "temperature": 0.0}, True),
        ({"top_k": 2}, False),
        ({"top_p": 1.0}, False),
    ],
)
def test_greedy_is_the_default_and_sampling_is_asked_for(modules: Any, fields: dict[str, Any], greedy: bool) -> None:
    sampling = modules.sampling.checked(modules.sampling.Sampling(max_tokens=8, **fields), 1)
    assert sampling.greedy is greedy
    assert modules.sampling.options(sampling)["do_sample"] is not greedy


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", -5),
        ("min_tokens", -1),
        ("min_tokens", 9),
        ("top_k", -1),
        ("top_p", 1.5),
        ("top_p", NAN),
        ("temperature", -0.1),
        ("temperature", NAN),
        ("temperature", INF),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", INF),
        ("presence_penalty", 2.5),
        ("frequency_penalty", NAN),
        ("length_penalty", -INF),
        ("beam_width", 0),
        ("beam_width", 5),
    ],
)
def test_an_impossible_value_is_refused_by_the_field_and_the_value(modules: Any, field: str, value: float) -> None:
    sampling = modules.sampling.Sampling(**{"max_tokens": 8, field: value})
    with pytest.raises(ValueError, match=rf"^{field} is {value}: must be "):
        modules.sampling.checked(sampling, 4)


@pytest.mark.parametrize("field", [{"top_p": 0.5}, {"temperature": 0.5}])
def test_beams_do_not_sample(modules: Any, field: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="beam"):
        modules.sampling.checked(modules.sampling.Sampling(max_tokens=8, beam_width=2, **field), 4)


def test_every_option_is_an_attribute_of_genai(modules: Any) -> None:
    genai = pytest.importorskip("openvino_genai")
    ends = {"end_ids": (2, 3)}
    for fields in ({}, {"top_k": 5, "top_p": 0.5, "seed": 2**64 - 1}, {"beam_width": 3, "early_stopping": True}):
        sampling = modules.sampling.Sampling(max_tokens=8, min_tokens=2, log_probs=True, **fields, **ends)
        config = modules.sampling.generation_config(genai, modules.sampling.checked(sampling, 4))
        config.validate()
        assert config.stop_token_ids == {2, 3}


def test_without_an_end_the_text_goes_on(modules: Any) -> None:
    genai = pytest.importorskip("openvino_genai")
    config = modules.sampling.generation_config(genai, modules.sampling.Sampling(max_tokens=8))
    assert config.ignore_eos


@pytest.mark.parametrize(
    ("fields", "only"),
    [
        ({"max_tokens": 1}, True),
        ({"max_tokens": 1, "top_k": 1, "log_probs": True}, True),
        ({"max_tokens": 2}, False),
        ({"max_tokens": 1, "min_tokens": 1}, False),
        ({"max_tokens": 1, "top_p": 0.5}, False),
        ({"max_tokens": 1, "beam_width": 2}, False),
        ({"max_tokens": 1, "repetition_penalty": 1.1}, False),
        ({"max_tokens": 1, "presence_penalty": 0.1}, False),
    ],
)
def test_one_plain_token_is_what_the_prompts_logits_say(modules: Any, fields: dict[str, Any], only: bool) -> None:
    assert modules.sampling.Sampling(**fields).only_likeliest is only
