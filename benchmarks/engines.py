"""Engines to measure, made with our own tools, and the model repository around one.

`tiny` is the tiny Qwen2 in int8; `05b` has the shape of Qwen2-0.5B with random weights, which compute what trained
ones do, in int8. Its vocabulary is filled up with made-up words, so that every id is text and detokenising is work.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

__all__ = ["made", "repository"]

PROJECT = Path(__file__).parents[1]
LIMITS = {
    "tiny": ("--max-batch-size=32", "--max-input-len=512", "--max-output-len=256", "--max-num-tokens=4096"),
    "05b": ("--max-batch-size=32", "--max-input-len=512", "--max-output-len=256", "--max-num-tokens=4096"),
}
QWEN2_05B = {
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
    "eos_token_id": 151645,
    "pad_token_id": 151643,
}
RANDOM = """
import sys, json, torch
from transformers import AutoModelForCausalLM, Qwen2Config
torch.manual_seed(20)
torch.set_default_dtype(torch.bfloat16)
AutoModelForCausalLM.from_config(Qwen2Config(**json.loads(sys.argv[1]))).save_pretrained(sys.argv[2])
"""


def tool(name: str, *arguments: str) -> None:
    """Runs one of our tools; its own words are the failure."""
    subprocess.run([sys.executable, "-I", str(PROJECT / "rules/tools" / f"{name}.py"), *arguments], check=True)


def made(kind: str, work: Path) -> Path:
    """The engine directory of this kind below `work`, made unless it is there, beside its `tokenizer`."""
    folder = work / kind
    if (folder / "engine/summary.txt").exists():
        return folder / "engine"
    for name in ("source", "fp32", "int8", "engine", "tokenizer", "words"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    tool("tiny", "--architecture=qwen2", "--seed=20", f"--out={folder / 'words'}")
    source = folder / "words"
    if kind == "05b":
        source = folder / "source"
        subprocess.run([sys.executable, "-c", RANDOM, json.dumps(QWEN2_05B), str(source)], check=True)
    tool("openvino_convert", f"--source={source}", f"--out={folder / 'fp32'}")
    tool("openvino_quantize", f"--checkpoint={folder / 'fp32'}", "--precision=int8_wo", f"--out={folder / 'int8'}")
    compiled = ("--precision=int8_wo", *LIMITS[kind], f"--out={folder / 'engine'}")
    tool("openvino_compile", f"--checkpoint={folder / 'int8'}", *compiled)
    tokenizer(folder / "words", folder / "engine", folder / "tokenizer")
    return folder / "engine"


def tokenizer(words: Path, engine: Path, target: Path) -> None:
    """The tiny model's tokenizer with as many words as the engine has ids."""
    target.mkdir(parents=True, exist_ok=True)
    text = json.loads((words / "tokenizer.json").read_text("utf-8"))
    known = text["model"]["vocab"]
    taken = {*known.values(), *(token["id"] for token in text["added_tokens"])}
    size = json.loads((engine / "engine.json").read_text())["vocab_size"]
    known.update({f"\u0120w{number}": number for number in range(size) if number not in taken})
    (target / "tokenizer.json").write_text(json.dumps(text), "utf-8")
    (target / "tokenizer_config.json").write_bytes((words / "tokenizer_config.json").read_bytes())


def repository(engine: Path, words: Path, out: Path) -> Path:
    """The model repository as models.toml's defaults would have it."""
    sys.path.insert(0, str(PROJECT))
    from rules.backends.openvino import Serving

    values: dict[str, object] = dict(Serving())
    values["decoupled_mode"] = values.pop("streaming")
    values["triton_max_batch_size"] = json.loads((engine / "engine.json").read_text())["max_batch_size"]
    out.mkdir(parents=True)
    folders = [f"--templates={PROJECT / 'templates' / name}" for name in ("triton", "openvino")]
    places = [f"--engine={engine}", f"--tokenizer={words}", f"--out={out}"]
    settings = [f"--set={name}={written(value)}" for name, value in values.items()]
    tool("render", *folders, f"--contract={PROJECT / 'rules/releases/main.json'}", *places, *settings)
    return out


def written(value: object) -> str:
    """A setting as render.py takes it; None is upstream's unset."""
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
