"""Names and groups."""

from __future__ import annotations

import pytest

from rules.spec import Spec, read
from rules.variant import expand, groups, name_problems
from tests.space import HEAD

SHAPES = "shapes = [{ batch = 8, isl = 2048, osl = 1024 }, { batch = 4, isl = 2048, osl = 1024 }]"


def _spec(name: str = "m", toolchain: str = '"cpu"', rest: str = 'precisions = ["fp8", "fp16"]') -> Spec:
    text = f'{HEAD}[models.{name}]\nsource = "tiny:qwen2"\ntoolchain = {toolchain}\n{rest}\n'
    spec, problems = read(text if "shapes" in rest else text + SHAPES)
    assert not problems
    return spec


def _names(spec: Spec) -> list[str]:
    return [variant.name for variant in expand(spec)]


def test_every_point_has_one_name_in_the_order_of_the_file() -> None:
    assert _names(_spec(rest='precisions = ["fp8", "fp16"]\nparallelism = ["tp4pp2", "tp8"]')) == [
        "m_tp4pp2_fp8_isl2048_osl1024_bs8",
        "m_tp4pp2_fp8_isl2048_osl1024_bs4",
        "m_tp4pp2_fp16_isl2048_osl1024_bs8",
        "m_tp4pp2_fp16_isl2048_osl1024_bs4",
        "m_tp8_fp8_isl2048_osl1024_bs8",
        "m_tp8_fp8_isl2048_osl1024_bs4",
        "m_tp8_fp16_isl2048_osl1024_bs8",
        "m_tp8_fp16_isl2048_osl1024_bs4",
    ]


@pytest.mark.parametrize("written", ["tp1", "tp1pp1", "pp1"])
def test_one_rank_is_left_out_of_the_name(written: str) -> None:
    names = _names(_spec(rest=f'precisions = ["fp8"]\nparallelism = ["{written}"]'))
    assert names[0] == "m_fp8_isl2048_osl1024_bs8"


def test_a_pipeline_alone_keeps_its_tp() -> None:
    assert _names(_spec(rest='precisions = ["fp8"]\nparallelism = ["pp2"]'))[0] == "m_tp1pp2_fp8_isl2048_osl1024_bs8"


def test_the_toolchain_is_in_the_name_only_where_an_entry_lists_several() -> None:
    assert _names(_spec(toolchain='["cpu"]'))[0] == "m_fp8_isl2048_osl1024_bs8"
    assert _names(_spec(toolchain='["cpu", "cpu2"]'))[:3:2] == [
        "m_fp8_cpu_isl2048_osl1024_bs8",
        "m_fp8_cpu2_isl2048_osl1024_bs8",
    ]


def test_every_prefix_that_ends_at_an_axis_is_a_group() -> None:
    found = groups(expand(_spec(rest='precisions = ["fp8", "fp16"]\nparallelism = ["tp4pp2"]')))
    assert {name: len(members) for name, members in found.items()} == {
        "m": 4,
        "m_tp4pp2": 4,
        "m_tp4pp2_fp8": 2,
        "m_tp4pp2_fp16": 2,
    }


def test_the_point_is_the_name_without_the_shape() -> None:
    assert {variant.point for variant in expand(_spec())} == {"m_fp8", "m_fp16"}


def test_twice_the_same_precision_is_two_variants_of_one_name() -> None:
    (*_, problem) = name_problems(expand(_spec(rest='precisions = ["fp8", "fp8"]')))
    assert problem.what == "m_fp8_isl2048_osl1024_bs4: two variants would have this name"
    assert problem.hint


def test_twice_the_same_shape_is_two_variants_of_one_name() -> None:
    shape = "{ batch = 1, isl = 1, osl = 1 }"
    found = name_problems(expand(_spec(rest=f'precisions = ["fp8"]\nshapes = [{shape}, {shape}]')))
    assert [problem.what for problem in found] == ["m_fp8_isl1_osl1_bs1: two variants would have this name"]


@pytest.mark.parametrize("spelling", ["tp1pp1", "pp1"])
def test_two_spellings_of_one_parallelism_are_one_name(spelling: str) -> None:
    assert name_problems(expand(_spec(rest=f'precisions = ["fp8"]\nparallelism = ["tp1", "{spelling}"]')))


def test_a_model_named_like_a_group_of_another_is_told() -> None:
    both = (*expand(_spec()), *expand(_spec(name="m_fp8")))
    (problem,) = name_problems(both)
    assert problem.what == "m_fp8: two variants would have this name"
    assert [name for name, _ in problem.facts] == ["models.m", "models.m_fp8"]


def test_different_models_do_not_clash() -> None:
    assert not name_problems((*expand(_spec()), *expand(_spec(name="m2"))))


def test_a_parallelism_that_does_not_parse_is_skipped_here_and_told_by_check() -> None:
    assert not expand(_spec(rest='precisions = ["fp8"]\nparallelism = ["four"]'))
