"""What an entry intends, as the exact command lines of every release: golden texts that a person has read."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest

from rules import translate
from rules.backends.trtllm import precisions
from rules.release import Program, Release, load, number, versions
from rules.spec import Calibration, Parallelism, Shape
from rules.translate import Intent
from tests.lane import TEXTS, planned, toml

Golden = Callable[[str, str], None]

SHAPE = Shape(batch=8, isl=2048, osl=1024)
SERVED = "{ enable_chunked_context = true }"
PARALLELISMS = ("tp1", "tp8", "tp4pp2")


def _intent(precision: str = "fp16", **changed: object) -> Intent:
    of: dict[str, object] = {"dtype": "float16", "parallelism": Parallelism(tp=1, pp=1), "sm": 90, **changed}
    return Intent(precision=precision, **of)  # type: ignore[arg-type]


def _line(release: str, intent: Intent, shape: Shape = SHAPE) -> str:
    return " ".join(translate.build(load(release), intent, shape))


@pytest.mark.parametrize("version", versions())
def test_the_commands_of_every_precision_and_parallelism(version: str, tmp_path: Path, golden: Golden) -> None:
    """Qwen2-72B by ModelOpt; Llama 2 for 0.8.0, whose trtllm-build knows no Qwen."""
    source = '"hf:meta-llama/Llama-2-7b-chat-hf"' if version == "0.8.0" else '"hf:Qwen/Qwen2-72B-Instruct"'
    lines = []
    for precision in precisions:
        # blocks of 128 columns of int4_awq cannot be split over eight ranks of these models
        several = '["tp1"]' if precision == "int4_awq" else str(list(PARALLELISMS)).replace("'", '"')
        quantizer = "upstream" if precision == "int4_wo" else "modelopt"
        text = toml(
            version,
            source=source,
            precisions=f'["{precision}"]',
            parallelism=several,
            calibration=TEXTS,
            build=f'{{ quantizer = "{quantizer}" }}',
            serving=SERVED,
        )
        for name, action in planned(text, tmp_path).actions.items():
            if action.stage in ("checkpoint", "engine"):
                lines.append(f"# {name}\n{' '.join(action.argv)}\n")
    golden(f"trtllm/{version}.txt", "\n".join(lines))


@pytest.mark.parametrize("version", versions()[1:])
def test_the_commands_of_the_releases_own_scripts(version: str, tmp_path: Path, golden: Golden) -> None:
    lines = []
    for precision in precisions:
        if precision in translate.CALIBRATED and number(version) < (0, 10, 0):
            continue  # quantize.py could not be given texts
        text = toml(
            version,
            source='"hf:Qwen/Qwen2-7B"',
            precisions=f'["{precision}"]',
            parallelism='["tp2pp2"]' if precision != "int4_awq" else '["tp2"]',
            calibration='{ data = "file:texts" }',
            build='{ quantizer = "upstream" }',
        )
        for name, action in planned(text, tmp_path).actions.items():
            if action.stage == "checkpoint":
                lines.append(f"# {name}\n{' '.join(action.argv)}\n")
    golden(f"trtllm/{version}.upstream.txt", "\n".join(lines))


def _parser(release: Release, program: Program) -> argparse.ArgumentParser:
    """The program's own parser, from its table: exact names only."""
    parser = argparse.ArgumentParser(prog=program, exit_on_error=False, allow_abbrev=False)
    kinds = {"str": str, "int": int, "float": float}
    for flag in release.flags(program).values():
        names = [("--" if len(name) > 2 else "-") + name for name in (flag.name, *flag.aliases)]
        if flag.type == "flag":
            parser.add_argument(*names, action="store_true")
        else:
            parser.add_argument(*names, type=kinds[flag.type], choices=flag.choices or None, nargs=flag.nargs)
    return parser


@pytest.mark.parametrize("version", versions())
@pytest.mark.parametrize("precision", precisions)
def test_trtllm_build_of_the_release_parses_its_command(version: str, precision: str) -> None:
    for parallelism in ("tp1", "tp4pp2"):
        intent = _intent(precision, parallelism=Parallelism.parse(parallelism), paged_context=True)
        _, *words = translate.build(load(version), intent, SHAPE)
        parsed = _parser(load(version), "build").parse_args(words)
        assert (parsed.max_batch_size, parsed.max_input_len, parsed.max_beam_width) == (8, 2048, 1)
        assert parsed.max_num_tokens == 8192


@pytest.mark.parametrize("version", versions()[1:])
@pytest.mark.parametrize("precision", precisions)
def test_the_releases_scripts_parse_their_commands(version: str, precision: str) -> None:
    release, intent = load(version), _intent(precision, kv_cache_dtype="auto")
    if precision in translate.CALIBRATED:
        words = translate.quantize(release, intent, Calibration(data="file:x"))
        assert _parser(release, "quantize").parse_args(words).qformat == translate.CALIBRATED[precision]
    for family, program in (("qwen", "convert_qwen"), ("llama", "convert_llama"), ("gpt", "convert_gpt")):
        words = translate.convert(release, intent, family)
        assert _parser(release, program).parse_args(words).model_dir == "{source}"  # type: ignore[arg-type]


@pytest.mark.parametrize("version", versions())
def test_a_length_is_told_as_output_or_as_sequence(version: str) -> None:
    line = _line(version, _intent())
    assert ("--max_output_len 1024" in line) == (number(version) < (0, 11, 0))
    assert ("--max_seq_len 3072" in line) == (number(version) >= (0, 11, 0))


@pytest.mark.parametrize("version", versions())
def test_a_paged_cache_is_asked_for_in_the_words_of_the_release(version: str) -> None:
    line = _line(version, _intent())
    assert ("--paged_kv_cache enable" in line) == (number(version) < (0, 13, 0))
    assert ("--kv_cache_type paged" in line) == (number(version) >= (0, 13, 0))


@pytest.mark.parametrize("version", versions())
def test_custom_all_reduce_is_for_several_ranks_where_it_exists(version: str) -> None:
    one, two = (_line(version, _intent(parallelism=Parallelism(tp=tp, pp=1))) for tp in (1, 2))
    assert "--use_custom_all_reduce" not in one
    assert ("--use_custom_all_reduce enable" in two) == (number(version) < (0, 12, 0))


def test_custom_all_reduce_may_be_turned_off_for_pcie_and_is_never_on_for_one_rank() -> None:
    given = {"use_custom_all_reduce": False}
    assert "--use_custom_all_reduce disable" in _line(
        "0.11.0", _intent(parallelism=Parallelism(tp=2, pp=1), given=given)
    )
    assert "--use_custom_all_reduce" not in _line("0.11.0", _intent(given=given))


# Of other architectures than those that are built here, or off under both of its defaults.
_ELSEWHERE = {"bert_attention_plugin", "lookup_plugin", "lora_plugin", "moe_plugin", "mamba_conv1d_plugin"}
# Where a newer flag says it, or where a flag that takes no value is left off.
_OTHERWISE = {"paged_kv_cache": "kv_cache_type", "max_output_len": "max_seq_len", "use_fused_mlp": ""}


def _drifting() -> set[str]:
    """The flags of trtllm-build whose default is not the same in every release that has them."""
    seen: dict[str, set[object]] = {}
    for version in versions():
        for name, flag in load(version).flags("build").items():
            seen.setdefault(name, set()).add(flag.default)
    return {name for name, defaults in seen.items() if len(defaults) > 1} - _ELSEWHERE


@pytest.mark.parametrize("version", versions())
def test_a_default_that_drifts_between_releases_is_always_written_out(version: str) -> None:
    """requirements.md 1I: max_batch_size 1, 256, 2048 and the like: nothing depends on what a release has in mind."""
    words = translate.build(load(version), _intent(parallelism=Parallelism(tp=2, pp=1)), SHAPE)
    there = _drifting() & set(load(version).flags("build"))
    assert {"max_batch_size", "max_num_tokens", "tokens_per_block", "gemm_plugin", "use_paged_context_fmha"} <= there
    silent = {name for name in there if f"--{name}" not in words and f"--{_OTHERWISE.get(name, name)}" not in words}
    assert silent == ({"use_fused_mlp"} if number(version) < (0, 13, 0) else set())


@pytest.mark.parametrize(("precision", "sm", "on"), [("fp8", 90, True), ("fp8", 89, False), ("fp16", 90, False)])
def test_fp8_context_attention_is_for_fp8_on_hopper(precision: str, sm: int, on: bool) -> None:
    assert ("--use_fp8_context_fmha enable" in _line("0.11.0", _intent(precision, sm=sm))) == on
    word = "enable" if on else "disable"
    assert f"--use_fp8_context_fmha {word}" in _line("0.19.0", _intent(precision, sm=sm)), "its default is on"


def test_fp8_turns_the_gemm_plugin_off() -> None:
    assert "--gemm_plugin disable" in _line("0.11.0", _intent("fp8"))
    assert "--gemm_plugin auto" in _line("0.11.0", _intent())
    assert "--gemm_plugin bfloat16" in _line("0.10.0", _intent("bf16", dtype="bfloat16"))


def test_paged_context_attention_follows_what_is_served() -> None:
    assert "--use_paged_context_fmha enable" in _line("0.11.0", _intent(paged_context=True))
    assert "--use_paged_context_fmha disable" in _line("0.11.0", _intent())
    assert "--use_paged_context_fmha enable" in _line("0.19.0", _intent())


@pytest.mark.parametrize(
    ("precision", "kv_cache_dtype", "paged"),
    [("fp8", "fp8", True), ("fp16", "fp8", False), ("int4_awq", "fp8", False), ("int8_sq", "int8", False)],
)
def test_a_cache_that_cannot_be_paged_in_context_is_not(precision: str, kv_cache_dtype: str, paged: bool) -> None:
    """From 0.19.0 paged context attention is on by default, and trtllm-build stops at such a cache."""
    word = "enable" if paged else "disable"
    assert f"--use_paged_context_fmha {word}" in _line("0.19.0", _intent(precision, kv_cache_dtype=kv_cache_dtype))


@pytest.mark.parametrize(
    ("batch", "isl", "beams", "tokens"), [(8, 2048, 1, 8192), (1, 64, 1, 64), (4, 512, 1, 2048), (8, 9000, 1, 9000)]
)
def test_a_step_holds_a_batch_of_prompts_up_to_8192_tokens(batch: int, isl: int, beams: int, tokens: int) -> None:
    shape = Shape(batch=batch, isl=isl, osl=1)
    assert translate.num_tokens(_intent(given={"max_beam_width": beams}), shape) == tokens


def test_a_step_holds_one_token_of_every_beam() -> None:
    assert translate.num_tokens(_intent(given={"max_beam_width": 4}), Shape(batch=512, isl=1, osl=1)) == 2048


def test_what_is_given_wins_and_stands_once() -> None:
    line = _line("0.11.0", _intent(given={"max_num_tokens": 10000, "gemm_plugin": "float16", "workers": 2}))
    for word in ("--max_num_tokens 10000", "--gemm_plugin float16", "--workers 2"):
        assert line.count(word.split(" ", maxsplit=1)[0] + " ") == 1
        assert word in line


def test_the_guides_command_is_what_comes_out() -> None:
    """requirements.md 1D, guide S1: Qwen1.5-14B in bf16 on 0.10.0 and two GPUs; the rest is written out defaults."""
    given = {"max_num_tokens": 10000, "multiple_profiles": True}
    intent = _intent("bf16", dtype="bfloat16", parallelism=Parallelism(tp=2, pp=1), paged_context=True, given=given)
    line = _line("0.10.0", intent, Shape(batch=256, isl=1024, osl=1024))
    for word in (
        "--gemm_plugin bfloat16",
        "--gpt_attention_plugin bfloat16",
        "--max_num_tokens 10000",
        "--use_custom_all_reduce enable",
        "--paged_kv_cache enable",
        "--workers 2",
        "--use_paged_context_fmha enable",
        "--multiple_profiles enable",
        "--max_input_len 1024",
        "--max_output_len 1024",
        "--max_batch_size 256",
    ):
        assert f"{word} " in f"{line} "
