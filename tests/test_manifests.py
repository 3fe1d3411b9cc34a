"""The action that writes manifests: planned from models.toml alone, keyed by what is in it, on any machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rules import plan
from rules.action import Action, manifest
from rules.manifests import label
from tests.lane import toml

NAME = "k8s:m_tp2_fp16_isl2048_osl1024_bs8"


def made(folder: Path, head: str = "", **entry: str) -> Action:
    """The action of an entry of tp2."""
    text = head + toml(runner="docker", **{"parallelism": '["tp2"]', **entry})  # type: ignore[arg-type]
    return plan.load(text, folder).actions[NAME]


def values(action: Action) -> dict[str, Any]:
    """What the templates are given."""
    settings = [word.removeprefix("--set=") for word in action.argv if word.startswith("--set=")]
    return {name: json.loads(text) for name, _, text in (one.partition("=") for one in settings)}


def test_manifests_need_nothing_that_is_built(tmp_path: Path) -> None:
    action = made(tmp_path)
    assert action.needs() == ()
    given = values(action)
    assert (given["ranks"], given["nodes"], given["gpus"]) == (2, 1, 2)
    assert given["command"].count("--load-model=tensorrt_llm") == 1
    assert given["image"].endswith("24.07-trtllm-python-py3")


def test_only_what_is_in_them_changes_their_key(tmp_path: Path) -> None:
    before = manifest(made(tmp_path), {})
    assert manifest(made(tmp_path, serving="{ bls_instance_count = 4 }"), {}) == before
    assert manifest(made(tmp_path, head="[k8s]\nreplicas = 1\n"), {}) == before
    for changed in (made(tmp_path, head="[k8s]\nreplicas = 2\n"), made(tmp_path, k8s="{ replicas = 2 }")):
        lines = set(manifest(changed, {}).splitlines()) ^ set(before.splitlines())
        assert lines == {"arg --set=replicas=1", "arg --set=replicas=2"}


def test_an_image_by_digest_is_known_as_such(tmp_path: Path) -> None:
    text = toml(runner="docker", head='image = "registry.local/triton@sha256:0"', parallelism='["tp2"]')
    assert values(plan.load(text, tmp_path).actions[NAME])["pinned"] is True
    assert values(made(tmp_path))["pinned"] is False


def test_the_embedded_lane_has_no_manifests(tmp_path: Path) -> None:
    entry = 'source = "tiny:qwen2"\ntoolchain = "cpu"\nprecisions = ["int8_wo"]\n'
    text = (
        f'[toolchains.cpu]\nbackend = "openvino"\n[models.m]\n{entry}shapes = [{{ batch = 8, isl = 256, osl = 64 }}]\n'
    )
    assert plan.load(text, tmp_path).names["k8s"] == {}


def test_the_name_of_an_object_is_short_and_still_the_variants_alone() -> None:
    assert label("qwen2_7b_fp8_isl2048_osl1024_bs8") == "qwen2-7b-fp8-isl2048-osl1024-bs8"
    long = "a_model_with_a_long_name_tp4pp2_int4_awq_trtllm_0_11_isl131072_osl8192_bs"
    names = {label(f"{long}{batch}") for batch in (8, 16, 32)}
    assert len(names) == 3
    assert all(len(name) <= 52 and not name.endswith("-") for name in names)
