"""What an entry names is there, or the nearest good word is told."""

from __future__ import annotations

from pathlib import Path

from tests.checks.examples import CPU, FILE, Example, Examples, said
from tests.lane import toml

EXAMPLES: Examples = {
    "source-exists": [
        Example({**CPU, "source": '"file:nowhere"'}, FILE, "models.m.source: {root}/nowhere/config.json does", "folder")
    ],
    "source-is-whole": [
        Example(
            {"include": '["pytorch_model.bin"]'},
            {"include": '["original/*"]', "exclude": '["original/*.pth"]'},
            "models.m.include: 'pytorch_model.bin' can run code when it is loaded",
            "allow_pickle = true",
        ),
        Example(
            {"include": '["*.py"]'},
            {"include": '["*.py"]', "trust_remote_code": "true"},
            "models.m.include: '*.py' can run code when it is loaded",
            "trust_remote_code = true",
        ),
        Example(
            {**CPU, "source": '"tiny:qwen2"', "exclude": '["*"]'},
            {**CPU, "source": '"tiny:qwen2"'},
            "models.m: include, exclude, allow_pickle and trust_remote_code mean nothing to a tiny: source",
            "leave them out",
        ),
    ],
    "toolchain-exists": [
        Example({"toolchain": '"cpuu"'}, CPU, "models.m.toolchain: there is no toolchain 'cpuu'", "mean 'cpu'?")
    ],
    "platform-exists": [
        Example({"platform": '"pp"'}, {"platform": '"p"'}, "models.m.platform: there is no platform 'pp'", "mean 'p'?")
    ],
    "precision-offered": [
        Example(
            {**CPU, "precisions": '["int8wo"]'},
            {**CPU, "precisions": '["fp32", "fp16", "int8_wo", "int4_wo"]'},
            "models.m.precisions: toolchain 'cpu' has no 'int8wo'",
            "mean 'int8_wo'?",
        )
    ],
    "options-known": [
        Example(
            {**CPU, "build": "{ group_sise = 32 }"},
            {**CPU, "build": "{ group_size = 32 }"},
            "models.m.build.group_sise: unknown key",
            "mean 'group_size'?",
        ),
        Example(
            {**CPU, "serving": '{ streaming = "yes" }'},
            {**CPU, "serving": "{ streaming = true }"},
            "models.m.serving.streaming: must be true or false",
            "",
        ),
    ],
    "parallelism-written": [
        Example(
            {"parallelism": '["4x2"]'},
            {"parallelism": '["tp4pp2"]'},
            "models.m.parallelism: '4x2' is not of the form tp4, pp2 or tp4pp2",
            "counts",
        )
    ],
}


def test_an_engine_for_gpus_names_a_platform() -> None:
    text = toml().replace('platform = "p"\n', "")
    (told,) = said("platform-exists", text, Path())
    assert told == "models.m.platform: is missing\n    hint: one of: p"


def test_an_engine_for_a_cpu_needs_none() -> None:
    assert not said("platform-exists", toml(**CPU).replace('platform = "p"\n', ""), Path())
