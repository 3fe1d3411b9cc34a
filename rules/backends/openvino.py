"""The embedded lane: OpenVINO GenAI's continuous batching on a CPU, served by Triton's Python backend.

No GPU and no container, so the whole path runs on a laptop and in CI.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from rules import steps
from rules.action import Action, Output
from rules.steps import CONFIG, WEIGHTS
from rules.variant import Variant

__all__ = ["Options", "checkpoint", "device", "engine", "precisions", "serving"]

precisions = ("fp32", "fp16", "int8_wo", "int4_wo")
device: Literal["cpu", "gpu"] = "cpu"

_IR = ("openvino_model.xml", "openvino_model.bin")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Build(_Strict):
    """What changes weights or engine."""

    group_size: int = Field(default=64, ge=1, description="columns that share one int4 scale; must divide them")
    max_num_tokens: int = Field(default=0, ge=0, description="tokens in one step; 0 is batch x isl, 2048 at most")


class Serving(_Strict):
    """What Triton and the scheduler are told, under TensorRT-LLM's placeholder names where it has one."""


class Options(_Strict):
    """The `build` and `serving` tables of an entry."""

    build: Build = Build()
    serving: Serving = Serving()


def checkpoint(model: str, point: str, precision: str, build: Build) -> tuple[Action, ...]:
    """OpenVINO weights of one precision: fp32 is the conversion itself, which every other precision is made from."""
    converted = steps.action(
        f"checkpoint:{model}_fp32",
        "openvino_convert",
        {"source": "{source}"},
        inputs=(("source", Output(action=f"source:{model}", only=(*CONFIG, *WEIGHTS))),),
        outputs=(*_IR, "config.json"),
        packages=("openvino", "optimum-intel", "torch", "transformers"),
    )
    if precision == "fp32":
        return (converted,)
    group = {"group_size": build.group_size} if precision == "int4_wo" else {}
    compressed = steps.action(
        f"checkpoint:{point}",
        "openvino_quantize",
        {"checkpoint": "{checkpoint}", "precision": precision, **group},
        inputs=(("checkpoint", Output(action=converted.name)),),
        outputs=(*_IR, "config.json"),
        packages=("openvino", "nncf"),
    )
    return converted, compressed


def engine(variant: Variant, made_from: str, build: Build) -> Action:
    """The engine of one shape: the weights with the limits that the server enforces, proven to load."""
    shape = variant.shape
    limits = {
        "precision": variant.precision,
        "max_batch_size": shape.batch,
        "max_input_len": shape.isl,
        "max_output_len": shape.osl,
        "max_num_tokens": build.max_num_tokens or min(shape.batch * shape.isl, 2048),
    }
    return steps.action(
        f"engine:{variant.name}",
        "openvino_compile",
        {"checkpoint": "{checkpoint}", **limits},
        inputs=(("checkpoint", Output(action=made_from)),),
        outputs=(*_IR, "engine.json"),
        packages=("openvino", "openvino-genai"),
    )


def serving(variant: Variant, options: Serving) -> tuple[tuple[str, ...], Mapping[str, object]]:
    """The template folders over the shared ones, and the value of each placeholder."""
    values: dict[str, object] = dict(options)
    values |= {"triton_max_batch_size": variant.shape.batch, "triton_backend": "python"}
    return ("openvino",), values
