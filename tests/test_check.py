"""Every rule of `doit check` has an entry that it refuses and one that it lets pass, read from a whole models.toml."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rules import check
from rules.check import problems, table
from rules.rule import Rule
from rules.spec import read
from rules.variant import expand
from tests.checks import (
    test_build,
    test_calibration,
    test_cluster,
    test_entry,
    test_evaluation,
    test_memory,
    test_options,
    test_precision,
    test_prompts,
    test_serving,
    test_shapes,
)
from tests.checks.examples import CPU, Example, Examples, folder, said
from tests.lane import TEXTS, toml

FAMILIES: Examples = {
    "well-formed": [Example({"shaps": "[]"}, {}, "models.m.shaps: unknown key", "mean 'shapes'?")],
    "backend-exists": [
        Example(
            {"head": '[toolchains.own]\nbackend = "openvin"'},
            {"head": '[toolchains.own]\nbackend = "openvino"'},
            "toolchains.own.backend: there is no 'openvin'",
            "mean 'openvino'?",
        )
    ],
    "names-differ": [
        Example({"precisions": '["fp16", "fp16"]'}, {}, "m_fp16_isl2048_osl1024_bs8: two variants would", "rename")
    ],
    "default-exists": [
        Example(
            {"head": '[serve]\ndefault = ["m_fp8"]'},
            {"head": '[serve]\ndefault = ["m_fp16"]'},
            "serve.default: there is no 'm_fp8'",
            "mean 'm_fp16'?",
        ),
        Example(
            {"head": '[serve]\ngpus = { m_fp8 = ["0,1"] }'},
            {"head": '[serve]\ngpus = { m_fp16 = ["0,1"] }'},
            "serve.gpus: there is no 'm_fp8'",
            "mean 'm_fp16'?",
        ),
    ],
    "plain-toolchain": [
        Example(
            {**CPU, "toolchain": '"own"', "head": '[toolchains.own]\nbackend = "openvino"\nrelease = "0.11.0"'},
            {**CPU, "toolchain": '"own"', "head": '[toolchains.own]\nbackend = "openvino"'},
            "toolchains.own.release: means nothing to the backend 'openvino'",
            "leave it out",
        )
    ],
}
PLACES = (
    test_entry,
    test_shapes,
    test_cluster,
    test_evaluation,
    test_memory,
    test_options,
    test_build,
    test_calibration,
    test_precision,
    test_prompts,
    test_serving,
)
EXAMPLES = {rule: of for place in (*(one.EXAMPLES for one in PLACES), FAMILIES) for rule, of in place.items()}
PAIRS = [(rule, example) for rule, examples in EXAMPLES.items() for example in examples]
NAMES = [f"{rule}-{number}" for rule, examples in EXAMPLES.items() for number in range(len(examples))]
# One mistake that two rules tell of, since each may stand alone.
TOGETHER = {
    frozenset(pair)
    for pair in (
        ("pp-within-layers", "stages-hold-layers"),
        ("one-rank-on-a-cpu", "tp-divides-heads"),
        ("kv-cache-fits-precision", "calibration-given"),
        ("precision-fits-gpu", "calibration-given"),
        ("precision-fits-gpu", "kv-cache-fits-precision"),
        ("ranks-hold-blocks", "tp-divides-heads"),
    )
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return folder(tmp_path)


@pytest.mark.parametrize("rule", table(), ids=lambda rule: rule.id)
def test_every_rule_is_shown_by_a_bad_and_a_good_entry(rule: Rule[object]) -> None:
    assert EXAMPLES.get(rule.id), f"write an Example of {rule.id} where its module is tested"


def test_no_example_is_of_a_rule_that_is_not_in_the_table() -> None:
    assert set(EXAMPLES) == {rule.id for rule in table()}


def test_ids_are_unique() -> None:
    ids = [rule.id for rule in table()]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(("rule", "example"), PAIRS, ids=NAMES)
def test_a_rule_tells_of_a_bad_entry_with_path_numbers_and_hint(rule: str, example: Example, root: Path) -> None:
    (told,) = said(rule, example.text(example.bad), root)
    assert told.startswith(example.what.format(root=root))
    assert example.hint in told.partition("hint: ")[2]


@pytest.mark.parametrize(("rule", "example"), PAIRS, ids=NAMES)
def test_a_rule_lets_a_good_entry_pass(rule: str, example: Example, root: Path) -> None:
    assert not said(rule, example.text(example.good), root)


@pytest.mark.parametrize(("rule", "example"), PAIRS, ids=NAMES)
def test_one_mistake_is_told_once(rule: str, example: Example, root: Path) -> None:
    """No rule stumbles over what another refuses; a second one says something else that is wrong."""
    text = example.text({"calibration": TEXTS, **example.bad})
    errors = {finding.id for finding in check.examine(text, root)} & {rule.id for rule in table() if rule.strict}
    assert {other for other in errors - {rule} if frozenset((rule, other)) not in TOGETHER} == set()


@pytest.mark.parametrize("rule", table(), ids=lambda rule: rule.id)
def test_a_rule_says_why_it_is_there_and_what_to_do(rule: Rule[object]) -> None:
    assert rule.reason.endswith((".", "?"))
    assert rule.fix


def _all(text: str, root: Path) -> list[str]:
    spec, wrong = read(text)
    assert not wrong
    return [problem.what for problem in problems(spec, root)]


def test_a_good_file_has_no_problems(root: Path) -> None:
    assert not _all(toml(**CPU), root)


def test_what_is_only_unwise_is_no_problem_of_the_file(root: Path) -> None:
    unwise = toml(build="{ use_paged_context_fmha = true }")
    assert said("paged-context-used", unwise, root)
    assert not _all(unwise, root)


def test_only_the_variants_that_are_asked_for_are_looked_at(root: Path) -> None:
    text = toml(parallelism='["tp8", "tp4pp2"]', build="{ use_paged_context_fmha = true }")
    spec, _ = read(text + text[text.index("[models.m]") :].replace("[models.m]", "[models.n]"))
    chosen = [variant for variant in expand(spec) if variant.model == "n" and variant.parallelism.pp == 2]
    told = check.findings(spec, root, chosen)
    assert {finding.problem.what.split(".")[1] for finding in told} == {"n"}
    assert not [finding for finding in told if "tp8" in str(finding.problem)]


def test_the_reference_precision_is_one_of_the_entrys_also_where_another_alone_is_looked_at(root: Path) -> None:
    (root / "q.jsonl").write_text('{"text": "a"}\n')
    spec, _ = read(
        toml(parallelism='["tp8"]', precisions='["fp16", "bf16"]', eval='{ data = "file:q.jsonl", reference = "fp16" }')
    )
    chosen = [variant for variant in expand(spec) if variant.precision == "bf16"]
    assert not [finding for finding in check.findings(spec, root, chosen) if finding.severity == "error"]


def test_everything_that_is_wrong_or_unwise_is_told_of_a_file_that_cannot_be_read_whole(root: Path) -> None:
    text = toml(build="{ use_paged_context_fmha = true }", parallelism='["tp3", "4x2"]', shaps="[]")
    told = [finding.id for finding in check.examine(text.replace("[models.m]", "[models.m]", 1), root)]
    assert told == ["well-formed"]
    told = [finding.id for finding in check.examine(text.replace("shaps = []\n", ""), root)]
    assert {"parallelism-written", "tp-divides-heads", "paged-context-used"} <= set(told)


def _told(text: str, root: Path) -> list[str]:
    """What `doit check` calls an error."""
    return [found.problem.what for found in check.examine(text, root) if found.severity == "error"]


def test_what_is_wrong_in_a_measurement_hides_nothing_of_the_engine(root: Path) -> None:
    wrong: Mapping[str, Any] = {
        "eval": '{ data = "q.jsonl" }',
        "bench": "{ concurency = [1] }",
        "gates": "{ ttft = 4, agreement = 0.9 }",
    }
    told = _told(toml(parallelism='["tp3"]', note='"ours"', **wrong), root)
    assert sorted(text.split(":")[0] for text in told) == [
        "models.m.bench.concurency",
        "models.m.eval.data",
        "models.m.gates.ttft",
        "models.m.note",
        "models.m.parallelism",
    ]


def test_a_misspelt_key_of_the_engine_is_told_alone_since_the_rest_depends_on_it(root: Path) -> None:
    assert _told(toml(calibraton="{}", precisions='["fp8"]'), root) == ["models.m.calibraton: unknown key"]


def test_what_is_there_and_not_well_formed_is_not_told_to_be_missing(root: Path) -> None:
    text = toml().replace("sm = 90", 'sm = "90"').replace('runner = "local"', 'runner = "dokcer"')
    told = _told(f'default = ["n", "n_fp16", "x"]\n{text}[models.n]\nsource = "tiny:qwen2"\n', root)
    paths = {line.partition(":")[0] for line in told}
    assert {"toolchains.t.runner", "platforms.p.sm", "models.n.shapes"} <= paths
    assert not {"models.m.toolchain", "models.m.platform"} & paths
    assert [line for line in told if line.startswith("default")] == ["default: there is no 'x'"]


def test_a_backend_that_there_is_not_is_told_once_and_names_the_nearest(root: Path) -> None:
    spec, _ = read(toml(**CPU).replace("openvino", "openvin"))
    (problem,) = problems(spec, root)
    assert problem.what == "toolchains.cpu.backend: there is no 'openvin'"
    assert problem.hint == "did you mean 'openvino'?"


@pytest.mark.parametrize("name", ["m", "m_int8_wo", "m_int8_wo_isl256_osl64_bs8"])
def test_the_default_set_may_name_variants_and_groups(root: Path, name: str) -> None:
    assert not _all(f'{toml(**CPU)}[serve]\ndefault = ["{name}"]\n', root)


def test_the_default_set_must_exist(root: Path) -> None:
    assert _all(f'{toml(**CPU)}[serve]\ndefault = ["m_int8"]\n', root) == ["serve.default: there is no 'm_int8'"]


def test_two_variants_of_one_name_are_told(root: Path) -> None:
    twice: Mapping[str, Any] = {**CPU, "precisions": '["int8_wo", "int8_wo"]'}
    told = _all(toml(**twice), root)
    assert told == ["m_int8_wo_isl256_osl64_bs8: two variants would have this name"]
