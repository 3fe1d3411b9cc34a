"""Convert a Hugging Face checkpoint to a stateful OpenVINO IR with unchanged weights.

The IR is shared by every precision and shape: quantising and compiling start from it. Weights keep
the source's type (fp32, or bf16/fp16 stored as such and widened when run), so nothing is lost and
a 16-bit checkpoint does not double on the way. Tokenizer files are neither needed nor written.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TASK = "text-generation-with-past"


class Refused(Exception):
    """A failure whose text is meant for the user."""


def main() -> int:
    """Run the tool; the exit status, 1 when it refused."""
    args = _arguments()
    try:
        convert(args)
    except (Refused, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--allow-pickle", action="store_true", help="weights may be pickled")
    parser.add_argument("--trust-remote-code", action="store_true", help="the model's own Python code may run")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def convert(args: argparse.Namespace) -> None:
    """Write openvino_model.xml/.bin and the two configs; raise Refused for what cannot be had."""
    quiet_and_offline()
    out = args.out
    config = _read_config(args.source, own_code=args.trust_remote_code)
    with alive("importing torch and optimum-intel"):
        check_supported(config["model_type"])
    with alive("loading the checkpoint"):
        model = load(args)
    with alive("tracing and converting"):
        export(model, out)
    check_written(out)
    size = (out / "openvino_model.bin").stat().st_size
    (out / "summary.txt").write_text(f"{config['model_type']}: weights of {size / 1e6:.1f} MB as OpenVINO IR\n")


def quiet_and_offline() -> None:
    """Neither hub look-ups nor telemetry nor progress bars; warnings of this conversion stay."""
    os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", DO_NOT_TRACK="1")
    os.environ.update(HF_HUB_DISABLE_PROGRESS_BARS="1", TRANSFORMERS_VERBOSITY="error")
    os.environ.update(TOKENIZERS_PARALLELISM="false")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    # Tracing warns of every shape that Python code looked at; the greedy comparison in the tests
    # is what shows that none of them matters.
    warnings.filterwarnings("ignore", message="Converting a tensor to a Python")
    warnings.filterwarnings("ignore", message="torch.tensor results are registered as constants")
    logging.getLogger("nncf").setLevel(logging.ERROR)
    # GPT-2's argument named `input` cannot be wrapped, says OpenVINO; it then traces the model itself.
    logging.getLogger("openvino.frontend.pytorch.utils").addFilter(
        lambda record: record.getMessage() != "Failed to build model wrapper."
    )


def _read_config(source: Path, *, own_code: bool) -> dict[str, Any]:
    try:
        config = json.loads((source / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as problem:
        raise Refused(
            f"the checkpoint's config.json cannot be read\n  reason  {problem}\n"
            "  hint: the source must be a Hugging Face checkpoint"
        ) from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise Refused("config.json names no model_type\n  hint: the source must be a Hugging Face checkpoint")
    if "auto_map" in config and not own_code:
        raise Refused(
            "the checkpoint brings its own Python code, which is not run unasked\n"
            f"  auto_map  {', '.join(sorted(config['auto_map']))}\n"
            "  hint: use one of an architecture that transformers has built in, or write trust_remote_code = true"
        )
    if "quantization_config" in config:
        raise Refused(
            "the checkpoint is quantised already, and would be widened and quantised once more\n"
            f"  quantization_config  {config['quantization_config']}\n"
            "  hint: start from the unquantised checkpoint"
        )
    return config


def check_supported(model_type: str) -> None:
    """Raise Refused unless optimum-intel exports `model_type` with a KV cache."""
    from optimum.exporters.openvino import model_configs  # noqa: F401  (registers the architectures)
    from optimum.exporters.tasks import TasksManager

    known = TasksManager._SUPPORTED_MODEL_TYPE  # noqa: SLF001  (no public list has them all)
    if model_type in known and TASK in known[model_type].get("openvino", {}):
        return
    able = sorted(name for name, kinds in known.items() if TASK in kinds.get("openvino", {}))
    raise Refused(
        f"OpenVINO cannot generate text with this architecture\n  model_type  {model_type}\n"
        f"  known       {', '.join(able)}\n  hint: use another backend for this model"
    )


def load(args: argparse.Namespace) -> Any:
    """The model in its own type, mapped from the safetensors files where that is possible."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_grad_enabled(False)
    try:
        return AutoModelForCausalLM.from_pretrained(
            args.source,
            dtype="auto",
            use_safetensors=None if args.allow_pickle else True,
            local_files_only=True,
            trust_remote_code=args.trust_remote_code,
            low_cpu_mem_usage=True,
        ).eval()
    except (OSError, ValueError, KeyError, RuntimeError) as problem:
        raise Refused(
            f"transformers cannot load the checkpoint\n  reason  {_first_line(problem)}\n"
            "  hint: compare config.json with the tensors in the safetensors files"
        ) from None


def export(model: Any, out: Path) -> None:
    """Trace `model` with a hidden KV cache and write the IR and both configs below `out`."""
    import torch
    from optimum.exporters.openvino.convert import export_from_model

    # Constants are folded by kernels whose sums are ordered by thread count.
    torch.set_num_threads(1)
    export_from_model(
        model=model,
        output=out,
        task=TASK,
        stateful=True,
        preprocessors=[],
        device="cpu",
        patch_16bit_model=model.dtype in (torch.float16, torch.bfloat16),
    )


def check_written(out: Path) -> None:
    """Raise Refused unless the export left an IR and its config."""
    written = {path.name for path in out.iterdir()}
    missing = {"openvino_model.xml", "openvino_model.bin", "config.json"} - written
    if missing:
        raise Refused(f"the export wrote no {', '.join(sorted(missing))}\n  hint: report this as a bug")


def _first_line(problem: BaseException) -> str:
    text = str(problem).strip() or type(problem).__name__
    return re.split(r"\n", text)[0][:300]


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
