"""The embedded lane's actions."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from rules.action import Action, Files, Output
from rules.backends import openvino
from rules.spec import Parallelism, Toolchain, read
from rules.taken import CODE, PICKLED, Choice
from rules.variant import Point, Setting, Variant, expand


def _variant(batch: int = 8, isl: int = 256, precision: str = "int8_wo") -> Variant:
    spec, problems = read(
        f'[models.m]\nsource = "tiny:qwen2"\ntoolchain = "t"\nprecisions = ["{precision}"]\n'
        f"shapes = [{{ batch = {batch}, isl = {isl}, osl = 64 }}]\n"
    )
    assert not problems
    return expand(spec)[0]


def _point(precision: str = "int8_wo") -> Point:
    toolchain = Toolchain(backend="openvino")
    parallelism = Parallelism(tp=1, pp=1)
    return Point(model="m", name=f"m_{precision}", precision=precision, parallelism=parallelism, toolchain=toolchain)


def _checkpoint(precision: str, **build: int) -> tuple[Action, ...]:
    return openvino.checkpoint(_point(precision), openvino.Build(**build))


def _engine(**options: int) -> Action:
    return openvino.engine(
        _variant(), _point(), "checkpoint:m_int8_wo", openvino.Options(build=openvino.Build(**options))
    )


def test_fp32_is_the_conversion_itself() -> None:
    (converted,) = _checkpoint("fp32")
    assert converted.name == "checkpoint:m_fp32"


@pytest.mark.parametrize("precision", ["fp16", "int8_wo", "int4_wo"])
def test_every_other_precision_is_made_from_the_one_conversion(precision: str) -> None:
    converted, compressed = _checkpoint(precision)
    assert (converted,) == _checkpoint("fp32")
    assert compressed.name == f"checkpoint:m_{precision}"
    assert compressed.needs() == ("checkpoint:m_fp32",)


def test_the_group_size_is_told_to_int4_only() -> None:
    assert "--group-size=32" in _checkpoint("int4_wo", group_size=32)[-1].argv
    assert _checkpoint("int8_wo", group_size=32) == _checkpoint("int8_wo")


def test_the_conversion_does_not_see_the_tokenizer() -> None:
    source = dict(_checkpoint("fp32")[0].inputs)["source"]
    assert isinstance(source, Output)
    assert not [pattern for pattern in source.only if pattern.startswith(("tokenizer", "vocab", "merges", "*.json"))]


def test_the_engine_is_told_the_limits_of_the_shape() -> None:
    assert {"--max-batch-size=8", "--max-input-len=256", "--max-output-len=64"} <= set(_engine().argv)


@pytest.mark.parametrize(("batch", "isl", "tokens"), [(8, 256, 2048), (1, 64, 64), (64, 1024, 2048)])
def test_tokens_in_a_step_are_batch_x_isl_up_to_2048(batch: int, isl: int, tokens: int) -> None:
    engine = openvino.engine(_variant(batch, isl), _point(), "checkpoint:m", openvino.Options())
    assert f"--max-num-tokens={tokens}" in engine.argv


def test_tokens_in_a_step_may_be_given() -> None:
    assert "--max-num-tokens=100" in _engine(max_num_tokens=100).argv


@pytest.mark.parametrize("options", [{"group_size": 0}, {"group_size": True}, {"max_num_tokens": -1}, {"other": 1}])
def test_impossible_build_options_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        openvino.Build(**options)


def test_the_batch_limit_of_triton_is_the_shapes() -> None:
    rendering = openvino.serving(_variant(batch=3), _point(), openvino.Options())
    assert rendering.values["triton_max_batch_size"] == 3


def test_streaming_is_upstreams_decoupled_mode() -> None:
    options = openvino.Options(serving=openvino.Serving(streaming=False))
    rendering = openvino.serving(_variant(), _point(), options)
    assert rendering.values["decoupled_mode"] is False
    assert "streaming" not in rendering.values


def test_a_toolchain_of_this_family_names_no_release_and_no_image() -> None:
    spec, _ = read('[toolchains.t]\nbackend = "openvino"\nrelease = "0.11.0"\nrunner = "docker"\n')
    entry, toolchain = _variant().entry, spec.toolchains["t"]
    setting = Setting(path="m", entry=entry, name="t", toolchain=toolchain, platform=None, dims=None, root=Path())
    (rule,) = openvino.rules
    assert [problem.what.partition(":")[0] for problem in rule(setting)] == [
        "toolchains.t.release",
        "toolchains.t.runner",
    ]


@pytest.mark.parametrize("action", [*_checkpoint("int4_wo"), _engine()], ids=lambda action: action.name)
def test_a_tool_takes_the_arguments_it_is_given(action: Action) -> None:
    tool = dict(action.inputs)["tool"]
    assert isinstance(tool, Files)
    offered = set(re.findall(r'"(--[a-z-]+)"', Path(tool.root).read_text()))
    assert {word.partition("=")[0] for word in action.argv[3:]} <= offered


def test_what_can_run_code_is_seen_and_told_only_where_the_entry_trusts_it() -> None:
    trusting = replace(_point("fp32"), choice=Choice(allow_pickle=True, trust_remote_code=True))
    (plain,), (trusted,) = (openvino.checkpoint(it, openvino.Build()) for it in (_point("fp32"), trusting))
    assert set(trusted.argv) - set(plain.argv) == {"--allow-pickle", "--trust-remote-code"}
    seen = [it for _, it in (*plain.inputs, *trusted.inputs) if isinstance(it, Output)]
    assert set(seen[1].only) - set(seen[0].only) == {*CODE, *PICKLED}
