"""Make a TensorRT-LLM checkpoint by the command after `--`, then verify it: every violation is named at once.

    trtllm_checkpoint.py --precision P --kv-cache-dtype K --tp-size N --pp-size N --out DIR -- COMMAND...

The same for ModelOpt here and for a release's own scripts in its container, so only the standard library
is used. Shapes are those of a dense decoder (qwen2, llama, gpt): of another one only files, mapping and scales are
looked at.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
import subprocess
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ALGORITHMS = {
    "fp16": None,
    "bf16": None,
    "fp8": "FP8",
    "int8_wo": "W8A16",
    "int4_wo": "W4A16",
    "int8_sq": "W8A8_SQ",
    "int4_awq": "W4A16_AWQ",
}
STORED = {"fp16": "F16", "bf16": "BF16", "fp8": "F8_E4M3"}
LINEAR = ("attention.qkv", "attention.dense", "mlp.fc", "mlp.proj")
Header = dict[str, Any]


def main() -> int:
    """The command's exit status; when it is 0, 1 if what it wrote is wrong."""
    args = arguments()
    code = subprocess.call(args.command)
    if code:
        return code if code > 0 else 128 - code
    found = violations(args.out, args)
    if found:
        lines = "\n".join(f"    {line}" for line in found)
        print(f"error: the checkpoint is not what was asked for\n{lines}", file=sys.stderr)
        return 1
    print(f"verified: {args.tp_size * args.pp_size} ranks, shapes and scales", flush=True)
    return 0


def arguments() -> argparse.Namespace:
    """What the checkpoint must be, and the command that makes it."""
    parser = argparse.ArgumentParser(description="run a quantizer and verify what it wrote")
    parser.add_argument("--precision", choices=tuple(ALGORITHMS), required=True)
    parser.add_argument("--kv-cache-dtype", choices=("auto", "fp8", "int8"), required=True)
    parser.add_argument("--tp-size", type=int, required=True)
    parser.add_argument("--pp-size", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("command", nargs="+")
    return parser.parse_args()


def violations(out: Path, wanted: argparse.Namespace) -> list[str]:
    """One line for each thing that is not as `wanted`; of one kind at most three."""
    try:
        config = json.loads((out / "config.json").read_text("utf-8"))
        mapping, quantization = config["mapping"], config["quantization"]
    except (OSError, ValueError, KeyError, TypeError) as problem:
        return [f"config.json cannot be read: {problem!r}"]
    world = wanted.tp_size * wanted.pp_size
    sizes = {"tp_size": wanted.tp_size, "pp_size": wanted.pp_size, "world_size": world}
    found = [f"mapping.{k} is {mapping.get(k)}, not {v}" for k, v in sizes.items() if mapping.get(k) != v]
    algorithm, expected = quantization.get("quant_algo"), ALGORITHMS[wanted.precision]
    if algorithm != expected and not (expected == "W8A8_SQ" and str(algorithm).startswith(expected)):
        found.append(f"quant_algo is {algorithm}, not {expected}")
    cache = None if wanted.kv_cache_dtype == "auto" else wanted.kv_cache_dtype.upper()
    if quantization.get("kv_cache_quant_algo") != cache:
        found.append(f"kv_cache_quant_algo is {quantization.get('kv_cache_quant_algo')}, not {cache}")
    there = {path.name for path in out.glob("rank*.safetensors")}
    names = {f"rank{rank}.safetensors" for rank in range(world)}
    found += [f"{name} is missing" for name in sorted(names - there)]
    found += [f"{name} is one too many" for name in sorted(there - names)]
    for rank in range(world):
        if f"rank{rank}.safetensors" in there:
            found += rank_violations(out / f"rank{rank}.safetensors", rank, config, wanted)
    return found


def rank_violations(path: Path, rank: int, config: dict[str, Any], wanted: argparse.Namespace) -> list[str]:
    """What is wrong with one rank's file."""
    try:
        header, start = read_header(path)
    except (OSError, ValueError, struct.error) as problem:
        return [f"{path.name} cannot be read: {problem}"]
    end = start + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    if path.stat().st_size != end:
        return [f"{path.name} has {path.stat().st_size} bytes, its header tells of {end}"]
    checks = (
        [line for name, shape in expected_shapes(config, rank, wanted) for line in wrong_shape(header, name, shape)],
        wrong_types(header, wanted.precision),
        missing_scales(header, wanted),
        wrong_scales(path, header, start),
    )
    return [f"{path.name}: {line}" for lines in checks for line in few(lines)]


def few(lines: list[str]) -> list[str]:
    """The first three, and how many more: one mistake in 80 layers is one mistake."""
    return lines[:3] + ([f"... and {len(lines) - 3} more like these"] if len(lines) > 3 else [])


def read_header(path: Path) -> tuple[Header, int]:
    """Name -> dtype, shape, data_offsets; and where the data begins. The format is that of safetensors."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > path.stat().st_size:
            raise ValueError("cut off in its header")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header, 8 + length


def expected_shapes(
    config: dict[str, Any], rank: int, wanted: argparse.Namespace
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Each tensor that this rank must have and its shape, from the whole model's sizes and tp."""
    names = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "head_size", "vocab_size")
    if not all(isinstance(config.get(name), int) for name in names) or "moe_num_experts" in config:
        return
    layers, hidden, inner, heads, head, vocab = (config[name] for name in names)
    tp, pp, stage = wanted.tp_size, wanted.pp_size, rank // wanted.tp_size
    kv = max(config.get("num_key_value_heads") or heads, tp)  # fewer heads than ranks are copied
    rows = {"attention.qkv": (heads + 2 * kv) * head // tp, "attention.dense": hidden, "mlp.fc": inner // tp}
    columns = {
        "attention.qkv": hidden,
        "attention.dense": heads * head // tp,
        "mlp.fc": hidden,
        "mlp.proj": inner // tp,
    }
    packed = 2 if wanted.precision == "int4_awq" else 1
    for layer in range(layers // pp):
        for name in LINEAR:
            yield f"transformer.layers.{layer}.{name}.weight", (rows.get(name, hidden) // packed, columns[name])
    if stage == 0:
        split = tp if config.get("use_parallel_embedding") and not config.get("embedding_sharding_dim") else 1
        yield "transformer.vocab_embedding.weight", (-(-vocab // split), hidden)
    if stage == pp - 1 and not config.get("share_embedding_table"):
        yield "lm_head.weight", (-(-vocab // tp), hidden)


def wrong_shape(header: Header, name: str, shape: tuple[int, ...]) -> list[str]:
    """A line when the tensor is missing or of another shape. A vocabulary may be padded, int4 packed either way."""
    if name not in header:
        return [f"{name} is missing"]
    has = tuple(header[name]["shape"])
    padded = name.startswith(("lm_head", "transformer.vocab")) and has[1:] == shape[1:] and 0 <= has[0] - shape[0] < 128
    packed = has == (shape[1], shape[0])
    return [] if has == shape or padded or packed else [f"{name} is {list(has)}, not {list(shape)}"]


def wrong_types(header: Header, precision: str) -> list[str]:
    """Weights of linear layers that are not stored as the precision says."""
    stored = STORED.get(precision, "I8")
    if precision in ("int8_wo", "int4_wo"):
        return []  # 16 bit, or packed by the release's own script
    names = [name for name in header if name.endswith(tuple(f"{linear}.weight" for linear in LINEAR))]
    return [f"{name} is {header[name]['dtype']}, not {stored}" for name in names if header[name]["dtype"] != stored]


def missing_scales(header: Header, wanted: argparse.Namespace) -> list[str]:
    """Scales that a quantized layer or KV cache must have."""
    found = []
    prefixes = [name[: -len(".weight")] for name in header if name.endswith(tuple(f"{it}.weight" for it in LINEAR))]
    if wanted.precision in ("fp8", "int4_awq"):
        found += [f"{it}.weights_scaling_factor" for it in prefixes]
    if wanted.precision == "fp8":
        found += [f"{it}.activation_scaling_factor" for it in prefixes]
    if wanted.kv_cache_dtype != "auto":
        attention = [it[: -len(".qkv")] for it in prefixes if it.endswith(".qkv")]
        found += [f"{it}.kv_cache_scaling_factor" for it in attention]
    return [f"{name} is missing" for name in found if name not in header]


def wrong_scales(path: Path, header: Header, start: int) -> list[str]:
    """Scales that are not finite numbers above zero."""
    found = []
    with path.open("rb") as file:
        for name in sorted(header):
            if "scaling_factor" in name or name.endswith(("per_channel_scale", "scale_w_quant_orig")):
                begin, end = header[name]["data_offsets"]
                file.seek(start + begin)
                bad = [v for v in numbers(file.read(end - begin), header[name]["dtype"]) if not 0 < v < math.inf]
                found += (
                    [f"{name} has {len(bad)} of its values not finite and positive, such as {bad[0]}"] if bad else []
                )
    return found


def numbers(data: bytes, dtype: str) -> Iterator[float]:
    """The values of a tensor of F32, F16 or BF16; of another type none."""
    if dtype == "F16":
        return (value for (value,) in struct.iter_unpack("<e", data))
    if dtype == "BF16":  # the upper half of an F32
        data = b"".join(b"\0\0" + data[at : at + 2] for at in range(0, len(data), 2))
        dtype = "F32"
    return iter(array("f", data) if dtype == "F32" else ())


if __name__ == "__main__":
    sys.exit(main())
