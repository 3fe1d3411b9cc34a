"""Write rules/releases/*.json, one file per TensorRT-LLM release, from a folder of facts; or compare them with it.

    python scripts/releases.py FACTS_DIR            writes them all
    python scripts/releases.py --check FACTS_DIR    names the files that differ, and fails

FACTS_DIR has `trtllm/` (flags of each program, pins, containers) and `triton/` (the five models' configs with
``${placeholder}`` where a setting goes); its README.md files say where every fact comes from. What is kept is the same
data with numbers as numbers, one flag or tensor a line, and without the defect that an ensemble declares the output
``kv_cache_alloc_total_blocks`` twice.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

OUT = Path(__file__).parents[1] / "rules" / "releases"
MODELS = ("preprocessing", "tensorrt_llm", "postprocessing", "ensemble", "tensorrt_llm_bls")
FIRST_KEYS = ("name", "platform", "backend", "max_batch_size", "model_name", "model_version", "data_type", "dims")
LINE = 200
# Where the templates of a release are, and how sure that is.
TEMPLATES: Mapping[str, tuple[str, str]] = {
    **{f"0.{minor}.0": (f"v0.{minor}.0", "exact") for minor in range(8, 20)},
    "0.18.1": ("v0.18.0", "exact: equal to 0.18.0 and 0.18.2"),
    "0.18.2": ("v0.18.2", "exact"),
    "0.20.0": ("c2e65b8-pre-v0.20.0", "assumed: main just before the templates moved to NVIDIA/TensorRT-LLM"),
    "0.21.0": ("c2e65b8-pre-v0.20.0", "assumed: main just before the templates moved to NVIDIA/TensorRT-LLM"),
    "1.0.0": ("v1.0.0-inferred", "inferred: 0.20's templates and the token counts of pull request 5445"),
    "1.1.0": ("newest-main", "assumed: the last templates of main, dated by pull request 6714 only"),
    "1.2.0": ("newest-main", "assumed: the last templates of main, dated by pull request 6714 only"),
    "1.2.1": ("newest-main", "assumed: the last templates of main, dated by pull request 6714 only"),
}
# How a table of flags was come by -> how sure it is. A page is the release's own, generated from its parser.
SURE = {
    "": "exact",
    "documentation page": "exact",
    "inferred": "inferred",
    "partly inferred": "inferred",
    "bounded on both sides": "inferred",
    "stored file version": "assumed",
    "stored file versions": "assumed",
}
PROGRAMS = {
    "build": "trtllm-build",
    "convert_gpt": "convert_checkpoint.gpt",
    "convert_llama": "convert_checkpoint.llama",
    "convert_qwen": "convert_checkpoint.qwen",
    "quantize": "quantize",
    "launch": "launch_triton_server",
}
# The words that a setting may be, where the facts list them in prose; `decoding_mode` grew with the releases.
WORDS: Mapping[str, tuple[str, ...]] = {
    "batch_scheduler_policy": ("max_utilization", "guaranteed_no_evict"),
    "batching_strategy": ("V1", "v1", "inflight_batching", "inflight_fused_batching"),
    "decoding_mode": ("top_k", "top_p", "top_k_top_p", "beam_search", "medusa", "redrafter", "lookahead", "eagle"),
    "encoder_input_features_data_type": ("TYPE_FP16", "TYPE_BF16"),
    "guided_decoding_backend": ("xgrammar",),
    "logits_datatype": ("TYPE_FP32", "TYPE_FP16"),
    "prompt_embedding_table_data_type": ("TYPE_FP16", "TYPE_BF16"),
    "tokenizer_type": ("auto", "llama", "t5"),
    "triton_backend": ("tensorrtllm", "python"),
}
KINDS = (
    ("bool|true|same word", "bool"),
    (r"integer; v0\.13", "list"),
    ("integer|digits", "int"),
    (r"0(\.0)?\.\.1", "fraction"),
)
PLACEHOLDER = re.compile(r"\$\{(\w+)\}")
FLAG_KEYS = ("default", "choices", "nargs", "const", "required", "uncertain", "choices_uncertain")


def main() -> int:
    """Exit 1 when --check finds a difference."""
    parser = argparse.ArgumentParser(description="write rules/releases from facts")
    parser.add_argument("facts", type=Path)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    args = parser.parse_args()
    texts = {version: release_text(args.facts, version) for version in TEMPLATES}
    texts["main"] = text({"release": "main", "triton": contract(args.facts, "newest-main")}) + "\n"
    differing = [name for name, made in texts.items() if not args.check or made != written(name)]
    for name in differing:
        print(f"{name}.json {'differs' if args.check else 'written'}")
        if not args.check:
            (OUT / f"{name}.json").write_text(texts[name], encoding="utf-8")
    return int(args.check and bool(differing))


def written(name: str) -> str:
    """The text of a release's file; empty when there is none."""
    path = OUT / f"{name}.json"
    return path.read_text("utf-8") if path.exists() else ""


def release_text(facts: Path, version: str) -> str:
    """A release's file: sections of one line an item, then the templates."""
    label, sure = TEMPLATES[version]
    tables = {name: table(facts, version, program) for name, program in PROGRAMS.items()}
    found = {name: made for name, made in tables.items() if made}
    sections: dict[str, dict[str, Any]] = {
        "certainty": {**{name: certainty(made) for name, made in found.items()}, "triton": sure},
        "scripts": {name: script(name, version) for name in found if name not in ("build", "launch")},
        "pins": pins(facts, version),
        "containers": containers(facts, version),
        **{name: dict(map(flag, made["flags"])) for name, made in found.items()},
        "placeholders": placeholders(facts, label, version),
        "requests": requests(facts, label),
    }
    head = [f' "release": {json.dumps(version)}']
    head += [f" {json.dumps(name)}: {{\n{lines(section)}\n }}" for name, section in sections.items()]
    return "{\n" + ",\n".join([*head, f' "triton": {text(contract(facts, label), 1)}']) + "\n}\n"


def lines(section: dict[str, Any]) -> str:
    """One item a line."""
    return ",\n".join(f"  {json.dumps(key)}: {json.dumps(item, ensure_ascii=False)}" for key, item in section.items())


def table(facts: Path, version: str, program: str) -> dict[str, Any] | None:
    """The facts about one program of a release; None where it had none (qwen and gpt before 0.9.0)."""
    path = facts / "trtllm" / f"v{version}" / f"{program}.json"
    return dict(json.loads(path.read_text("utf-8"))) if path.exists() else None


def certainty(made: dict[str, Any]) -> str:
    """`exact`, `inferred` or `assumed`, and why."""
    how = made.get("confidence", "")
    sure = "inferred" if "read from" in made.get("note", "") else SURE[how]
    why = "; ".join(filter(None, (how if how != sure else "", made.get("note"), made.get("path_uncertain"))))
    return f"{sure}: {why}" if why else sure


def flag(row: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """(name without dashes, what may stand after it); absent keys are the common case."""
    name, *aliases = sorted(row["names"], key=lambda one: not one.startswith("--"))
    kept = {key: row[key] for key in FLAG_KEYS if row.get(key) is not None and row[key] is not False}
    kind = {"type": row["type"], **({"aliases": [one.lstrip("-") for one in aliases]} if aliases else {})}
    return name.lstrip("-"), {**kind, **kept}


def script(name: str, version: str) -> str:
    """Where a program lies in the source; 0.19 and 0.20 may still have the older place."""
    program, _, family = name.partition("_")
    if program == "quantize":
        return "examples/quantization/quantize.py"
    folder = "examples" if minor(version) < 19 else "examples/models/core"
    return f"{folder}/{family}/convert_checkpoint.py"


def minor(version: str) -> int:
    """18 for 0.18.2; a large number from 1.0 on."""
    first, second, _ = version.split(".")
    return int(first) * 100 + int(second)


def pins(facts: Path, version: str) -> dict[str, str]:
    """What the release asks for beside itself, as its package says; 0.18.0 and 0.18.1 are not known to differ."""
    known = json.loads((facts / "trtllm" / "dependencies.json").read_text("utf-8"))
    near = {"0.18.0": "0.18.2", "0.18.1": "0.18.2", "1.2.0": "1.2.1"}.get(version, version)
    requires = known.get(f"v{near}", {}).get("requires", {})
    wanted = ("tensorrt", "nvidia-ammo", "nvidia-modelopt", "nvidia-modelopt[torch]", "transformers")
    found = {name.partition("[")[0]: requires[name] for name in wanted if name in requires}
    return {**found, **({"taken_from": near} if near != version and found else {})}


def containers(facts: Path, version: str) -> dict[str, dict[str, str]]:
    """Image -> what it holds, oldest first: the images of NGC that carry the release."""
    rows = json.loads((facts / "trtllm" / "containers.json").read_text("utf-8"))["rows"]
    found = {}
    for row in reversed(rows):
        said = row.get("trtllm") or next((one["trtllm"] for one in row.get("triton_cli_readme", ())), "")
        if re.fullmatch(rf"{re.escape(version)}(\.post\d+)?", said.lstrip("v")):
            sure = "exact" if row.get("trtllm") else "inferred: README of triton_cli"
            built = row.get("tensorrtllm_backend_dockerfile", {}).get("TENSORRTLLM_VER", said)
            if built != said:
                sure = f"inferred: the support matrix says so, the Dockerfile {built}"
            holds = {"tensorrt_llm": said.lstrip("v"), "triton": row["triton_server"], "tensorrt": row.get("tensorrt")}
            found[row["image"]] = {**{key: held for key, held in holds.items() if held}, "certainty": sure}
    return found


def requests(facts: Path, label: str) -> dict[str, str]:
    """Request field -> what it is when absent. The fields of the ensemble are some of those of the BLS."""
    models = json.loads((facts / "triton" / "requests.json").read_text("utf-8"))[label]
    return {field["name"]: field["default"] for field in models["tensorrt_llm_bls"]["inputs"]}


def placeholders(facts: Path, label: str, version: str) -> dict[str, dict[str, Any]]:
    """Setting -> what it may be, what follows when it is left out, and (`needs`) whether something breaks then."""
    rows = json.loads((facts / "triton" / "placeholders.json").read_text("utf-8"))["placeholders"]
    wanted = set(PLACEHOLDER.findall(json.dumps(contract(facts, label))))
    rows.sort(key=lambda row: (row["placeholder"], row["class"] != "O"))  # the model that needs it has the last word
    return {row["placeholder"]: setting(row, version) for row in rows if row["placeholder"] in wanted}


def setting(row: dict[str, Any], version: str) -> dict[str, Any]:
    """One placeholder."""
    name, unset = row["placeholder"], row["default_when_unfilled_or_empty"]
    needs = {} if row["class"] == "O" else {"needs": row["class"].removeprefix("R-")}
    if name in WORDS:
        words = WORDS[name] if name != "decoding_mode" else WORDS[name][: decoding_modes(version)]
        return {"type": "word", "words": words, "unset": unset, **needs}
    kind = next((kind for pattern, kind in KINDS if re.match(pattern, row["allowed"], re.IGNORECASE)), "text")
    if kind == "list":
        kind = "int" if minor(version) < 13 else "text"
    return {"type": kind, "unset": unset, **needs}


def decoding_modes(version: str) -> int:
    """How many of the words a release knows."""
    return 4 if minor(version) < 10 else 5 if minor(version) < 16 else 8


def contract(facts: Path, label: str) -> dict[str, Any]:
    """Model -> its config."""
    folder = facts / "triton" / label
    return {model: config(json.loads((folder / f"{model}.json").read_text("utf-8"))["config"]) for model in MODELS}


def config(upstream: dict[str, Any]) -> dict[str, Any]:
    """One model's config without noise; parameters are a plain mapping of strings."""
    clean = numbers({key: value for key, value in upstream.items() if key != "parameters"})
    for side in ("input", "output"):
        clean[side] = unique(clean[side])
    if "parameters" in upstream:
        clean["parameters"] = {key: entry["string_value"] for key, entry in upstream["parameters"].items()}
    return dict(ordered(clean))


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


if __name__ == "__main__":
    sys.exit(main())
