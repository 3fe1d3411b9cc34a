"""Every file in rules/backends offers what the plan asks of an engine family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rules import backend, check, memory
from rules.action import Action
from rules.source import TINY
from rules.spec import Spec, read
from rules.variant import Point, Variant, expand

FAMILIES = backend.names()


HEADS = {"trtllm": 'release = "0.11.0"\n'}


def _spec(name: str, precision: str) -> Spec:
    spec, problems = read(
        f'[toolchains.t]\nbackend = "{name}"\n{HEADS.get(name, "")}'
        "[platforms.p]\nsm = 90\nmemory_gib = 80\ngpus = 8\n"
        f'[models.m]\nsource = "tiny:qwen2"\ntoolchain = "t"\nplatform = "p"\n'
        f'precisions = ["{precision}"]\nshapes = [{{ batch = 8, isl = 256, osl = 64 }}]\n'
    )
    assert not problems
    return spec


def _made(name: str, precision: str) -> tuple[Variant, Point]:
    spec = _spec(name, precision)
    (variant,) = expand(spec)
    point = Point(
        model="m",
        name=variant.point,
        precision=precision,
        parallelism=variant.parallelism,
        toolchain=spec.toolchains["t"],
        platform=spec.platforms["p"],
        dims=TINY["qwen2"],
    )
    return variant, point


def _points() -> list[tuple[str, str]]:
    return [(name, precision) for name in FAMILIES for precision in backend.find(name).precisions]


def test_a_family_is_a_file_name(project: Path) -> None:
    files = {path.stem for path in (project / "rules" / "backends").glob("*.py")} - {"__init__"}
    assert set(FAMILIES) == files


@pytest.mark.parametrize(("name", "precision"), _points())
def test_it_is_known_what_memory_a_precision_takes(name: str, precision: str) -> None:
    assert memory.known(precision), f"write it in rules/memory.py: {name} offers it"


def test_an_unknown_family_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        backend.find("openvin")


def test_a_name_cannot_reach_another_module() -> None:
    with pytest.raises(KeyError):
        backend.find("openvino.serving")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_offers_the_five_names_and_its_device(name: str) -> None:
    family = backend.find(name)
    assert family.precisions
    assert family.device in ("cpu", "gpu")
    assert set(family.Options.model_fields) == {"build", "serving"}


@pytest.mark.parametrize("name", FAMILIES)
def test_unknown_options_are_refused_in_both_tables(name: str) -> None:
    """By the types of the tables or, where a release says what there is, by a rule."""
    for table in ("build", "serving"):
        spec = _spec(name, backend.find(name).precisions[0])
        spec.models["m"].__dict__[table] = {"no_such_option": 1}
        told = [problem.what for problem in check.problems(spec, Path())]
        assert [what for what in told if what.startswith(f"models.m.{table}.no_such_option: ")]


@pytest.mark.parametrize(("name", "precision"), _points())
def test_a_point_becomes_checkpoint_actions_and_an_engine_action(name: str, precision: str) -> None:
    family, (variant, point) = backend.find(name), _made(name, precision)
    options: Any = family.Options()
    made = family.checkpoint(point, options.build)
    engine = family.engine(variant, point, made[-1].name, options)
    assert [action.stage for action in (*made, engine)] == ["checkpoint"] * len(made) + ["engine"]
    assert engine.name == f"engine:{variant.name}"
    assert made[-1].name in engine.needs()
    assert all(_complete(action) for action in (*made, engine))


@pytest.mark.parametrize(("name", "precision"), _points())
def test_template_folders_and_values_are_given(name: str, precision: str, project: Path) -> None:
    family, (variant, point) = backend.find(name), _made(name, precision)
    rendering = family.serving(variant, point, family.Options())
    assert all((project / "templates" / folder).is_dir() for folder in rendering.overlays)
    assert all("None" not in str(value) for value in rendering.values.values())


def _complete(action: Action) -> bool:
    return bool(action.outputs and action.toolchain and action.platform and action.argv)
