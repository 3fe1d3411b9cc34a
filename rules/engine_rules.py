"""What can be known to be wrong, or unwise, with an engine of the TensorRT-LLM lane before GPU hours are spent."""

from __future__ import annotations

from collections.abc import Iterator

from rules.case import Case, Rule, about
from rules.errors import Problem
from rules.flags import unknown_flag, value_problem
from rules.release import nearest_hint, versions, with_image
from rules.translate import AWQ_BLOCK, CALIBRATED, FAMILIES, OWN, upstream_program
from rules.variant import Setting

__all__ = ["ADVICE", "INTENTS", "RULES", "TEXT_FILES"]

INTENTS = ("quantizer", "dtype", "kv_cache_dtype", "workers")
TEXT_FILES = (".jsonl", ".parquet")


def release_exists(setting: Setting) -> Iterator[Problem]:
    """The toolchain names a release that there is data for."""
    path, named = f"toolchains.{setting.name}.release", setting.toolchain.release
    if named is None:
        yield Problem(what=f"{path}: is missing", hint=f"TensorRT-LLM's version, {versions()[0]} to {versions()[-1]}")
    elif named not in versions():
        yield Problem(what=f"{path}: there is no release {named!r}", hint=nearest_hint(named))


@about
def image_fits(of: Case) -> Iterator[Problem]:
    """A container's image is one that carries the release, as far as that is known."""
    toolchain, path = of.setting.toolchain, f"toolchains.{of.setting.name}"
    if toolchain.runner == "local":
        if toolchain.image is not None:
            yield Problem(
                what=f"{path}.image: runner is 'local'", hint='write runner = "docker", or leave the image out'
            )
        return
    if toolchain.image is None and not of.release.image:
        what = f"{path}.image: no image of NVIDIA carries TensorRT-LLM {of.release.version}"
        yield Problem(what=what, hint="name one of your own, or another release")
    if toolchain.image is None or toolchain.image in of.release.images:
        return
    carried = with_image(toolchain.image)  # reads every release: only where there may be something to tell
    if carried:
        facts = (("image", toolchain.image), ("carries", ", ".join(carried)))
        hint = f"the one of {of.release.version} is {of.release.image}" if of.release.image else "change `release`"
        yield Problem(what=f"{path}.image: is not one of TensorRT-LLM {of.release.version}", facts=facts, hint=hint)


@about
def flags_known(of: Case) -> Iterator[Problem]:
    """`build` holds our own keys and flags that the release has, with values that they take."""
    path, known = f"{of.path}.build", (*INTENTS, *(name for name in of.release.flags("build") if name not in OWN))
    for name, value in of.build.items():
        flag = of.release.flag("build", name)
        if name in OWN:
            yield Problem(what=f"{path}.{name}: is not set here", hint=OWN[name])
        elif flag is None and name not in INTENTS:
            yield unknown_flag(path, name, of.release, "build", known)
        elif flag and name not in INTENTS:
            problem = value_problem(f"{path}.{name}", flag, value)
            if problem:
                yield problem


@about
def precision_fits_gpu(of: Case) -> Iterator[Problem]:
    """FP8 needs Ada or Hopper (SM 89), and FP8 context attention Hopper (SM 90)."""
    sm = of.setting.platform.sm if of.setting.platform else 0
    facts = (("platform", f"{of.setting.entry.platform}: SM {sm}"),)
    if 0 < sm < 89 and "fp8" in of.precisions:
        yield Problem(what=f"{of.path}.precisions: fp8 needs SM 89", facts=facts, hint="int8_sq runs on SM 80")
    if 0 < sm < 89 and of.kv_cache_dtype == "fp8":
        yield Problem(what=f"{of.path}.build.kv_cache_dtype: fp8 needs SM 89", facts=facts, hint="int8 runs on SM 80")
    if 0 < sm < 90 and of.build.get("use_fp8_context_fmha") in (True, "enable"):
        what = f"{of.path}.build.use_fp8_context_fmha: needs SM 90"
        yield Problem(what=what, facts=facts, hint="leave it out: it is turned on where it can be")


@about
def kv_cache_fits_precision(of: Case) -> Iterator[Problem]:
    """A quantized KV cache needs scales, which only calibrated precisions have; INT8 cannot be paged in context."""
    legal = {"fp8": tuple(CALIBRATED), "int8": ("int8_sq", "int4_awq")}.get(str(of.kv_cache_dtype), ())
    wrong = [name for name in of.precisions if legal and name not in legal]
    if wrong:
        what = f"{of.path}.build.kv_cache_dtype: {of.kv_cache_dtype} does not go with {', '.join(wrong)}"
        yield Problem(what=what, hint=f"it goes with {', '.join(legal)}; other precisions need an entry of their own")
    if of.kv_cache_dtype == "int8":
        for name in of.served("enable_kv_cache_reuse", "enable_chunked_context"):
            what = f"{of.path}.serving.{name}: not with an int8 KV cache"
            yield Problem(what=what, hint='write kv_cache_dtype = "fp8" or "auto"')


@about
def flags_fit_each_other(of: Case) -> Iterator[Problem]:
    """What trtllm-build itself refuses, or would do otherwise than asked, after parsing."""
    build, path = of.build, f"{of.path}.build"
    if build.get("multiple_profiles") in (True, "enable") and "opt_num_tokens" in build:
        yield Problem(what=f"{path}.opt_num_tokens: not with multiple_profiles", hint="leave one of them out")
    if build.get("gather_context_logits") is True and build.get("max_draft_len", 0):
        yield Problem(what=f"{path}.gather_context_logits: not with max_draft_len", hint="leave one of them out")
    if build.get("reduce_fusion") in (True, "enable"):
        if of.family not in ("", "llama"):
            yield Problem(what=f"{path}.reduce_fusion: is for Llama, and this is {of.family}", hint="leave it out")
        if build.get("use_custom_all_reduce") in (False, "disable"):
            yield Problem(what=f"{path}.reduce_fusion: needs use_custom_all_reduce", hint="leave one of them out")


@about
def ranks_hold_blocks(of: Case) -> Iterator[Problem]:
    """INT4 AWQ has one scale for 128 columns, which cannot be split over ranks."""
    dims = of.setting.dims
    if "int4_awq" not in of.precisions or not dims or not (dims.hidden and dims.intermediate):
        return
    for parallelism in of.setting.parallelisms():
        for name, columns in (("hidden size", dims.hidden), ("intermediate size", dims.intermediate)):
            if columns % (AWQ_BLOCK * parallelism.tp):
                what = f"{of.path}.parallelism: tp {parallelism.tp} splits blocks of {AWQ_BLOCK} columns of int4_awq"
                yield Problem(what=what, facts=((name, str(columns)),), hint="lower tp, or take int8_wo or fp8")
                break


@about
def stages_hold_layers(of: Case) -> Iterator[Problem]:
    """Every pipeline stage has the same number of layers: TensorRT-LLM's mapping divides them evenly."""
    dims = of.setting.dims
    for parallelism in of.setting.parallelisms():
        if dims and dims.layers >= parallelism.pp and dims.layers % parallelism.pp:
            what = f"{of.path}.parallelism: pp {parallelism.pp} does not divide the layers"
            legal = ", ".join(str(pp) for pp in range(1, dims.layers + 1) if dims.layers % pp == 0)
            yield Problem(what=what, facts=(("layers", str(dims.layers)),), hint=f"pp may be {legal}")


@about
def calibration_given(of: Case) -> Iterator[Problem]:
    """Scales are measured on texts that are declared, there, and in a form that the quantizer reads."""
    calibrated = [name for name in of.precisions if name in CALIBRATED]
    if not calibrated:
        return
    given, path = of.setting.entry.calibration, f"{of.path}.calibration"
    if of.upstream and "calib_dataset" not in of.release.flags("quantize"):
        what = f"{of.path}.build.quantizer: quantize.py of {of.release.version} takes its texts from a hub only"
        yield Problem(what=what, hint='write quantizer = "modelopt"')
        return
    if given is None:
        what = f"{path}: is missing, and {', '.join(calibrated)} is measured on texts"
        yield Problem(what=what, hint='write calibration = { data = "file:PATH", column = "text", size = 512 }')
        return
    file = of.setting.root / given.data.removeprefix("file:")
    if not file.exists():
        yield Problem(what=f"{path}.data: {file} does not exist", hint="a .jsonl or .parquet file, or a folder of them")
    if of.upstream and (file.suffix in TEXT_FILES or given.column != "text"):
        what = f"{path}: upstream's quantize.py reads a folder with a column `text`"
        yield Problem(what=what, hint='write quantizer = "modelopt" for anything else')


@about
def quantizer_can(of: Case) -> Iterator[Problem]:
    """The quantizer makes such checkpoints, and trtllm-build of the release builds them."""
    path = f"{of.path}.build.quantizer"
    if of.release.version == "0.8.0" and of.family not in ("", "llama", "mistral"):
        what = f"{of.path}.toolchain: trtllm-build of 0.8.0 builds no {of.family}: that had a build.py of its own"
        yield Problem(what=what, hint="take 0.9.0 or later")
        return
    if not of.upstream and "int4_wo" in of.precisions:
        yield Problem(what=f"{path}: modelopt makes no int4_wo", hint='write quantizer = "upstream", or take int4_awq')
    kv_heads = of.setting.dims.kv_heads if of.setting.dims else 0
    split = [parallelism.tp for parallelism in of.setting.parallelisms() if 0 < kv_heads < parallelism.tp]
    if not of.upstream and "int8_sq" in of.precisions and split:
        what = f"{path}: modelopt cannot copy {kv_heads} KV heads to tp {split[0]} in int8_sq"
        yield Problem(what=what, hint='write quantizer = "upstream", or lower tp')
    if of.upstream and of.family not in FAMILIES:
        what = f"{path}: there is no convert_checkpoint.py known for model_type {of.family!r}"
        yield Problem(what=what, hint='write quantizer = "modelopt"')
    elif of.upstream:
        for precision in of.precisions:
            program = upstream_program(precision, FAMILIES[of.family])
            if not of.release.flags(program):
                what = f"{path}: {of.release.version} has no {program.replace('_', ' of ')}"
                yield Problem(what=what, hint='write quantizer = "modelopt"')


@about
def flags_certain(of: Case) -> Iterator[Problem]:
    """A flag that is given is proven to be in the release."""
    for name in of.build:
        flag = of.release.flag("build", name)
        if flag and flag.uncertain:
            yield Problem(what=f"{of.path}.build.{name}: may not be in {of.release.version}: {flag.uncertain}")


RULES: tuple[Rule, ...] = (
    release_exists,
    image_fits,
    flags_known,
    precision_fits_gpu,
    kv_cache_fits_precision,
    flags_fit_each_other,
    ranks_hold_blocks,
    stages_hold_layers,
    calibration_given,
    quantizer_can,
)
ADVICE: tuple[Rule, ...] = (flags_certain,)
