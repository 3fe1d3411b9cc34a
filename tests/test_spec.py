"""models.toml is read strictly: every mistake at once, with its path, what is wrong and how to mend it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from rules.backends import openvino
from rules.spec import Calibration, Model, Parallelism, Platform, Shape, Spec, Toolchain, read, schema
from tests.space import HEAD, SPEC

MODEL = {
    "source": '"tiny:qwen2"',
    "toolchain": '"cpu"',
    "precisions": '["int8_wo"]',
    "shapes": "[{ batch = 8, isl = 256, osl = 64 }]",
}


def _toml(**changed: str | None) -> str:
    entry = {**MODEL, **changed}
    return f"{HEAD}[models.m]\n" + "\n".join(f"{name} = {value}" for name, value in entry.items() if value)


def _problems(text: str) -> list[str]:
    _, problems = read(text)
    return [str(problem) for problem in problems]


def test_a_good_file_has_no_problems_and_typed_values() -> None:
    spec, problems = read(SPEC)
    assert not problems
    assert spec.models["m"].shapes == [Shape(batch=8, isl=256, osl=64)]
    assert spec.models["m"].parallelism == ["tp1"]
    assert spec.toolchains["cpu"].backend == "openvino"
    assert spec.cache.dir == "artifacts/store"


def test_an_empty_file_is_an_empty_spec() -> None:
    spec, problems = read("")
    assert not problems
    assert isinstance(spec, Spec)
    assert not spec.models


def test_one_toolchain_and_several_are_both_lists() -> None:
    assert read(_toml())[0].models["m"].toolchains() == ["cpu"]
    assert read(_toml(toolchain='["cpu", "gpu"]'))[0].models["m"].toolchains() == ["cpu", "gpu"]


def test_toml_that_is_none_is_one_problem_with_its_line() -> None:
    (problem,) = _problems('[models.m]\nsource = "tiny:qwen2\n')
    assert problem.startswith("models.toml is not TOML: ")
    assert "line 2" in problem
    assert "hint: " in problem


WRONG = {
    "unknown key": (_toml(preci="1"), "models.m.preci: unknown key", "did you mean 'precisions'?"),
    "unknown key far from all": (_toml(zzz="1"), "models.m.zzz: unknown key", "one of: source, toolchain, "),
    "unknown key in a shape": (
        _toml(shapes="[{ batch = 8, isl = 256, osl = 64, bacth = 1 }]"),
        "models.m.shapes[0].bacth: unknown key",
        "did you mean 'batch'?",
    ),
    "unknown key in eval": (
        _toml(eval='{ data = "file:q.jsonl", refrence = "fp32" }'),
        "models.m.eval.refrence: unknown key",
        "did you mean 'reference'?",
    ),
    "an unknown metric": (
        _toml(eval='{ data = "file:q.jsonl", metrics = ["rouge"] }'),
        "models.m.eval.metrics[0]: must be 'exact_match', 'contains', 'regex', 'numeric', 'rouge_l', 'chrf' or 'bleu'",
        "one of these",
    ),
    "text for a gate": (_toml(gates='{ ttft_p99_ms = "4" }'), "models.m.gates.ttft_p99_ms: must be a number", "quotes"),
    "a gate at infinity": (
        _toml(gates="{ ttft_p99_ms = inf }"),
        "models.m.gates.ttft_p99_ms: must be a finite number",
        "no limit",
    ),
    "a free machine": (
        "[platforms.h]\nsm = 90\nmemory_gib = 80\ngpus = 8\nprice_per_hour = 0\n",
        "platforms.h.price_per_hour: must be more than 0",
        "raise it",
    ),
    "unknown table": ("[model.m]\n", "model: unknown table", "did you mean 'models'?"),
    "unknown key in cache": ("[cache]\ndri = 'x'\n", "cache.dri: unknown key", "did you mean 'dir'?"),
    "missing key": (_toml(source=None), "models.m.source: is missing", "no default"),
    "batch 0": (
        _toml(shapes="[{ batch = 0, isl = 256, osl = 64 }]"),
        "models.m.shapes[0].batch: must be at least 1",
        "raise it",
    ),
    "negative isl": (
        _toml(shapes="[{ batch = 1, isl = -1, osl = 64 }]"),
        "models.m.shapes[0].isl: must be at least 1",
        "raise it",
    ),
    "huge osl": (
        _toml(shapes="[{ batch = 1, isl = 1, osl = 99999999999 }]"),
        "models.m.shapes[0].osl: must be at most 16777216",
        "lower it",
    ),
    "text for a number": (
        _toml(shapes='[{ batch = "8", isl = 256, osl = 64 }]'),
        "models.m.shapes[0].batch: must be a whole number",
        "without quotes",
    ),
    "true for a number": (
        _toml(shapes="[{ batch = true, isl = 256, osl = 64 }]"),
        "models.m.shapes[0].batch: must be a whole number",
        "without quotes",
    ),
    "a fraction": (
        _toml(shapes="[{ batch = 1.5, isl = 256, osl = 64 }]"),
        "models.m.shapes[0].batch: must be a whole number",
        "point",
    ),
    "a number for text": (_toml(source="3"), "models.m.source: must be a string", "quotes"),
    "text for a list": (_toml(precisions='"fp32"'), "models.m.precisions: must be a list", "[ ]"),
    "an empty list": (_toml(precisions="[]"), "models.m.precisions: is empty", "at least one"),
    "no shapes": (_toml(shapes="[]"), "models.m.shapes: is empty", "at least one"),
    "a number for a toolchain": (_toml(toolchain="3"), "models.m.toolchain: must be a list", "[ ]"),
    "no toolchain": (_toml(toolchain="[]"), "models.m.toolchain: is empty", "at least one"),
    "a number for a table": (_toml(build="3"), "models.m.build: must be a table", "{ key = value }"),
    "a number for a model": ("[models]\nm = 3\n", "models.m: must be a table", "[table]"),
    "a number for all models": ("models = 3\n", "models: is not a table", "[models.NAME]"),
    "a number for serve": ("serve = 1\n", "serve: must be a table", "[table]"),
    "text for a default set": ('[serve]\ndefault = "m"\n', "serve.default: must be a list", "[ ]"),
    "a name in capitals": ('[toolchains.CPU]\nbackend = "openvino"\n', "toolchains.CPU: is not a name", "lower case"),
    "a name with a dot": ('[toolchains."a.b"]\nbackend = "openvino"\n', "toolchains.a.b: is not a name", "lower case"),
    "a name that ends in _": ('[toolchains.a_]\nbackend = "openvino"\n', "toolchains.a_: is not a name", "lower case"),
    "an empty name": ('[toolchains.""]\nbackend = "openvino"\n', "toolchains.: is not a name", "lower case"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_told_with_path_and_hint(name: str) -> None:
    text, what, hint = WRONG[name]
    (problem,) = _problems(text)
    first, *_, last = problem.splitlines()
    assert first == what
    assert last.startswith("    hint: ")
    assert hint in last


def test_what_stands_there_is_shown_and_cut_short() -> None:
    (problem,) = _problems(_toml(precisions=f'"{"x" * 500}"'))
    assert "got  'xxx" in problem
    assert max(map(len, problem.splitlines())) < 120


def test_all_mistakes_are_told_at_once() -> None:
    text = _toml(shapes='[{ batch = 0, isl = "256", osl = 64 }]', preci="1", source=None) + "\n[modles.n]\n"
    assert [line.partition(":")[0] for line in _problems(text)] == [
        "modles",
        "models.m.source",
        "models.m.shapes[0].batch",
        "models.m.shapes[0].isl",
        "models.m.preci",
    ]


def test_a_bad_entry_does_not_hide_the_good_ones() -> None:
    spec, problems = read(_toml() + _toml(source=None).replace(HEAD, "\n").replace("models.m", "models.n"))
    assert len(problems) == 1
    assert list(spec.models) == ["m"]


@pytest.mark.parametrize(
    ("text", "tp", "pp"), [("tp1", 1, 1), ("tp4", 4, 1), ("pp2", 1, 2), ("tp4pp2", 4, 2), ("tp16pp12", 16, 12)]
)
def test_a_parallelism_is_read(text: str, tp: int, pp: int) -> None:
    parsed = Parallelism.parse(text)
    assert (parsed.tp, parsed.pp, parsed.world_size) == (tp, pp, tp * pp)


@pytest.mark.parametrize("text", ["", "4", "tp", "tp0", "tp-1", "pp2tp4", "tp4_pp2", "TP4", " tp4", "tp4\n", "tp04"])
def test_anything_else_is_not_a_parallelism(text: str) -> None:
    with pytest.raises(ValueError, match="is not of the form"):
        Parallelism.parse(text)


@pytest.mark.parametrize("text", ["tp1", "tp4", "tp4pp2", "tp1pp2"])
def test_a_parallelism_is_written_in_one_way(text: str) -> None:
    assert str(Parallelism.parse(text)) == text


def test_the_schema_describes_every_table_and_forbids_others() -> None:
    made = schema()
    assert set(made["properties"]) == {"cache", "serve", "k8s", "default", "toolchains", "platforms", "models"}
    assert made["additionalProperties"] is False
    toolchain = made["$defs"]["Model"]["properties"]["toolchain"]
    assert [choice["type"] for choice in toolchain["anyOf"]] == ["string", "array"]


@pytest.mark.parametrize("table", [Toolchain, Platform, Model, Calibration, Shape, openvino.Build, openvino.Serving])
def test_the_reference_has_every_key(table: type[BaseModel]) -> None:
    told = set(re.findall(r"[a-z0-9_]+", (Path(__file__).parents[1] / "docs/models.md").read_text(encoding="utf-8")))
    assert set(table.model_fields) <= told
