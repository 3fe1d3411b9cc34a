"""Every file in rules/backends offers what the plan asks of an engine family."""

from __future__ import annotations

from pathlib import Path

import pytest

from rules import backend
from rules.action import Action
from rules.spec import read
from rules.variant import Variant, expand

FAMILIES = backend.names()


def _variant(name: str, precision: str) -> Variant:
    spec, problems = read(
        f'[toolchains.t]\nbackend = "{name}"\n[models.m]\nsource = "tiny:qwen2"\ntoolchain = "t"\n'
        f'precisions = ["{precision}"]\nshapes = [{{ batch = 8, isl = 256, osl = 64 }}]\n'
    )
    assert not problems
    return expand(spec)[0]


def _points() -> list[tuple[str, str]]:
    return [(name, precision) for name in FAMILIES for precision in backend.find(name).precisions]


def test_a_family_is_a_file_name(project: Path) -> None:
    files = {path.stem for path in (project / "rules" / "backends").glob("*.py")} - {"__init__"}
    assert set(FAMILIES) == files


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
    for table in ("build", "serving"):
        with pytest.raises(ValueError, match="Extra inputs are not permitted"):
            backend.find(name).Options.model_validate({table: {"no_such_option": 1}})


@pytest.mark.parametrize(("name", "precision"), _points())
def test_a_point_becomes_checkpoint_actions_and_an_engine_action(name: str, precision: str) -> None:
    family, variant = backend.find(name), _variant(name, precision)
    options = family.Options()
    made = family.checkpoint("m", variant.point, precision, options.build)  # type: ignore[attr-defined]
    engine = family.engine(variant, made[-1].name, options.build)  # type: ignore[attr-defined]
    assert [action.stage for action in (*made, engine)] == ["checkpoint"] * len(made) + ["engine"]
    assert engine.name == f"engine:{variant.name}"
    assert made[-1].name in engine.needs()
    assert all(_complete(action) for action in (*made, engine))


@pytest.mark.parametrize(("name", "precision"), _points())
def test_template_folders_and_values_are_given(name: str, precision: str, project: Path) -> None:
    family = backend.find(name)
    folders, values = family.serving(_variant(name, precision), family.Options().serving)  # type: ignore[attr-defined]
    assert all((project / "templates" / folder).is_dir() for folder in folders)
    assert all("None" not in str(value) for value in values.values())


def _complete(action: Action) -> bool:
    return bool(action.outputs and action.toolchain and action.platform and action.argv)
