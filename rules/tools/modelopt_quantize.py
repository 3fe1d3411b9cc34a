"""Make a TensorRT-LLM checkpoint with NVIDIA ModelOpt: one file a rank, quantized, with measured scales.

The command line is what the plan is made of; the work behind it follows.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

PRECISIONS = ("fp16", "bf16", "fp8", "int8_wo", "int8_sq", "int4_awq")


def main() -> int:
    """Exit 1, always."""
    args = arguments()
    print(
        f"error: a checkpoint in {args.precision} cannot be made by ModelOpt yet\n"
        '    hint: write build = { quantizer = "upstream" }: the release\'s own scripts in its container',
        file=sys.stderr,
    )
    return 1


def arguments() -> argparse.Namespace:
    """The command line of the table of tools."""
    parser = argparse.ArgumentParser(description="quantize a checkpoint with NVIDIA ModelOpt")
    parser.add_argument("--source", type=Path, required=True, metavar="DIR", help="config.json and *.safetensors")
    parser.add_argument("--precision", choices=PRECISIONS, required=True)
    parser.add_argument("--dtype", choices=("float16", "bfloat16"), required=True, help="of what is not quantized")
    parser.add_argument("--kv-cache-dtype", choices=("auto", "fp8", "int8"), required=True)
    parser.add_argument("--tp-size", type=int, required=True)
    parser.add_argument("--pp-size", type=int, required=True)
    parser.add_argument("--release", required=True, metavar="VERSION", help="TensorRT-LLM's, for its config.json")
    parser.add_argument("--block-size", type=int, default=128, help="columns that share a scale of int4_awq")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="for calibrated precisions, as all below")
    parser.add_argument("--calibration", type=Path, metavar="PATH", help=".jsonl, .parquet, or a folder of them")
    parser.add_argument("--calibration-column", default="text")
    parser.add_argument("--calibration-size", type=int, default=512, help="rows, the first of them")
    parser.add_argument("--calibration-length", type=int, default=512, help="tokens of each")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
