"""The repository that a server sees: links, and configs that name where they are. The artifact stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import repository

CONFIG = """name: "{model}"
parameters {{ key: "engine" value {{ string_value: "/repository/tensorrt_llm/1/engine" }} }}
parameters {{ key: "tensorrt_llm_model_name" value {{ string_value: "tensorrt_llm" }} }}
parameters {{ key: "gpu_device_ids" value {{ string_value: "" }} }}
"""


def _layout(folder: Path, *variants: str, seen: str = "") -> dict[str, Any]:
    for variant in variants:
        for model in ("tensorrt_llm", "ensemble"):
            (folder / variant / model / "1").mkdir(parents=True)
            (folder / variant / model / "config.pbtxt").write_text(CONFIG.format(model=model))
        (folder / variant / "tensorrt_llm/1/rank0.engine").write_text("weights")
    target = str(folder / "target")
    sources = {variant: str(folder / variant) for variant in variants}
    devices = {variant: str(number) for number, variant in enumerate(variants)}
    return {"target": target, "seen": seen or target, "root": "/repository", "sources": sources, "devices": devices}


def test_of_one_variant_the_places_alone_are_other_ones(tmp_path: Path) -> None:
    layout = _layout(tmp_path, "a")
    assert repository.lay_out(layout) == ["ensemble", "tensorrt_llm"]
    config = tmp_path / "target/tensorrt_llm/config.pbtxt"
    assert config.read_text() == CONFIG.format(model="tensorrt_llm").replace("/repository", layout["target"])
    assert (tmp_path / "target/tensorrt_llm/1/rank0.engine").is_symlink()
    assert '"/repository/' in (tmp_path / "a/tensorrt_llm/config.pbtxt").read_text()


def test_several_variants_have_names_of_their_own_and_engines_their_gpus(tmp_path: Path) -> None:
    assert "tensorrt_llm__b" in repository.lay_out(_layout(tmp_path, "a", "b", seen="/seen"))
    text = (tmp_path / "target/tensorrt_llm__b/config.pbtxt").read_text()
    for said in ('name: "tensorrt_llm__b"', '"/seen/tensorrt_llm__b/1/engine"', 'string_value: "1"'):
        assert said in text
    engine = tmp_path / "target/tensorrt_llm__b/1/rank0.engine"
    assert (engine.is_symlink(), engine.stat().st_nlink) == (False, 2), "a container sees the file itself"
