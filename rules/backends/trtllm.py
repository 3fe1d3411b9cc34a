"""The TensorRT-LLM lane: engines of trtllm-build for NVIDIA GPUs, releases 0.8 to 1.2, served by Triton.

A release is data (rules/release.py); what an entry intends becomes its command lines in rules/translate.py, and what
is wrong or unwise is told by rules/checks/.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from rules import launcher, quantizer, steps, translate
from rules import manifests as cluster_manifests
from rules.action import Action, Output
from rules.checks import build as build_rules
from rules.checks import calibration as calibration_rules
from rules.checks import memory as memory_rules
from rules.checks import options as option_rules
from rules.checks import precision as precision_rules
from rules.checks import serving as serving_rules
from rules.cluster import Kubernetes
from rules.launcher import Launch
from rules.release import Release, load
from rules.rule import Rule
from rules.spec import Toolchain
from rules.steps import Rendering
from rules.translate import Intent
from rules.variant import Point, Setting, Variant

__all__ = [
    "ROOT",
    "Options",
    "checkpoint",
    "device",
    "engine",
    "intent",
    "manifests",
    "precisions",
    "rules",
    "serving",
]

precisions = ("fp16", "bf16", "fp8", "int8_wo", "int8_sq", "int4_awq", "int4_wo")
device: Literal["cpu", "gpu"] = "gpu"
rules: tuple[Rule[Setting], ...] = (
    *build_rules.RULES,
    *calibration_rules.RULES,
    *precision_rules.RULES,
    *serving_rules.RULES,
    *option_rules.RULES,
    *memory_rules.RULES,
)

# Where the runner mounts a model repository: upstream's engine resolves no relative paths.
ROOT = "/repository"

_Count = Annotated[int, Field(ge=1, lt=1 << 16)]
# For settings that the entry does not give; upstream's word for unset, "", for all others.
_DEFAULTS: Mapping[str, object] = {
    "triton_backend": "tensorrtllm",
    "batching_strategy": "inflight_fused_batching",
    "tokenizer_type": "auto",
    "tensorrt_llm_model_name": "tensorrt_llm",
    "preprocessing_instance_count": 1,
    "postprocessing_instance_count": 1,
    "bls_instance_count": 1,
    "max_queue_delay_microseconds": 0,
    "max_queue_size": 0,
    "exclude_input_in_output": True,
    "enable_kv_cache_reuse": False,
    "enable_chunked_context": False,
    "accumulate_tokens": False,
    "add_special_tokens": True,
    "skip_special_tokens": True,
    "logits_datatype": "TYPE_FP32",
    "encoder_input_features_data_type": "TYPE_FP16",
    "prompt_embedding_table_data_type": "TYPE_FP16",
}


class _Open(BaseModel):
    """The keys of the release are checked by the rules: which there are depends on the toolchain."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    @property
    def given(self) -> Mapping[str, Any]:
        """The keys that are the release's."""
        return self.model_extra or {}


class Build(_Open):
    """What changes weights or engine: these, and any flag of the release's trtllm-build."""

    quantizer: Literal["modelopt", "upstream"] = Field(
        default="modelopt", description="ModelOpt here, or the release's own scripts in its container"
    )
    dtype: Literal["float16", "bfloat16"] | None = Field(
        default=None, description="what is not quantized; default float16, and bfloat16 for the precision bf16"
    )
    kv_cache_dtype: Literal["auto", "fp8", "int8"] = Field(default="auto", description="auto is that of the weights")
    workers: _Count | None = Field(default=None, description="ranks built at a time; default all")


class Serving(_Open):
    """What Triton and the engine are told: `streaming`, and any placeholder of the release's templates.

    The batch is not here: it is the shape's. `streaming` is upstream's decoupled_mode, once for all models.
    """

    streaming: bool = Field(default=True, description="requests may ask for a stream")


class Options(BaseModel):
    """The `build` and `serving` tables of an entry."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    build: Build = Build()
    serving: Serving = Serving()

    @property
    def paged_context(self) -> bool:
        """Chunked context and KV-cache reuse need an engine that reads its context from the paged cache."""
        given = self.serving.given
        return given.get("enable_chunked_context") is True or given.get("enable_kv_cache_reuse") is True


def checkpoint(point: Point, build: Build) -> tuple[Action, ...]:
    """The weights of one precision, split for the ranks."""
    release, wanted = _release(point.toolchain), intent(point, build)
    if build.quantizer == "modelopt":
        return (quantizer.modelopt(point, release, wanted),)
    return (quantizer.upstream(point, release, wanted, _toolchain(point.toolchain)),)


def engine(variant: Variant, point: Point, made_from: str, options: Options) -> Action:
    """One `trtllm-build` for all ranks, and a look at what it wrote. GPUs are leased for the ranks built at a time."""
    release, wanted = _release(point.toolchain), intent(point, options.build, paged_context=options.paged_context)
    ranks = range(point.parallelism.world_size)
    workers = options.build.workers or len(ranks)
    flags = translate.build_flags(release, wanted, variant.shape)
    asked = [f"--limit={name}={flags[name]}" for name in translate.LIMITS if name in flags]
    timed = "output_timing_cache" in flags
    asked += [f"--timing-cache={{warm}}/{translate.TIMING_CACHE}"] if timed else []
    return Action(
        name=f"engine:{variant.name}",
        stage="engine",
        argv=(
            *("{python}", "-I", "{tool}", f"--release={dict(_toolchain(point.toolchain))['tensorrt_llm']}"),
            *(f"--tp-size={point.parallelism.tp}", f"--pp-size={point.parallelism.pp}", *asked, "--out={out}", "--"),
            *translate.typed(release, flags),
        ),
        inputs=(("tool", steps.tool("trtllm_engine")), ("checkpoint", Output(action=made_from))),
        outputs=("config.json", *(f"rank{rank}.engine" for rank in ranks)),
        toolchain=_toolchain(point.toolchain),
        platform=f"sm{wanted.sm}",
        runner=point.toolchain.runner,
        passes=steps.INSTALLED,
        warm=f"trtllm-{release.version}-sm{wanted.sm}" if timed else "",
        gpus=min(workers, point.platform.gpus if point.platform else workers),
    )


def serving(variant: Variant, point: Point, options: Options) -> Rendering:
    """Every placeholder of the release has a value: the entry's, ours, or upstream's word for unset."""
    release, given = _release(point.toolchain), options.serving.given
    beams = intent(point, options.build).given.get("max_beam_width", 1)
    ours = {
        **_DEFAULTS,
        "triton_max_batch_size": variant.shape.batch,
        "decoupled_mode": options.serving.streaming,
        "max_beam_width": beams,
    }
    values = {
        name: given.get(name, ours.get(name, "")) for name in release.placeholders() if name not in serving_rules.PLACED
    }
    words = {name: str(value) for name, value in values.items()}  # True and False, as in upstream's documents
    launch = Launch(world_size=point.parallelism.world_size, repository=ROOT, prefix="doit_trtllm_{pid}_0_rank")
    variables = (f"{name}={value}" for name, value in launcher.environment(release, launch).items())
    server = ("env", *variables, *launcher.argv(release, launch))
    return Rendering(overlays=(), values=words, contract=release.version, root=ROOT, server=server)


def manifests(variant: Variant, point: Point, asked: Kubernetes) -> tuple[Action, ...]:
    """What a cluster serves the variant with, in the toolchain's image or the release's own; none without either."""
    release = _release(point.toolchain)
    image = point.toolchain.image or release.image
    gpus = point.platform.gpus if point.platform else 1
    return (cluster_manifests.write(variant, release, asked, image, gpus, ROOT),) if image else ()


def intent(point: Point, build: Build, *, paged_context: bool = False) -> Intent:
    """What the engine of `point` is wanted for."""
    workers = {"workers": build.workers} if build.workers else {}
    return Intent(
        precision=point.precision,
        dtype=build.dtype or ("bfloat16" if point.precision == "bf16" else "float16"),
        kv_cache_dtype=build.kv_cache_dtype,
        parallelism=point.parallelism,
        sm=point.platform.sm if point.platform else 0,
        paged_context=paged_context,
        given={**_by_name(_release(point.toolchain), build.given), **workers},
    )


def _by_name(release: Release, given: Mapping[str, Any]) -> dict[str, Any]:
    """Flags under their own names where an alias was written."""
    found = ((release.flag("build", name), value) for name, value in given.items())
    return {flag.name: value for flag, value in found if flag}


@cache
def _toolchain_of(release: str, image: str) -> tuple[tuple[str, str], ...]:
    return (*((("image", image),) if image else ()), ("tensorrt_llm", release))


def _toolchain(toolchain: Toolchain) -> tuple[tuple[str, str], ...]:
    """In a container the image is the toolchain; here it is what is installed. The runner verifies either."""
    release = _release(toolchain)
    image = "" if toolchain.runner == "local" else toolchain.image or release.image
    return _toolchain_of(_installed(release, image), image)


def _installed(release: Release, image: str) -> str:
    """The version that the image's package calls itself, such as 0.17.0.post1."""
    return release.images.get(image, {}).get("tensorrt_llm", release.version)


def _release(toolchain: Toolchain) -> Release:
    assert toolchain.release, "BUG: the check let a toolchain without a release pass"
    return load(toolchain.release)
