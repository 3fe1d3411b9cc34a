"""The embedded lane: OpenVINO GenAI's continuous batching on a CPU, served by Triton's Python backend.

No GPU and no container, so the whole path runs on a laptop and in CI.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from rules import steps
from rules.action import Action, Output
from rules.cluster import Kubernetes
from rules.errors import Problem
from rules.rule import Rule, error
from rules.steps import CONFIG, WEIGHTS, Rendering
from rules.variant import Point, Setting, Variant

__all__ = ["Options", "checkpoint", "device", "engine", "manifests", "precisions", "rules", "serving"]

precisions = ("fp32", "fp16", "int8_wo", "int4_wo")
device: Literal["cpu", "gpu"] = "cpu"

_Count = Annotated[int, Field(ge=1, lt=1 << 31)]
_Amount = Annotated[int, Field(ge=0, lt=1 << 31)]
_IR = ("openvino_model.xml", "openvino_model.bin")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Build(_Strict):
    """What changes weights or engine."""

    group_size: _Count = Field(default=64, description="columns that share one int4 scale; must divide them")
    max_num_tokens: _Count | None = Field(default=None, description="tokens in a step; default batch x isl up to 2048")


class Serving(_Strict):
    """What Triton and the scheduler are told, under the names of TensorRT-LLM's template placeholders.

    The batch is not here: it is the shape's. `streaming` is upstream's decoupled_mode, once for all five models.
    """

    streaming: bool = Field(default=True, description="requests may ask for a stream")
    exclude_input_in_output: bool = Field(default=True, description="leave the prompt out; a request may differ")
    enable_kv_cache_reuse: bool = Field(default=True, description="keep the KV cache of common prefixes")
    enable_chunked_context: bool = Field(default=True, description="prefill long prompts in pieces of max_num_tokens")
    max_tokens_in_paged_kv_cache: _Count | None = Field(default=None, description="default batch x (isl + osl)")
    max_beam_width: _Count = Field(default=1, description="the largest beam_width that a request may ask for")
    max_queue_delay_microseconds: _Amount = Field(default=0, description="how long a batch waits to fill")
    max_queue_size: _Amount = Field(default=0, description="requests that may wait; 0 is no limit")
    cancellation_check_period_ms: _Count = Field(default=100, description="how often cancelled requests are looked for")
    preprocessing_instance_count: _Count = Field(default=1, description="processes that tokenise")
    postprocessing_instance_count: _Count = Field(default=1, description="processes that detokenise")
    bls_instance_count: _Count = Field(default=1, description="processes of tensorrt_llm_bls, a batch each")
    accumulate_tokens: bool = Field(default=False, description="BLS streams carry the whole text so far")
    add_special_tokens: bool = Field(default=True, description="tokenise with BOS and the like")
    skip_special_tokens: bool = Field(default=True, description="leave special tokens out of the text")


class Options(_Strict):
    """The `build` and `serving` tables of an entry."""

    build: Build = Build()
    serving: Serving = Serving()


@error("leave it out")
def plain_toolchain(setting: Setting) -> Iterator[Problem]:
    """A toolchain of this family names no release and no container: the pinned packages are all of it."""
    given = setting.toolchain.model_fields_set - {"backend"}
    for key in sorted(given):
        what = f"toolchains.{setting.name}.{key}: means nothing to the backend 'openvino'"
        yield Problem(what=what, hint="leave it out")


rules: tuple[Rule[Setting], ...] = (plain_toolchain,)


def checkpoint(point: Point, build: Build) -> tuple[Action, ...]:
    """OpenVINO weights of one precision: fp32 is the conversion itself, which every other precision is made from."""
    model, precision = point.model, point.precision
    converted = steps.action(
        f"checkpoint:{model}_fp32",
        "openvino_convert",
        {"source": "{source}"},
        *point.choice.trust(),
        inputs=(("source", Output(action=f"source:{model}", only=(*CONFIG, *WEIGHTS, *point.choice.risky()))),),
        outputs=(*_IR, "config.json"),
        packages=("openvino", "optimum-intel", "torch", "transformers"),
    )
    if precision == "fp32":
        return (converted,)
    group = {"group_size": build.group_size} if precision == "int4_wo" else {}
    compressed = steps.action(
        f"checkpoint:{point.name}",
        "openvino_quantize",
        {"checkpoint": "{checkpoint}", "precision": precision, **group},
        inputs=(("checkpoint", Output(action=converted.name)),),
        outputs=(*_IR, "config.json"),
        packages=("openvino", "nncf"),
    )
    return converted, compressed


def engine(variant: Variant, _point: Point, made_from: str, options: Options) -> Action:
    """The engine of one shape: the weights with the limits that the server enforces, proven to load."""
    shape = variant.shape
    limits = {
        "precision": variant.precision,
        "max_batch_size": shape.batch,
        "max_input_len": shape.isl,
        "max_output_len": shape.osl,
        "max_num_tokens": options.build.max_num_tokens or max(shape.isl, min(shape.batch * shape.isl, 2048)),
    }
    return steps.action(
        f"engine:{variant.name}",
        "openvino_compile",
        {"checkpoint": "{checkpoint}", **limits},
        inputs=(("checkpoint", Output(action=made_from)),),
        outputs=(*_IR, "engine.json"),
        packages=("openvino", "openvino-genai"),
    )


def serving(variant: Variant, _point: Point, options: Options) -> Rendering:
    """The value of each placeholder."""
    values: dict[str, object] = dict(options.serving)
    values["decoupled_mode"] = values.pop("streaming")
    values["triton_max_batch_size"] = variant.shape.batch
    return Rendering(
        overlays=("openvino",), values={name: "" if value is None else value for name, value in values.items()}
    )


def manifests(_variant: Variant, _point: Point, _asked: Kubernetes) -> tuple[Action, ...]:
    """None: this lane's server is a wheel, not an image."""
    return ()
