"""What is asked for over each protocol."""

from __future__ import annotations

import json
from typing import Any

import asking
import pytest
from prompts import Prompt

from tests.tools.load.conftest import SETTINGS

PROMPT = Prompt("bees?", 5)


def _settings(ports: dict[str, int], **more: Any) -> dict[str, Any]:
    return SETTINGS | {"grpc": f"127.0.0.1:{ports['grpc']}", "http": f"http://127.0.0.1:{ports['http']}"} | more


@pytest.mark.parametrize("over", ["grpc", "http"])
def test_a_model_is_asked_only_for_what_it_has(quick: dict[str, int], over: str) -> None:
    """The stub's has min_tokens, and neither exclude_input_in_output nor return_num_output_tokens."""
    place = {"http": None} if over == "grpc" else {}
    found = asking.protocol(_settings(quick, endpoint=over, **place))
    assert isinstance(found, asking.Triton)
    assert found.asked(PROMPT) == {"text_input": "bees?", "max_tokens": 5, "stream": True, "min_tokens": 5}


def test_a_natural_length_has_no_minimum(quick: dict[str, int]) -> None:
    assert "min_tokens" not in asking.protocol(_settings(quick, fixed=False)).asked(PROMPT)


def test_tensors_have_the_models_types_and_one_element(quick: dict[str, int]) -> None:
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest.FromString(asking.protocol(_settings(quick)).body(PROMPT))
    assert [(one.name, one.datatype, list(one.shape)) for one in request.inputs][1] == ("max_tokens", "INT32", [1, 1])
    assert list(request.raw_input_contents) == [b"\x05\0\0\0bees?", b"\x05\0\0\0", b"\x01", b"\x05\0\0\0"]
    assert request.parameters["triton_enable_empty_final_response"].bool_param


def test_openai_is_asked_for_a_fixed_length_and_its_own_count() -> None:
    asked = asking.OpenAi(SETTINGS | {"endpoint": "chat", "http": "http://h"}, "").asked(PROMPT)
    assert asked["messages"] == [{"role": "user", "content": "bees?"}]
    assert (asked["max_tokens"], asked["min_tokens"], asked["ignore_eos"]) == (5, 5, True)
    assert asked["stream_options"] == {"include_usage": True}
    body = asking.OpenAi(SETTINGS | {"endpoint": "completions"}, "").body(PROMPT)
    assert json.loads(body)["prompt"] == "bees?"


def test_the_key_is_in_the_header_and_nowhere_else() -> None:
    server = asking.OpenAi(SETTINGS | {"endpoint": "chat", "http": "http://h"}, "sk-secret")
    assert b"Bearer sk-secret" in server.connection()._head  # type: ignore[attr-defined]
    assert b"sk-secret" not in server.body(PROMPT)


def test_a_server_that_is_not_there_is_told() -> None:
    with pytest.raises(asking.Unasked, match="cannot be had"):
        asking.protocol(SETTINGS | {"endpoint": "http", "http": "http://127.0.0.1:9"})
