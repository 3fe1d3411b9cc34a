"""Make the engine directory for one shape: the IR, engine.json, and proof that it generates.

OpenVINO compiles for the CPU it finds when it loads a model, so nothing compiled is kept here: what
is fixed is the shape that the server admits. Loading and generating one token shows that it works.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

LINKED = ("openvino_model.xml", "openvino_model.bin", "config.json", "generation_config.json")
POSITION_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


class Refused(Exception):
    """A failure whose text is meant for the user."""


def main() -> int:
    """Run the tool; the exit status, 1 when it refused."""
    args = _arguments()
    try:
        build(args)
    except (Refused, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--precision", required=True)
    parser.add_argument("--max-batch-size", type=int, required=True, help="requests in flight")
    parser.add_argument("--max-input-len", type=int, required=True, help="tokens (ISL)")
    parser.add_argument("--max-output-len", type=int, required=True, help="tokens (OSL)")
    parser.add_argument("--max-num-tokens", type=int, required=True, help="tokens in one step")
    parser.add_argument("--max-beam-width", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def build(args: argparse.Namespace) -> None:
    """Write the engine below args.out; raise Refused for an impossible shape or a broken IR."""
    config = _read_json(args.checkpoint / "config.json")
    generation = {}
    if (args.checkpoint / "generation_config.json").exists():
        generation = _read_json(args.checkpoint / "generation_config.json")
    check_shape(args, config)
    engine = description(args, config, generation)
    for name in LINKED:
        if (args.checkpoint / name).exists():
            place((args.checkpoint / name).resolve(), args.out / name)
    (args.out / "engine.json").write_text(json.dumps(engine, indent=2) + "\n", encoding="utf-8")
    prove(args.out, engine)
    (args.out / "summary.txt").write_text(
        f"{engine['precision']} engine: {engine['max_batch_size']} requests in flight, "
        f"{engine['max_input_len']} + {engine['max_output_len']} tokens each\n"
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as problem:
        raise Refused(
            f"{path.name} cannot be read\n  reason  {problem}\n"
            "  hint: --checkpoint is a directory that openvino_convert or openvino_quantize wrote"
        ) from None
    return content if isinstance(content, dict) else {}


def check_shape(args: argparse.Namespace, config: dict[str, Any]) -> None:
    """Raise Refused for numbers that no request could ever use."""
    names = ("max_batch_size", "max_input_len", "max_output_len", "max_num_tokens", "max_beam_width")
    wrong = [f"  {name}  {getattr(args, name)}" for name in names if getattr(args, name) < 1]
    if wrong:
        raise Refused("the shape must be of positive numbers\n" + "\n".join(wrong) + "\n  hint: at least 1")
    if args.max_num_tokens < args.max_batch_size:
        raise Refused(
            "one step must hold a token of every request in flight\n"
            f"  max_num_tokens  {args.max_num_tokens}\n  max_batch_size  {args.max_batch_size}\n"
            "  hint: raise max_num_tokens or lower the batch"
        )
    positions = next((config[key] for key in POSITION_KEYS if isinstance(config.get(key), int)), None)
    if positions is not None and args.max_input_len + args.max_output_len > positions:
        raise Refused(
            "the shape is longer than the model's positions\n"
            f"  isl + osl  {args.max_input_len} + {args.max_output_len} = "
            f"{args.max_input_len + args.max_output_len} tokens\n"
            f"  model      {positions} tokens\n"
            f"  hint: keep isl + osl within {positions}"
        )


def description(args: argparse.Namespace, config: dict[str, Any], generation: dict[str, Any]) -> dict[str, Any]:
    """What engine.json says: the shape, and the ids that end and pad a generation."""
    end = token_ids(generation.get("eos_token_id")) or token_ids(config.get("eos_token_id"))
    pad = token_ids(generation.get("pad_token_id")) or token_ids(config.get("pad_token_id")) or end
    return {
        "backend": "openvino",
        "version": version("openvino-genai"),
        "precision": args.precision,
        "max_batch_size": args.max_batch_size,
        "max_input_len": args.max_input_len,
        "max_output_len": args.max_output_len,
        "max_seq_len": args.max_input_len + args.max_output_len,
        "max_num_tokens": args.max_num_tokens,
        "max_beam_width": args.max_beam_width,
        "vocab_size": config.get("vocab_size"),
        "eos_token_ids": end,
        "pad_token_id": pad[0] if pad else 0,
    }


def token_ids(value: Any) -> list[int]:
    """The ids in a config's value: Hugging Face writes one id, a list of ids, or null."""
    return [number for number in (value if isinstance(value, list) else [value]) if isinstance(number, int)]


def place(source: Path, target: Path) -> None:
    """Hard-link `source`, or copy where the file system cannot; the weights are never changed."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def prove(engine: Path, shape: dict[str, Any]) -> None:
    """Load the engine as the server does and generate one token; raise Refused when it cannot."""
    import numpy as np
    import openvino
    import openvino_genai

    print("loading the engine", flush=True)
    started = time.monotonic()
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.max_num_batched_tokens = shape["max_num_tokens"]
    scheduler.max_num_seqs = shape["max_batch_size"]
    prompt = openvino.Tensor(np.array([[1, 2, 3]], dtype=np.int64))
    once = openvino_genai.GenerationConfig(max_new_tokens=1)
    try:
        pipeline = openvino_genai.ContinuousBatchingPipeline(str(engine), scheduler, "CPU", {}, {})
        print(f"loaded in {time.monotonic() - started:.1f} s", flush=True)
        handle = pipeline.add_request(0, prompt, once)
        while pipeline.has_non_finished_requests():
            pipeline.step()
        tokens = handle.read_all()[0].generated_ids
    except RuntimeError as problem:
        reason = str(problem).strip().splitlines()[-1]
        raise Refused(f"the engine cannot be run\n  reason  {reason}\n  hint: convert the checkpoint again") from None
    if len(tokens) != 1 or not 0 <= tokens[0] < (shape["vocab_size"] or 2**31):
        raise Refused(f"the engine generated no token\n  got   {tokens}\n  hint: report this as a bug")
    print(f"generated token {tokens[0]} after {time.monotonic() - started:.1f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
