"""The release of TensorRT-LLM has what an entry's checkpoint and engine are made with: flags, programs, an image."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from rules.case import Case, about
from rules.errors import Problem
from rules.flags import unknown_flag, value_problem
from rules.release import nearest_hint, versions, with_image
from rules.rule import Rule, error, warning
from rules.translate import FAMILIES, OWN, upstream_program
from rules.variant import Setting

__all__ = ["INTENTS", "MODELOPT_FAMILIES", "RULES"]

INTENTS = ("quantizer", "dtype", "kv_cache_dtype", "workers")
# config.json's model_type, as modelopt_quantize.py knows them.
MODELOPT_FAMILIES = ("qwen2", "llama", "mistral", "gpt2")


@error("write a release that there is data for", "backend#389", "TRT-LLM#1038")
def release_exists(setting: Setting) -> Iterator[Problem]:
    """The toolchain names a release that there is data for."""
    path, named = f"toolchains.{setting.name}.release", setting.toolchain.release
    if named is None:
        yield Problem(what=f"{path}: is missing", hint=f"TensorRT-LLM's version, {versions()[0]} to {versions()[-1]}")
    elif named not in versions():
        yield Problem(what=f"{path}: there is no release {named!r}", hint=nearest_hint(named))


@error(
    "name the image of the release, or the release of the image",
    "backend#194",
    "backend#389",
    "backend#451",
    "server#7374",
)
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


@error("write a flag of the release's trtllm-build", "TRT-LLM#2008", "TRT-LLM#2143", "TRT-LLM#1840")
@about
def flags_known(of: Case) -> Iterator[Problem]:
    """`build` holds our own keys and flags that the release has, with values that they take."""
    path, known = f"{of.path}.build", (*INTENTS, *(name for name in of.release.flags("build") if name not in OWN))
    for name, value in of.build.items():
        flag = of.release.flag("build", name)
        meant = next(iter(() if flag else difflib.get_close_matches(name, OWN, n=1, cutoff=0.85)), name)
        if meant in OWN:
            yield Problem(what=f"{path}.{name}: is not set here", hint=OWN[meant])
        elif flag is None and name not in INTENTS:
            yield unknown_flag(path, name, of.release, "build", known)
        elif flag and name not in INTENTS:
            problem = value_problem(f"{path}.{name}", flag, value)
            if problem:
                yield problem


@error("leave one of the two out", "TRT-LLM#2057")
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


@error("take a pp that divides the layers", "TRT-LLM#855")
@about
def stages_hold_layers(of: Case) -> Iterator[Problem]:
    """Every pipeline stage has the same number of layers: TensorRT-LLM's mapping divides them evenly."""
    dims = of.setting.dims
    for parallelism in of.setting.entry.parallelisms():
        if dims and dims.layers >= parallelism.pp and dims.layers % parallelism.pp:
            what = f"{of.path}.parallelism: pp {parallelism.pp} does not divide the layers"
            legal = ", ".join(str(pp) for pp in range(1, dims.layers + 1) if dims.layers % pp == 0)
            yield Problem(what=what, facts=(("layers", str(dims.layers)),), hint=f"pp may be {legal}")


@error("take the other quantizer, or another precision", "TRT-LLM#2049", "TRT-LLM#3583")
@about
def quantizer_can(of: Case) -> Iterator[Problem]:
    """The quantizer makes such checkpoints, and trtllm-build of the release builds them."""
    if of.release.version == "0.8.0" and of.family not in ("", "llama", "mistral"):
        what = f"{of.path}.toolchain: trtllm-build of 0.8.0 builds no {of.family}: that had a build.py of its own"
        yield Problem(what=what, hint="take 0.9.0 or later")
    else:
        yield from (_upstream_cannot if of.upstream else _modelopt_cannot)(of, f"{of.path}.build.quantizer")


def _modelopt_cannot(of: Case, path: str) -> Iterator[Problem]:
    if "int4_wo" in of.precisions:
        yield Problem(what=f"{path}: modelopt makes no int4_wo", hint='write quantizer = "upstream", or take int4_awq')
    kv_heads = of.setting.dims.kv_heads if of.setting.dims else 0
    split = [parallelism.tp for parallelism in of.setting.entry.parallelisms() if 0 < kv_heads < parallelism.tp]
    if "int8_sq" in of.precisions and split:
        what = f"{path}: modelopt cannot copy {kv_heads} KV heads to tp {split[0]} in int8_sq"
        yield Problem(what=what, hint='write quantizer = "upstream", or lower tp')
    if of.family not in ("", *MODELOPT_FAMILIES):
        what = f"{path}: modelopt is not known to make checkpoints of model_type {of.family!r}"
        hint = 'write quantizer = "upstream"' if of.family in FAMILIES else f"known: {', '.join(MODELOPT_FAMILIES)}"
        yield Problem(what=what, hint=hint)


def _upstream_cannot(of: Case, path: str) -> Iterator[Problem]:
    if of.family not in FAMILIES:
        what = f"{path}: there is no convert_checkpoint.py known for model_type {of.family!r}"
        yield Problem(what=what, hint='write quantizer = "modelopt"')
        return
    for precision in of.precisions:
        program = upstream_program(precision, FAMILIES[of.family])
        if not of.release.flags(program):
            what = f"{path}: {of.release.version} has no {program.replace('_', ' of ')}"
            yield Problem(what=what, hint='write quantizer = "modelopt"')


@warning("run trtllm-build --help in the image before a long build, or take a release that was read", "TRT-LLM#2143")
@about
def release_read(of: Case) -> Iterator[Problem]:
    """The flags of some releases are inferred from their neighbours: those that are given here may not be there."""
    sure, why = of.release.sure("build")
    given = [name for name in of.build if name not in INTENTS]
    if sure != "exact" and given:
        what = f"{of.path}.build: the flags of {of.release.version} are {sure}"
        yield Problem(what=what, facts=(("given", ", ".join(given)), ("why", why)), hint="trtllm-build --help tells")


RULES: tuple[Rule[Setting], ...] = (
    release_exists,
    image_fits,
    flags_known,
    flags_fit_each_other,
    stages_hold_layers,
    quantizer_can,
    release_read,
)
