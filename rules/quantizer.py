"""The checkpoint stage of the TensorRT-LLM lane: ModelOpt here, or the release's own scripts inside its toolchain."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from rules import memory, steps, translate
from rules.action import Action, Input, Local, Output
from rules.checks.calibration import TEXT_FILES
from rules.memory import GIB
from rules.pins import pins
from rules.release import Release
from rules.spec import Calibration
from rules.steps import CONFIG, TOKENIZER, WEIGHTS
from rules.taken import CODE
from rules.translate import AWQ_BLOCK, FAMILIES, Intent, measured
from rules.variant import Point

__all__ = ["MODELOPT", "modelopt", "upstream"]

# The last release that exports TensorRT-LLM checkpoints without deprecation; the exporter goes in 0.49.
# PyTorch is left out: a checkpoint made by its CPU build and one made by its CUDA build are the same work.
MODELOPT = (("nvidia-modelopt", "0.47.0"), *pins("transformers", "safetensors"))
_DRIVER = ("LD_LIBRARY_PATH", "CUDA_HOME")  # where some machines have the driver's libraries, and nvcc
_FULL = 0.6  # of a GPU's memory may be weights while their scales are measured
_SMALL = 1e8  # parameters


def modelopt(point: Point, release: Release, wanted: Intent) -> Action:
    """ModelOpt here: the same checkpoint for every platform, and it needs no container."""
    calibrated = measured(point.precision, wanted.kv_cache_dtype)
    made = steps.action(
        f"checkpoint:{point.name}",
        "modelopt_quantize",
        {
            "source": "{source}",
            "precision": point.precision,
            "dtype": wanted.dtype,
            "kv_cache_dtype": wanted.kv_cache_dtype,
            "tp_size": point.parallelism.tp,
            "pp_size": point.parallelism.pp,
            "release": release.version,
            **({"block_size": AWQ_BLOCK} if point.precision == "int4_awq" else {}),
            **(_calibration_arguments(point.calibration) if calibrated and point.calibration else {}),
        },
        *point.choice.trust(),
        inputs=(
            ("source", Output(action=f"source:{point.model}", only=(*CONFIG, *WEIGHTS, *point.choice.risky()))),
            *(_calibration_inputs(point) if calibrated else ()),
        ),
        outputs=_rank_files(point),
    )
    command = ("{python}", "-I", "{quantizer}", *made.argv[3:])
    inputs = (("quantizer", steps.tool("modelopt_quantize")), *made.inputs[1:])
    made = replace(made, toolchain=MODELOPT, passes=_DRIVER, gpus=_gpus(point) if calibrated else 0)
    return _verified(replace(made, argv=command, inputs=inputs), point, wanted)


def _calibration_arguments(calibration: Calibration) -> dict[str, object]:
    """Texts become tokens here, so that the tokenizer is a part of the key where it matters and nowhere else."""
    return {
        "tokenizer": "{tokenizer}",
        "calibration": "{calibration}",
        "calibration_column": calibration.column,
        "calibration_size": calibration.size,
        "calibration_length": calibration.length,
    }


def _calibration_inputs(point: Point) -> tuple[tuple[str, Input], ...]:
    if not point.calibration:
        return ()
    code = CODE if point.choice.trust_remote_code else ()
    tokenizer = Output(action=f"source:{point.model}", only=(*TOKENIZER, *code))
    return ("tokenizer", tokenizer), ("calibration", _texts(point.calibration, point.root))


def upstream(point: Point, release: Release, wanted: Intent, toolchain: tuple[tuple[str, str], ...]) -> Action:
    """The release's own script. It reads the model's folder as Hugging Face has it, tokenizer included."""
    family = FAMILIES[point.dims.family if point.dims else ""]
    program = translate.upstream_program(point.precision, family)
    calibrated = program == "quantize"
    given = (
        translate.quantize(release, wanted, point.calibration)
        if calibrated
        else translate.convert(release, wanted, family)
    )
    texts = (("calibration", _texts(point.calibration, point.root)),) if calibrated and point.calibration else ()
    made = Action(
        name=f"checkpoint:{point.name}",
        stage="checkpoint",
        argv=("python3", f"{point.toolchain.upstream}/{release.script(program)}", *given),
        inputs=(
            (
                "source",
                Output(action=f"source:{point.model}", only=(*CONFIG, *WEIGHTS, *TOKENIZER, *point.choice.risky())),
            ),
            *texts,
        ),
        outputs=_rank_files(point),
        toolchain=toolchain,
        platform=f"sm{wanted.sm}" if calibrated else steps.PLATFORM,
        runner=point.toolchain.runner,
        passes=steps.INSTALLED,
        gpus=max(1, _gpus(point)) if calibrated else 0,
    )
    return _verified(made, point, wanted)


def _verified(made: Action, point: Point, wanted: Intent) -> Action:
    """The same command below trtllm_checkpoint.py, which looks at what it wrote."""
    asked = {
        "precision": point.precision,
        "kv-cache-dtype": wanted.kv_cache_dtype,
        "tp-size": point.parallelism.tp,
        "pp-size": point.parallelism.pp,
        "out": "{out}",
    }
    words = (f"--{name}={value}" for name, value in asked.items())
    return replace(
        made,
        argv=("{python}", "-I", "{tool}", *words, "--", *made.argv),
        inputs=(("tool", steps.tool("trtllm_checkpoint")), *made.inputs),
    )


def _rank_files(point: Point) -> tuple[str, ...]:
    return ("config.json", *(f"rank{rank}.safetensors" for rank in range(point.parallelism.world_size)))


def _texts(calibration: Calibration, root: Path) -> Input:
    """A single file is keyed like a file in git; a folder is read when it is needed."""
    path = root / calibration.data.removeprefix("file:")
    if path.suffix in TEXT_FILES:
        return steps.file(path)
    return Local(path=str(path))


def _gpus(point: Point) -> int:
    """GPUs that hold the model, 16 bits a parameter, while its scales are measured; one where its size is not known,
    none for a model that a CPU does in minutes.
    """
    parameters = memory.parameters(point.dims) if point.dims else 0
    if not parameters or not point.platform:
        return 1
    if parameters < _SMALL:
        return 0
    return min(point.platform.gpus, math.ceil(2 * parameters / (point.platform.memory_gib * GIB * _FULL)))
