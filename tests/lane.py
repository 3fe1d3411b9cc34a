"""Entries of the TensorRT-LLM lane for tests: a models.toml of one model, changed where a test says so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rules import plan
from rules.rule import Rule
from rules.source import TINY
from rules.spec import read
from rules.variant import Setting

__all__ = ["ENTRY", "TEXTS", "planned", "setting", "texts", "told", "toml"]

ENTRY: Mapping[str, str] = {
    "source": '"hf:Qwen/Qwen2-72B-Instruct"',
    "toolchain": '"t"',
    "platform": '"p"',
    "precisions": '["fp16"]',
    "shapes": "[{ batch = 8, isl = 2048, osl = 1024 }]",
}
TEXTS = '{ data = "file:texts.jsonl", column = "input", size = 64 }'


def toml(release: str = "0.11.0", runner: str = "local", sm: int = 90, head: str = "", **entry: str) -> str:
    """The text of a models.toml; `entry` are keys of the model as TOML, and `head` more of the toolchain."""
    lines = "\n".join(f"{key} = {value}" for key, value in {**ENTRY, **entry}.items())
    return (
        '[toolchains.cpu]\nbackend = "openvino"\n'
        f'[toolchains.t]\nbackend = "trtllm"\nrelease = "{release}"\nrunner = "{runner}"\n{head}\n'
        f"[platforms.p]\nsm = {sm}\nmemory_gib = 80\ngpus = 8\n[models.m]\n{lines}\n"
    )


def planned(text: str, folder: Path) -> plan.Plan:
    """The plan of `text` in a folder with calibration texts."""
    texts(folder)
    return plan.load(text, folder)


def texts(folder: Path) -> None:
    """The calibration texts that TEXTS names, and a folder for those of upstream's scripts."""
    (folder / "texts.jsonl").write_text(64 * '{"input": "a"}\n')
    (folder / "texts").mkdir(exist_ok=True)


def setting(text: str, folder: Path, model: str = "") -> Setting:
    """What the rules look at; `model` is the name of a tiny one whose dimensions hold."""
    spec, wrong = read(text)
    assert not wrong, wrong
    (name,) = spec.models["m"].toolchains()
    return Setting(
        path="models.m",
        entry=spec.models["m"],
        name=name,
        toolchain=spec.toolchains[name],
        platform=spec.platforms.get("p"),
        dims=TINY[model] if model else None,
        root=folder,
    )


def told(rules: tuple[Rule[Setting], ...], of: Setting) -> list[str]:
    """What the rules say, each problem as the text a user reads."""
    return [str(problem) for rule in rules for problem in rule(of)]
