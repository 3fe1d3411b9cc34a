"""Texts that are missing, too few or of another form are told before anything is fetched."""

from __future__ import annotations

import runpy
from pathlib import Path

from rules.backends.trtllm import precisions
from rules.checks.build import MODELOPT_FAMILIES
from rules.translate import measured
from tests.checks.examples import Examples, Tiny, said
from tests.fakes import PROJECT
from tests.lane import TEXTS, toml

TOOL = PROJECT / "rules" / "tools" / "modelopt_quantize.py"
EXAMPLES: Examples = {
    "calibration-given": [
        Tiny(
            {"precisions": '["fp8"]'},
            {"precisions": '["fp16"]'},
            "models.m.calibration: is missing, and fp8",
            "file:PATH",
        ),
        Tiny(
            {"precisions": '["int8_wo"]', "build": '{ kv_cache_dtype = "fp8" }'},
            {"precisions": '["int8_wo"]', "build": '{ kv_cache_dtype = "fp8" }', "calibration": TEXTS},
            "models.m.calibration: is missing, and int8_wo with a KV cache in fp8",
            "file:PATH",
        ),
        Tiny(
            {"precisions": '["fp8"]', "calibration": '{ data = "file:no.jsonl" }'},
            {"precisions": '["fp8"]', "calibration": TEXTS},
            "models.m.calibration.data: {root}/no.jsonl does not exist",
            ".jsonl",
        ),
        Tiny(
            {"precisions": '["fp8"]', "calibration": '{ data = "file:folder.jsonl" }'},
            {"precisions": '["fp8"]', "calibration": TEXTS},
            "models.m.calibration.data: {root}/folder.jsonl cannot be read as texts",
            "a folder of them",
        ),
        Tiny(
            {"precisions": '["fp8"]', "calibration": '{ data = "file:asked.txt" }'},
            {"precisions": '["fp8"]', "calibration": TEXTS},
            "models.m.calibration.data: {root}/asked.txt cannot be read as texts",
            ".jsonl or .parquet",
        ),
        Tiny(
            {"precisions": '["fp8"]', "calibration": TEXTS, "build": '{ quantizer = "upstream" }'},
            {"precisions": '["fp8"]', "calibration": '{ data = "file:texts" }', "build": '{ quantizer = "upstream" }'},
            "models.m.calibration: upstream's quantize.py reads a folder with a column `text`",
            "modelopt",
        ),
        Tiny(
            {"release": "0.9.0", "precisions": '["fp8"]', "build": '{ quantizer = "upstream" }'},
            {"release": "0.9.0", "precisions": '["fp8"]', "calibration": TEXTS},
            "models.m.build.quantizer: quantize.py of 0.9.0 takes its texts from a hub only",
            "modelopt",
        ),
    ],
    "texts-suffice": [
        Tiny(
            {"precisions": '["fp8"]', "calibration": TEXTS.replace("64 }", "65 }")},
            {"precisions": '["fp8"]', "calibration": TEXTS},
            "models.m.calibration.size: texts.jsonl has too few texts\n    asked for  65\n    there are  64",
            "write size = 64",
        ),
        Tiny(
            {"precisions": '["fp8"]', "calibration": '{ data = "file:texts.jsonl", size = 64 }'},
            {"precisions": '["fp16"]', "calibration": '{ data = "file:texts.jsonl", size = 64 }'},
            "models.m.calibration.column: line 1 of texts.jsonl has no text 'text'",
            "name the column",
        ),
        Tiny(
            {"precisions": '["fp8"]', "calibration": TEXTS.replace("64 }", "64, length = 4096 }")},
            {"precisions": '["fp8"]', "calibration": TEXTS.replace("64 }", "64, length = 2048 }")},
            "models.m.calibration.length: is more than the model's positions\n    max_position_embeddings  2048",
            "lower it",
        ),
    ],
}


def test_texts_in_another_encoding_are_told(root: Path) -> None:
    (root / "texts.jsonl").write_bytes('{"input": "é"}\n'.encode("latin-1"))
    text = toml(precisions='["fp8"]', calibration=TEXTS)
    (told,) = said("texts-suffice", text, root)
    assert told.startswith("models.m.calibration.data: texts.jsonl cannot be read\n    reason  'utf-8' codec can't")


def test_the_families_that_modelopt_makes_are_those_of_the_tool() -> None:
    assert tuple(runpy.run_path(str(TOOL))["DECODERS"]) == MODELOPT_FAMILIES


def test_what_is_measured_is_what_the_tool_measures() -> None:
    presets = runpy.run_path(str(TOOL))["PRESETS"]
    assert {name for name in precisions if measured(name, "auto")} == set(presets)
    assert all(measured(name, "fp8") for name in precisions)
