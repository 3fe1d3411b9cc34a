"""Each rule of rules/check.py has an entry that it refuses and one that it lets pass."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rules import check
from rules.check import RULES, Subject, problems
from rules.spec import read

HEAD = """[toolchains.cpu]
backend = "openvino"
[toolchains.gpu]
backend = "trtllm"
release = "0.12.0"
[platforms.h100]
sm = 90
memory_gib = 80
gpus = 8
"""
GOOD: Mapping[str, str] = {
    "source": '"tiny:qwen2"',
    "toolchain": '"cpu"',
    "precisions": '["int8_wo"]',
    "shapes": "[{ batch = 8, isl = 256, osl = 64 }]",
}


@dataclass(frozen=True)
class Case:
    """What an entry is changed to so that a rule refuses it (`bad`), or still lets it pass (`good`)."""

    good: Mapping[str, str]
    bad: Mapping[str, str]
    what: str
    hint: str


GPU = {"toolchain": '"gpu"', "platform": '"h100"', "precisions": '["fp16"]'}
FILE = {"source": '"file:there"'}
EVAL = '{ data = "file:there/config.json", metrics = ["rouge_l"], reference = "int8_wo" }'
CASES: Mapping[str, Case] = {
    "source_exists": Case(FILE, {"source": '"file:nowhere"'}, "source: {root}/nowhere/config.json does not", "folder"),
    "toolchain_exists": Case(
        {"toolchain": '["cpu"]'}, {"toolchain": '"cpuu"'}, "toolchain: there is no toolchain 'cpuu'", "mean 'cpu'?"
    ),
    "platform_exists": Case(
        {"platform": '"h100"'}, {"platform": '"h200"'}, "platform: there is no platform 'h200'", "mean 'h100'?"
    ),
    "precision_offered": Case(
        {"precisions": '["fp32", "fp16", "int8_wo", "int4_wo"]'},
        {"precisions": '["int8wo"]'},
        "precisions: toolchain 'cpu' has no 'int8wo'",
        "mean 'int8_wo'?",
    ),
    "options_known": Case(
        {"build": "{ group_size = 32 }"},
        {"build": "{ group_sise = 32 }"},
        "build.group_sise: unknown key",
        "mean 'group_size'?",
    ),
    "parallelism_written": Case(
        {"parallelism": '["tp4pp2"]'},
        {"parallelism": '["4x2"]'},
        "parallelism: '4x2' is not of the form tp4, pp2 or tp4pp2",
        "counts",
    ),
    "one_rank_on_a_cpu": Case(
        {"parallelism": '["tp1pp1"]'},
        {"parallelism": '["tp2"]'},
        "parallelism: toolchain 'cpu' runs on the CPU and cannot do tp2",
        "leave",
    ),
    "ranks_divide_heads": Case(
        {**FILE, "parallelism": '["tp1", "tp2", "tp4", "tp8", "tp16"]'},
        {**FILE, "parallelism": '["tp3"]'},
        "parallelism: tp 3 does not divide the heads",
        "tp may be 1, 2, 4, 8, 16",
    ),
    "stages_within_layers": Case(
        {**FILE, "parallelism": '["pp6"]'},
        {**FILE, "parallelism": '["pp7"]'},
        "parallelism: 7 pipeline stages for 6 layers",
        "up to 6",
    ),
    "ranks_within_platform": Case(
        {"platform": '"h100"', "parallelism": '["tp4pp2"]'},
        {"platform": '"h100"', "parallelism": '["tp4pp4"]'},
        "parallelism: tp4pp4 needs 16 GPUs",
        "up to 8",
    ),
    "lengths_within_positions": Case(
        {**FILE, "shapes": "[{ batch = 1, isl = 4000, osl = 96 }]"},
        {**FILE, "shapes": "[{ batch = 1, isl = 4000, osl = 97 }]"},
        "shapes[0]: is longer than the model's positions",
        "lower",
    ),
    "gates_known": Case(
        {"eval": EVAL, "gates": "{ ttft_p99_ms = 400, rouge_l_drop = 0.02 }"},
        {"gates": "{ ttft_p98_ms = 400 }"},
        "gates.ttft_p98_ms: unknown gate",
        "ttft_p9",
    ),
    "evaluation_possible": Case(
        {"eval": EVAL},
        {"eval": EVAL.replace('"int8_wo"', '"int8wo"')},
        "eval.reference: 'int8wo' is not a precision of this entry",
        "mean 'int8_wo'?",
    ),
    "family_rules": Case(
        {**GPU, "build": "{ max_num_tokens = 512 }"},
        {**GPU, "build": "{ use_custom_all_reduce = true }"},
        "build.use_custom_all_reduce: TensorRT-LLM 0.12.0 has no --use_custom_all_reduce",
        "leave it out",
    ),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with the checkpoint `there`: 16 heads, 8 KV heads, 6 layers, 4096 positions."""
    config = {"num_attention_heads": 16, "num_key_value_heads": 8, "num_hidden_layers": 6}
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    return tmp_path


def _subject(changed: Mapping[str, str], root: Path, kind: type[Subject] = Subject) -> Subject:
    lines = (f"{name} = {value}" for name, value in {**GOOD, **changed}.items())
    spec, wrong = read(HEAD + "[models.m]\n" + "\n".join(lines))
    assert not wrong
    return kind(spec=spec, path="models.m", entry=spec.models["m"], root=root)


def test_every_rule_has_a_case() -> None:
    assert [rule.__name__ for rule in RULES] == list(CASES)


def test_every_rule_of_the_module_is_in_the_table() -> None:
    functions = {name for name, of in vars(check).items() if getattr(of, "__annotations__", {}).get("subject")}
    assert functions == {*CASES}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_rule_lets_a_good_entry_pass(rule: check.Rule, root: Path) -> None:
    assert not list(rule(_subject({}, root)))
    assert not list(rule(_subject(CASES[rule.__name__].good, root)))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_rule_refuses_a_bad_entry_with_path_and_hint(rule: check.Rule, root: Path) -> None:
    case = CASES[rule.__name__]
    (problem,) = rule(_subject(case.bad, root))
    assert problem.what.startswith(f"models.m.{case.what.format(root=root)}")
    assert case.hint in problem.hint


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_rule_is_silent_about_what_another_rule_refuses(rule: check.Rule, root: Path) -> None:
    """One mistake is one message; and no rule stumbles over another's."""
    for name, case in CASES.items():
        if name != rule.__name__:
            told = list(rule(_subject(case.bad, root)))
            assert not told or rule.__name__ in ("one_rank_on_a_cpu", "stages_within_layers", "ranks_divide_heads")


class _OnGpus(Subject):
    """An entry whose engine family runs on GPUs."""

    def families(self) -> Iterator[tuple[str, Any]]:
        yield "gpu", SimpleNamespace(device="gpu")


def test_an_engine_for_gpus_names_a_platform(root: Path) -> None:
    assert not list(check.platform_exists(_subject({"platform": '"h100"'}, root, _OnGpus)))
    (problem,) = check.platform_exists(_subject({}, root, _OnGpus))
    assert (problem.what, problem.hint) == ("models.m.platform: is missing", "one of: h100")


def test_kv_heads_may_be_replicated_but_not_split(root: Path) -> None:
    assert not list(check.ranks_divide_heads(_subject({**FILE, "parallelism": '["tp16"]'}, root)))


def test_a_wrong_type_in_a_backends_table_is_told_with_its_path(root: Path) -> None:
    (problem,) = check.options_known(_subject({"serving": '{ streaming = "yes" }'}, root))
    assert problem.what == "models.m.serving.streaming: must be true or false"


def test_a_gate_on_a_loss_needs_what_is_lost_against(root: Path) -> None:
    (problem,) = check.gates_known(_subject({"gates": "{ rouge_l_drop = 0.02 }"}, root))
    assert problem.what == "models.m.gates.rouge_l_drop: needs a reference precision"


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ('{ data = "file:no.jsonl", reference = "int8_wo" }', "data: {root}/no.jsonl does not exist"),
        ('{ data = "file:there/config.json" }', ": measures nothing"),
    ],
)
def test_an_evaluation_needs_questions_and_something_to_measure(root: Path, changed: str, what: str) -> None:
    (problem,) = check.evaluation_possible(_subject({"eval": changed}, root))
    assert problem.what.removeprefix("models.m.eval").lstrip(".") == what.format(root=root)


def _all(text: str, root: Path) -> list[str]:
    spec, wrong = read(text)
    assert not wrong
    return [problem.what for problem in problems(spec, root)]


MODEL = "[models.m]\n" + "\n".join(f"{name} = {value}" for name, value in GOOD.items()) + "\n"


def test_a_good_file_has_no_problems(root: Path) -> None:
    assert not _all(HEAD + MODEL, root)


def test_a_backend_that_there_is_not_is_told_once_and_names_the_nearest(root: Path) -> None:
    spec, _ = read((HEAD + MODEL).replace("openvino", "openvin"))
    (problem,) = problems(spec, root)
    assert problem.what == "toolchains.cpu.backend: there is no 'openvin'"
    assert problem.hint == "did you mean 'openvino'?"


@pytest.mark.parametrize("name", ["m", "m_int8_wo", "m_int8_wo_isl256_osl64_bs8"])
def test_the_default_set_may_name_variants_and_groups(root: Path, name: str) -> None:
    assert not _all(f'{HEAD}{MODEL}[serve]\ndefault = ["{name}"]\n', root)


def test_the_default_set_must_exist(root: Path) -> None:
    assert _all(f'{HEAD}{MODEL}[serve]\ndefault = ["m_int8"]\n', root) == ["serve.default: there is no 'm_int8'"]


def test_two_variants_of_one_name_are_told(root: Path) -> None:
    told = _all(HEAD + MODEL.replace('["int8_wo"]', '["int8_wo", "int8_wo"]'), root)
    assert told == ["m_int8_wo_isl256_osl64_bs8: two variants would have this name"]
