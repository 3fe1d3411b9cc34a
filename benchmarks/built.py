"""Brings a workspace into the state after a successful build, without running any tool.

    PYTHONPATH=SITE python built.py OUTPUTS

Run in the workspace's folder. Every action of its plan gets outputs, receipt and record as the executor would write
them, so 10,000 variants take seconds and not days. OUTPUTS is `one` (a file per action, as in the peers' graphs) or
`real` (as many files and folders as the embedded lane's actions make).
"""

from __future__ import annotations

import sys
from pathlib import Path

from rules import action as actions
from rules import digest, tree, workspace
from rules.action import Entry, Receipt
from rules.artifacts import Record
from rules.executor import Executor

CHECKPOINT = ("config.json", "generation_config.json", "openvino_model.bin", "openvino_model.xml", "summary.txt")
TOKENIZER = ("chat_template.jinja", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json")
ENGINE_CODE = (
    "answer arguments batcher cutting engine job metrics model pieces reply sampling settings tokenizing watching"
)
USERS = ("preprocessing", "postprocessing", "tensorrt_llm")
REAL = {
    "source": ("config.json", "generation_config.json", "model.safetensors", "questions.jsonl", *TOKENIZER),
    "checkpoint": CHECKPOINT,
    "engine": ("engine.json", *CHECKPOINT),
    "build": (
        *(f"{model}/config.pbtxt" for model in ("ensemble", "preprocessing", "postprocessing", "tensorrt_llm")),
        "tensorrt_llm_bls/config.pbtxt",
        *(f"tensorrt_llm_bls/1/{name}.py" for name in ("cancelling", "fields", "model", "tokenizing")),
        *(f"tensorrt_llm/1/{name}.py" for name in ENGINE_CODE.split()),
        *(f"tensorrt_llm/1/engine/{name}" for name in ("engine.json", *CHECKPOINT)),
        *(f"{model}/1/tokenizer/{name}" for model in USERS for name in TOKENIZER),
        *(f"{model}/1/{name}.py" for model in ("preprocessing", "postprocessing") for name in ("model", "tokenizing")),
        "summary.txt",
    ),
    "smoke": ("summary.txt", "transcript.jsonl"),
}  # fmt: skip


def main(outputs: str) -> None:
    """Fills artifacts/ of the workspace in the current folder."""
    space = workspace.load(Path.cwd())
    space.executor.artifacts.root.mkdir(exist_ok=True)
    tree.write = quickly  # type: ignore[assignment]  # 100,000 times fsync is an hour
    for action in space.plan.actions.values():
        names = sorted(REAL[action.stage]) if outputs == "real" else ["model.bin"]
        keep(space.executor, action, names)


def keep(executor: Executor, action: actions.Action, names: list[str]) -> None:
    """Writes what `action` would have made: small files whose content is the key and their name."""
    text = executor.manifest(action)
    key = actions.key(text)
    folder = executor.artifacts.folder(action.name)
    receipt = Receipt(tuple(put(folder / name, name, key) for name in names))
    made = {"how": "ran", "here": True, "seconds": 0.0, "size": receipt.size(), "started": "", "host": "bench"}
    record = Record(key=key, manifest=text, revision="", log="", changed=(), **made)  # type: ignore[arg-type]
    executor.artifacts.write(action.name, receipt, record)


def put(path: Path, name: str, key: str) -> Entry:
    """One sealed file."""
    content = f"{key} {name}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    entry = Entry(name, digest.of_text(content), len(content))
    tree.protect(path, entry)
    return entry


def quickly(path: Path, text: str) -> None:
    """tree.write without making it durable."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
