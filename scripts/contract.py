"""Write rules/releases/main.json: the Triton contract of one release, from facts.

    python scripts/contract.py FACTS_DIR > rules/releases/main.json

FACTS_DIR holds one JSON file per model: the protobuf JSON of upstream's config with ``${placeholder}``
where a setting goes. What is kept is the same data with numbers as numbers, one tensor per line, and
without the defect that an ensemble declares the output ``kv_cache_alloc_total_blocks`` twice.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

MODELS = ("preprocessing", "tensorrt_llm", "postprocessing", "ensemble", "tensorrt_llm_bls")
FIRST_KEYS = ("name", "platform", "backend", "max_batch_size", "model_name", "model_version", "data_type", "dims")
LINE = 200


def numbers(value: Any) -> Any:
    """Protobuf JSON writes 64-bit numbers as strings; give the numbers back, placeholders stay text."""
    if isinstance(value, dict):
        return {key: numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [numbers(item) for item in value]
    return int(value) if isinstance(value, str) and value.lstrip("-").isdigit() else value


def ordered(value: Any) -> Any:
    """Names first, then the rest by alphabet."""
    if isinstance(value, list):
        return [ordered(item) for item in value]
    if not isinstance(value, dict):
        return value
    first = [key for key in FIRST_KEYS if key in value]
    return {key: ordered(value[key]) for key in first + sorted(set(value) - set(first))}


def unique(tensors: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each tensor once, in the order of its first declaration."""
    return list({tensor["name"]: tensor for tensor in tensors}.values())


def contract(config: dict[str, Any]) -> dict[str, Any]:
    """One model's config without noise; parameters are a plain mapping of strings."""
    clean = numbers({key: value for key, value in config.items() if key != "parameters"})
    for side in ("input", "output"):
        clean[side] = unique(clean[side])
    if "parameters" in config:
        clean["parameters"] = {key: entry["string_value"] for key, entry in config["parameters"].items()}
    return dict(ordered(clean))


def text(value: Any, indent: int = 0) -> str:
    """JSON with as much on a line as fits."""
    flat = json.dumps(value, ensure_ascii=False)
    if len(flat) + indent <= LINE and (indent > 4 or not isinstance(value, (dict, list))):
        return flat
    pad = " " * (indent + 1)
    if isinstance(value, dict):
        body = [f"{pad}{json.dumps(key)}: {text(item, indent + 1)}" for key, item in value.items()]
        return "{\n" + ",\n".join(body) + "\n" + " " * indent + "}"
    return "[\n" + ",\n".join(pad + text(item, indent + 3) for item in value) + "\n" + " " * indent + "]"


def main(facts: Path) -> None:
    """Print the contract of all five models."""
    configs = {model: json.loads((facts / f"{model}.json").read_text("utf-8"))["config"] for model in MODELS}
    release = {"release": "main", "triton": {model: contract(config) for model, config in configs.items()}}
    print(text(release))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
