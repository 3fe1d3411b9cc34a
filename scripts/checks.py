"""Writes the table of docs/checks.md from the rules: `PYTHONPATH=. python scripts/checks.py`. A test compares them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rules import check, host
from rules.rule import Rule

__all__ = ["BEGIN", "END", "REPOSITORIES", "table"]

BEGIN, END = "<!-- rules: scripts/checks.py -->", "<!-- end of rules -->"
GITHUB = "https://github.com"
# How threads are written, and where they are.
REPOSITORIES = {
    "AIC": "ai-dynamo/aiconfigurator",
    "Model-Optimizer": "NVIDIA/Model-Optimizer",
    "TRT-LLM": "NVIDIA/TensorRT-LLM",
    "backend": "triton-inference-server/tensorrtllm_backend",
    "huggingface_hub": "huggingface/huggingface_hub",
    "llama_index": "run-llama/llama_index",
    "server": "triton-inference-server/server",
    "transformers": "huggingface/transformers",
    "truss": "basetenlabs/truss",
    "vllm": "vllm-project/vllm",
}


def main() -> None:
    """Puts the table where the marks are."""
    page = Path(__file__).resolve().parent.parent / "docs" / "checks.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def table() -> str:
    """The rules by what they look at."""
    entries = check.table()
    return f"{_section('models.toml', entries)}\n\n{_section('this machine', host.RULES)}"


def _section(about: str, rules: Iterable[Rule[Any]]) -> str:
    head = ["| id | | why | fix | threads |", "|---|---|---|---|---|"]
    return "\n".join([f"### About {about}", "", *head, *map(_row, rules)])


def _row(rule: Rule[Any]) -> str:
    kind = "warning" if rule.severity == "warning" else "estimate" if rule.estimate else "error"
    threads = ", ".join(_link(thread) for thread in rule.threads)
    return f"| `{rule.id}` | {kind} | {rule.reason} | {rule.fix} | {threads} |"


def _link(thread: str) -> str:
    name, _, number = thread.partition("#")
    return f"[{thread}]({GITHUB}/{REPOSITORIES[name]}/issues/{number})"


if __name__ == "__main__":
    main()
