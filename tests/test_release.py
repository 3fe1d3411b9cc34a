"""Releases as data: each file stands on its own feet, and asking for one reads one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rules import digest, release
from rules.release import having, load, nearest_hint, number, versions, with_image

Golden = Callable[[str, str], None]

MODELS = ("preprocessing", "tensorrt_llm", "postprocessing", "ensemble", "tensorrt_llm_bls")
PROGRAMS: tuple[release.Program, ...] = ("build", "convert_gpt", "convert_llama", "convert_qwen", "quantize", "launch")
ENDS = ["0.8.0", "0.9.0", "0.10.0", "0.18.1", "1.2.1"]


def test_the_releases_are_those_that_have_trtllm_build() -> None:
    assert versions() == (
        *(f"0.{minor}.0" for minor in range(8, 18)),
        *("0.18.0", "0.18.1", "0.18.2", "0.19.0", "0.20.0", "0.21.0", "1.0.0", "1.1.0", "1.2.0", "1.2.1"),
    )


def test_the_files_are_those_that_were_compared_with_the_facts(golden: Golden) -> None:
    """After `python scripts/releases.py --check FACTS_DIR` the list may be written anew with --update-golden."""
    files = sorted(release.HERE.glob("*.json"))
    golden("releases.b3", "".join(f"{digest.of_file(path)}  {path.name}\n" for path in files))


@pytest.mark.parametrize("version", versions())
def test_a_file_is_named_for_its_release_and_says_how_sure_each_part_is(version: str) -> None:
    data = json.loads((release.HERE / f"{version}.json").read_text())
    assert data["release"] == version
    for part in (*(program for program in PROGRAMS if load(version).flags(program)), "triton"):
        assert load(version).sure(part)[0] in ("exact", "inferred", "assumed")


@pytest.mark.parametrize("version", versions())
def test_a_flag_is_one_line_so_that_a_change_is_one_line_of_a_diff(version: str) -> None:
    lines = (release.HERE / f"{version}.json").read_text().splitlines()
    for program in PROGRAMS:
        for name in load(version).flags(program):
            assert [line for line in lines if line.startswith(f'  "{name}": {{"type"')]


@pytest.mark.parametrize("version", versions())
def test_every_flag_is_consistent_in_itself(version: str) -> None:
    for program in PROGRAMS:
        flags = load(version).flags(program)
        names = [name for flag in flags.values() for name in (flag.name, *flag.aliases)]
        assert len(names) == len(set(names))
        for flag in flags.values():
            assert flag.type in ("str", "int", "float", "flag")
            assert not (flag.type == "flag" and flag.choices)
            assert flag.default is None or not flag.choices or flag.default in flag.choices
            assert flag.nargs in (None, "+", "?", 2)


@pytest.mark.parametrize("version", versions())
def test_the_five_models_and_their_ensemble_fit_together(version: str) -> None:
    contract = load(version).contract
    assert tuple(contract) == MODELS
    for step in contract["ensemble"]["ensemble_scheduling"]["step"]:
        model = contract[step["model_name"]]
        assert set(step["input_map"]) <= {tensor["name"] for tensor in model["input"]}
        assert set(step["output_map"]) <= {tensor["name"] for tensor in model["output"]}


@pytest.mark.parametrize("version", versions())
def test_every_placeholder_of_the_templates_is_described_and_no_other(version: str) -> None:
    used = set(re.findall(r"\$\{(\w+)\}", json.dumps(load(version).contract)))
    assert set(load(version).placeholders()) == used
    for setting in load(version).placeholders().values():
        assert (setting.type == "word") == bool(setting.words)


@pytest.mark.parametrize("version", versions())
def test_the_request_fields_are_the_public_inputs(version: str) -> None:
    contract = load(version).contract
    inputs = {model: {tensor["name"] for tensor in contract[model]["input"]} for model in MODELS}
    assert set(load(version).requests) == inputs["tensorrt_llm_bls"]
    assert inputs["ensemble"] <= inputs["tensorrt_llm_bls"]


@pytest.mark.parametrize("version", versions())
def test_an_image_carries_one_release(version: str) -> None:
    for image in load(version).images:
        assert image.startswith("nvcr.io/nvidia/tritonserver:")
        assert with_image(image) == (version,)


def test_the_image_of_a_release_is_the_oldest_that_carries_it() -> None:
    assert load("0.10.0").image.endswith(":24.06-trtllm-python-py3")
    assert load("0.20.0").image.endswith(":25.06-trtllm-python-py3")
    assert load("1.2.1").image.endswith(":26.04-trtllm-python-py3")
    assert not load("0.18.1").image


# From requirements.md 1I and the table of changes in the facts' README: what a translator must know.
HAVE: list[tuple[str, str, str]] = [
    ("max_output_len", "0.8.0", "0.11.0"),
    ("max_seq_len", "0.11.0", "1.2.1"),
    ("use_custom_all_reduce", "0.8.0", "0.11.0"),
    ("multi_block_mode", "0.8.0", "0.11.0"),
    ("kv_cache_type", "0.13.0", "1.2.1"),
    ("enable_xqa", "0.8.0", "0.15.0"),
    ("use_fp8_context_fmha", "0.9.0", "1.2.1"),
    ("multiple_profiles", "0.9.0", "1.2.1"),
    ("dry_run", "0.10.0", "1.2.1"),
    ("monitor_memory", "0.15.0", "1.2.1"),
]


@pytest.mark.parametrize(("name", "first", "last"), HAVE)
def test_a_flag_is_there_from_its_first_release_to_its_last(name: str, first: str, last: str) -> None:
    expected = tuple(one for one in versions() if number(first) <= number(one) <= number(last))
    assert having(lambda one: one.flag("build", name)) == expected


def test_the_default_batch_drifts_between_releases() -> None:
    drift = {version: load(version).flags("build")["max_batch_size"].default for version in versions()}
    assert [drift[version] for version in ("0.10.0", "0.11.0", "0.13.0", "0.14.0")] == [1, 256, 256, 2048]


def test_qwen_and_gpt_had_no_convert_checkpoint_before_0_9() -> None:
    assert having(lambda one: one.flags("convert_qwen")) == versions()[1:]
    assert having(lambda one: one.flags("convert_gpt")) == versions()[1:]
    assert load("0.8.0").flags("convert_llama")


def test_a_flag_is_found_by_its_alias() -> None:
    found = load("0.12.0").flag("build", "max_decoder_seq_len")
    assert found
    assert found.name == "max_seq_len"
    assert load("0.12.0").flag("build", "max_decoder_len") is None


@pytest.mark.parametrize("name", ["0.10", "10.0.0", "main", "../main", "v0.10.0", ""])
def test_what_is_not_a_release_is_a_key_error(name: str) -> None:
    with pytest.raises(KeyError):
        load(name)


@pytest.mark.parametrize(
    ("written", "hint"),
    [("0.11", "did you mean '0.11.0'?"), ("v0.12.0", "did you mean '0.12.0'?"), ("0.18", "did you mean '0.18.2'?")],
)
def test_a_slip_names_the_release_that_was_meant(written: str, hint: str) -> None:
    assert nearest_hint(written) == hint


def test_what_is_near_no_release_is_told_them_all() -> None:
    assert nearest_hint("main").startswith("one of: 0.8.0, 0.9.0, ")


READS = """
import sys
from rules import release
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
made = release.load("0.11.0")
made.flag("build", "max_seq_len"), made.placeholders(), made.image, release.versions()
print("\\n".join(opened))
"""


def test_asking_for_one_release_reads_one_file(project: Path) -> None:
    done = subprocess.run([sys.executable, "-c", READS], cwd=project, capture_output=True, text=True, check=True)
    assert [Path(line).name for line in done.stdout.splitlines()] == ["0.11.0.json"]
