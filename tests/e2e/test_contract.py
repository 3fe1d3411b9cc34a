"""The embedded lane's tensors are the newest release's: same names, types, shapes, order, and two aliases more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

PROJECT = Path(__file__).parents[2]
MODELS = ("ensemble", "postprocessing", "preprocessing", "tensorrt_llm", "tensorrt_llm_bls")
ALIASES = ["min_length", "random_seed"]
ALIASED = {"ensemble", "tensorrt_llm", "tensorrt_llm_bls"}
RELEASE: dict[str, Any] = json.loads((PROJECT / "rules/releases/main.json").read_text())["triton"]


def _rendered(model: str) -> dict[str, Any]:
    """The golden config, which test_render.py holds against the tool."""
    text = (PROJECT / f"tests/golden/render/{model}.pbtxt").read_text()
    parsed = text_format.Parse(text, model_config_pb2.ModelConfig())
    return dict(json_format.MessageToDict(parsed, preserving_proto_field_name=True))


def _tensor(declared: dict[str, Any]) -> tuple[object, ...]:
    """What a client or a sibling relies on. Protobuf JSON leaves defaults out and writes 64-bit numbers as text."""
    shape = [int(size) for size in declared["dims"]]
    kind = declared["data_type"].replace("${logits_datatype}", "TYPE_FP32")
    for placeholder in ("${encoder_input_features_data_type}", "${prompt_embedding_table_data_type}"):
        kind = kind.replace(placeholder, "TYPE_FP16")
    flags = (declared.get("optional", False), declared.get("allow_ragged_batch", False), "reshape" in declared)
    return declared["name"], kind, shape, *flags


@pytest.mark.parametrize("model", MODELS)
def test_inputs_are_the_releases_and_the_aliases(model: str) -> None:
    found = [_tensor(tensor) for tensor in _rendered(model)["input"]]
    wanted = [_tensor(tensor) for tensor in RELEASE[model]["input"]]
    assert found[: len(wanted)] == wanted
    assert [tensor[0] for tensor in found[len(wanted) :]] == (ALIASES if model in ALIASED else [])


@pytest.mark.parametrize("model", MODELS)
def test_outputs_are_the_releases(model: str) -> None:
    found = [_tensor(tensor) for tensor in _rendered(model)["output"]]
    assert found == [_tensor(tensor) for tensor in RELEASE[model]["output"]]


@pytest.mark.parametrize("model", MODELS)
def test_parameters_have_the_releases_names(model: str) -> None:
    assert set(_rendered(model).get("parameters", {})) == set(RELEASE[model].get("parameters", {}))


def test_the_ensemble_maps_as_the_release_does_and_passes_the_aliases_on() -> None:
    found = _rendered("ensemble")["ensemble_scheduling"]["step"]
    wanted = RELEASE["ensemble"]["ensemble_scheduling"]["step"]
    for step, declared in zip(found, wanted, strict=True):
        extra = {name: name for name in ALIASES} if step["model_name"] == "tensorrt_llm" else {}
        assert step["model_name"] == declared["model_name"]
        assert step["input_map"] == declared["input_map"] | extra
        assert step["output_map"] == declared["output_map"]


@pytest.mark.parametrize("model", MODELS)
def test_no_tensor_is_declared_twice(model: str) -> None:
    for side in ("input", "output"):
        names = [tensor["name"] for tensor in RELEASE[model][side]]
        assert len(names) == len(set(names))
