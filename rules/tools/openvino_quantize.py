"""Compress the weights of an OpenVINO IR: fp16, int8 or int4, without data and without torch models.

As optimum-intel does by default: int8 is asymmetric, one scale per output channel, embeddings too;
int4 is asymmetric in groups of 128 input channels, while embeddings and the last layer stay int8.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

GROUP_SIZES = (16, 32, 64, 128, 256, 512, 1024)
DEFAULT_GROUP_SIZE = 128


class Refused(Exception):
    """A failure whose text is meant for the user."""


def main() -> int:
    """Run the tool; the exit status, 1 when it refused."""
    args = _arguments()
    try:
        quantize(args.checkpoint, args.precision, args.group_size, args.out)
    except (Refused, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="what openvino_convert wrote")
    parser.add_argument("--precision", choices=("fp16", "int8_wo", "int4_wo"), required=True)
    parser.add_argument("--group-size", type=int, help="input channels per int4 scale")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def quantize(checkpoint: Path, precision: str, group_size: int | None, out: Path) -> None:
    """Write the compressed IR and the configs below `out`; raise Refused for an impossible wish."""
    os.environ.update(DO_NOT_TRACK="1", NNCFDISABLETELEMETRY="1")
    if group_size is not None and precision != "int4_wo":
        raise Refused(
            f"a group size means nothing here\n  precision   {precision}\n  group size  {group_size}\n"
            "  hint: group sizes belong to int4_wo"
        )
    import openvino

    model = _read_ir(openvino.Core(), checkpoint)
    if precision == "fp16":
        bfloat16_to_float16(model)
    else:
        model = compress(model, precision, group_size)
    with alive(f"saving the {precision} weights"):
        try:
            openvino.save_model(model, out / "openvino_model.xml", compress_to_fp16=precision == "fp16")
        except RuntimeError as problem:
            reason = str(problem).strip().splitlines()[-1]
            raise Refused(f"the weights cannot be written\n  reason  {reason}\n  hint: is the disk full?") from None
    for name in ("config.json", "generation_config.json"):
        if (checkpoint / name).exists():
            shutil.copyfile(checkpoint / name, out / name)
    _report(checkpoint, precision, out)


def _read_ir(core: Any, checkpoint: Path) -> Any:
    path = checkpoint / "openvino_model.xml"
    try:
        return core.read_model(path)
    except RuntimeError as problem:
        raise Refused(
            f"the checkpoint holds no readable OpenVINO IR\n  reason  {str(problem).strip().splitlines()[-1]}\n"
            "  hint: --checkpoint is a directory that openvino_convert wrote"
        ) from None


def bfloat16_to_float16(model: Any) -> None:
    """Give every bf16 weight that fits the type fp16: save_model narrows only fp32 ones itself."""
    import numpy as np
    from openvino import opset13

    print("narrowing weights to fp16", flush=True)
    for node in model.get_ops():
        if node.get_type_name() != "Constant" or node.get_element_type().get_type_name() != "bf16":
            continue
        wide = node.get_data(dtype=np.float32)
        if np.abs(wide).max(initial=0) <= np.finfo(np.float16).max:
            narrow = opset13.constant(wide.astype(np.float16))
            narrow.set_friendly_name(node.get_friendly_name())
            node.output(0).replace(narrow.output(0))
    model.validate_nodes_and_infer_types()


def compress(model: Any, precision: str, group_size: int | None) -> Any:
    """`model` with int8 or int4 weights, its KV cache type left to the device's default."""
    if precision == "int4_wo":
        group_size = legal_group_size(model, group_size)
    with alive("importing nncf"):
        import nncf
    logging.getLogger("nncf").setLevel(logging.ERROR)
    with alive(f"compressing weights to {precision}"):
        if precision == "int8_wo":
            model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
        else:
            mode = nncf.CompressWeightsMode.INT4_ASYM
            model = nncf.compress_weights(model, mode=mode, ratio=1.0, group_size=group_size)
    # The f16 cache that the export asks for is for uncompressed weights (optimum-intel says so too).
    if model.has_rt_info(["runtime_options", "KV_CACHE_PRECISION"]):
        options = model.get_rt_info(["runtime_options"]).astype(dict)
        options.pop("KV_CACHE_PRECISION")
        model.set_rt_info(options, ["runtime_options"])
    return model


def legal_group_size(model: Any, wanted: int | None) -> int:
    """`wanted`, or the largest legal size up to 128; raise Refused if it does not divide."""
    channels = input_channels(model)
    common = math.gcd(*channels) if channels else 0
    legal = [size for size in GROUP_SIZES if common and common % size == 0]
    fitting = [size for size in legal if size <= DEFAULT_GROUP_SIZE]
    if wanted in legal or (wanted is None and fitting):
        return wanted or fitting[-1]
    raise Refused(
        "the int4 group size must divide the input channels of every layer\n"
        f"  group size      {wanted or DEFAULT_GROUP_SIZE}\n"
        f"  input channels  {', '.join(map(str, sorted(channels)))}\n"
        f"  legal sizes     {', '.join(map(str, legal)) or 'none'}\n"
        + ("  hint: choose a legal size" if legal else "  hint: use int8_wo for this model")
    )


def input_channels(model: Any) -> set[int]:
    """The lengths over which the model's weight matrices are summed, which groups must divide."""
    found = set()
    for node in model.get_ops():
        if node.get_type_name() != "MatMul":
            continue
        weight = node.input_value(1).get_node()
        while weight.get_type_name() in ("Convert", "Reshape"):
            weight = weight.input_value(0).get_node()
        shape = list(weight.output(0).get_partial_shape()) if weight.get_type_name() == "Constant" else []
        if len(shape) >= 2:
            axis = -1 if node.get_attributes()["transpose_b"] else -2
            found.add(shape[axis].get_length())
    return found


def _report(checkpoint: Path, precision: str, out: Path) -> None:
    before = (checkpoint / "openvino_model.bin").stat().st_size
    after = (out / "openvino_model.bin").stat().st_size
    line = f"{precision}: weights {before / 1e6:.1f} MB -> {after / 1e6:.1f} MB"
    (out / "summary.txt").write_text(line + "\n")


@contextlib.contextmanager
def alive(what: str) -> Iterator[None]:
    """Print `what` at once and again every 4 s with the seconds passed, until the block ends."""
    done, started = threading.Event(), time.monotonic()
    print(what, flush=True)

    def tell() -> None:
        while not done.wait(4):
            print(f"{what}: {time.monotonic() - started:.0f} s", flush=True)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


if __name__ == "__main__":
    sys.exit(main())
