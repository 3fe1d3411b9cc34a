"""A folder with a models.toml becomes a plan, a cache and an executor; targets become actions."""

from __future__ import annotations

from pathlib import Path

import pytest

from rules import workspace
from rules.errors import Misconfigured
from rules.workspace import Workspace
from tests.space import SPEC

VARIANT = "m_int8_wo_isl256_osl64_bs8"


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    (tmp_path / "models.toml").write_text(SPEC + '[serve]\ndefault = ["m_int8_wo"]\n')
    return workspace.load(tmp_path)


@pytest.mark.parametrize("name", ["m", "m_int8_wo", VARIANT])
def test_a_target_is_a_variant_or_a_group(space: Workspace, name: str) -> None:
    assert space.actions(f"engine:{name}") == (f"engine:{VARIANT}",)


def test_a_stage_is_all_of_it(space: Workspace) -> None:
    assert space.actions("build") == (f"build:{VARIANT}",)


@pytest.mark.parametrize(
    ("target", "hint"), [("biuld", "did you mean 'build'?"), ("build:n", "one of: "), ("engine:m_int8", "m_int8_wo")]
)
def test_an_unknown_target_names_the_nearest(space: Workspace, target: str, hint: str) -> None:
    with pytest.raises(Misconfigured) as error:
        space.actions(target)
    assert hint in str(error.value)


def test_the_default_set_is_what_serve_says(space: Workspace) -> None:
    assert [variant.name for variant in space.chosen([])] == [VARIANT]


def test_names_go_before_the_default_set_and_each_variant_is_chosen_once(space: Workspace) -> None:
    assert [variant.name for variant in space.chosen(["m", VARIANT])] == [VARIANT]


def test_no_name_and_no_default_set_is_an_error_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_text(SPEC)
    with pytest.raises(Misconfigured, match="hint: write \\[serve\\]"):
        workspace.load(tmp_path).chosen([])


def test_the_store_lies_where_the_cache_table_says(tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_text(SPEC + '[cache]\ndir = "../shared store"\n')
    assert workspace.load(tmp_path).executor.cache.store.root == tmp_path / "../shared store"
