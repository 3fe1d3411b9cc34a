"""What a build needs of a machine follows from the actions that would run."""

from __future__ import annotations

from pathlib import Path

import pytest

from rules.memory import GIB
from rules.preflight import needs, survey, table, told
from rules.workspace import Workspace, load
from tests.checks.examples import folder
from tests.checks.test_prompts import SHORT
from tests.lane import toml


def space(folder: Path, text: str) -> Workspace:
    (folder / "artifacts").mkdir(exist_ok=True)
    (folder / "models.toml").write_text(text)
    load.cache_clear()
    return load(folder)


BIG = toml(runner="docker", parallelism='["tp8"]')  # Qwen2-72B in fp16: 145.4 GB


def test_an_engine_for_eight_ranks_needs_eight_gpus_and_workers(tmp_path: Path) -> None:
    of = space(tmp_path, BIG)
    found = needs(of, ["engine:m_tp8_fp16_isl2048_osl1024_bs8"])
    assert (found.gpus, set(found.sms), set(found.runners), found.workers) == (8, {90}, {"docker"}, 8)
    assert found.worker == pytest.approx(3 * 145.4e9 / 8, rel=0.02)
    assert found.gpu_memory == 80 * GIB


def test_a_checkpoint_needs_the_model_twice_in_memory_and_once_on_disk(tmp_path: Path) -> None:
    found = needs(space(tmp_path, BIG), ["checkpoint:m_tp8_fp16"])
    assert found.memory == pytest.approx(2 * 145.4e9, rel=0.01)
    assert found.disk == pytest.approx(145.4e9, rel=0.02)


def test_upstreams_checkpoint_has_the_embedding_on_each_rank(tmp_path: Path) -> None:
    found = needs(space(tmp_path, BIG + 'build = { quantizer = "upstream" }\n'), ["checkpoint:m_tp8_fp16"])
    assert found.disk == pytest.approx(145.4e9 + 7 * 2.5e9, rel=0.02)


def test_what_is_made_adds_up_on_the_disk(tmp_path: Path) -> None:
    of = space(tmp_path, BIG)
    one, both = (needs(of, names).disk for names in (["source:m"], ["source:m", "checkpoint:m_tp8_fp16"]))
    assert one == pytest.approx(145.4e9, rel=0.01)
    assert both == pytest.approx(2 * 145.4e9, rel=0.01)


def test_a_server_here_is_only_one_outside_a_container(tmp_path: Path) -> None:
    smoke = "smoke:m_tp8_fp16_isl2048_osl1024_bs8"
    assert needs(space(tmp_path, BIG), [smoke]).ranks == 0
    assert needs(space(tmp_path, BIG.replace('"docker"', '"local"')), [smoke]).ranks == 8


def test_nothing_to_make_needs_nothing(tmp_path: Path) -> None:
    of = space(tmp_path, BIG)
    assert {finding.id for finding in survey(of, [])} <= {"shm-regions-left"}


def test_a_survey_has_what_is_said_of_the_entry_and_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    text = BIG + "build = { use_paged_context_fmha = true }\n"
    found = {finding.id for finding in survey(space(tmp_path, text), ["engine:m_tp8_fp16_isl2048_osl1024_bs8"])}
    assert {"paged-context-used", "runner-installed", "gpus-present"} <= found


def test_ids_are_unique_over_all_rules() -> None:
    ids = [rule.id for rule in table()]
    assert len(ids) == len(set(ids))


def test_the_tokenizer_of_a_source_elsewhere_counts_prompts_once_it_was_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder(tmp_path)
    text = toml(source='"hf:o/n"', shapes=SHORT, bench='{ prompts = "file:asked.jsonl" }')
    of = space(tmp_path, text)
    assert "prompts-fit-isl" not in {finding.id for finding in told(of, ["source:m"])}
    of.executor.artifacts.folder("source:m").parent.mkdir(parents=True)
    (tmp_path / "Chat-Instruct").rename(of.executor.artifacts.folder("source:m"))
    monkeypatch.setattr(Workspace, "fresh", lambda _self, name, *, here: here and name == "source:m")
    (found,) = [finding for finding in told(of, ["source:m"]) if finding.id == "prompts-fit-isl"]
    assert found.problem.what == "models.m.shapes[0]: 2 of 3 prompts are longer than isl 4"


def test_scales_are_measured_here_only_outside_a_container_and_with_a_gpu(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "a"}\n' * 4)
    texts = 'calibration = { data = "file:texts.jsonl", size = 4 }\n'
    of = space(tmp_path, toml(precisions='["fp16", "fp8"]') + texts)
    made = {name: needs(of, [f"checkpoint:m_{name}"]).measures for name in ("fp16", "fp8")}
    assert made == {"fp16": False, "fp8": True}
