"""Make a TensorRT-LLM checkpoint with NVIDIA ModelOpt: config.json and one file a rank, quantized, scales measured.

ModelOpt 0.47 leaves things out that its exporter asks an installed tensorrt_llm for, and that TensorRT-LLM's own
quantize.py puts right afterwards (0.10.0 to 1.2.1); `corrected` does the same. int8_wo stays 16 bit in the checkpoint:
trtllm-build rounds the weights itself, and would take ModelOpt's int8 for its own packed layout.
What was written is checked by trtllm_checkpoint.py.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import inspect
import io
import itertools
import json
import math
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ALGORITHMS = {
    "fp16": None,
    "bf16": None,
    "fp8": "FP8",
    "int8_wo": "W8A16",
    "int8_sq": "W8A8_SQ_PER_CHANNEL",
    "int4_awq": "W4A16_AWQ",
}
PRESETS = {"fp8": "FP8_DEFAULT_CFG", "int8_sq": "INT8_SMOOTHQUANT_CFG", "int4_awq": "INT4_AWQ_CFG"}
DECODERS = {"qwen2": "qwen", "llama": "llama", "mistral": "llama", "gpt2": "gpt"}
KV_CACHE = {"auto": None, "fp8": "FP8", "int8": "INT8"}
CALIBRATION = ("tokenizer", "calibration")
STEP = 8192  # tokens that are measured at once
Said = Callable[[], str]


class Refused(Exception):
    """A failure whose text is meant for the user."""


def main() -> int:
    """Run the tool; the exit status, 1 when it refused."""
    # A waiting thread that spins takes the CPU from the one it waits for when the machine is shared.
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", OMP_WAIT_POLICY="PASSIVE")
    warnings.filterwarnings("ignore")
    try:
        make(arguments())
    except (Refused, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    return 0


def arguments() -> argparse.Namespace:
    """The command line of the table of tools."""
    parser = argparse.ArgumentParser(description="quantize a checkpoint with NVIDIA ModelOpt")
    parser.add_argument("--source", type=Path, required=True, metavar="DIR", help="config.json and *.safetensors")
    parser.add_argument("--allow-pickle", action="store_true", help="weights may be pickled")
    parser.add_argument("--trust-remote-code", action="store_true", help="the model's own Python code may run")
    parser.add_argument("--precision", choices=tuple(ALGORITHMS), required=True)
    parser.add_argument("--dtype", choices=("float16", "bfloat16"), required=True, help="of what is not quantized")
    parser.add_argument("--kv-cache-dtype", choices=tuple(KV_CACHE), required=True)
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


def make(args: argparse.Namespace) -> None:
    """Write the checkpoint below `args.out`; raise Refused before the long work where that can be known."""
    config = source_config(args)
    refuse_impossible(args, config)
    measured = args.precision in PRESETS or args.kv_cache_dtype != "auto"
    texts = calibration_texts(args) if measured else []
    with alive("importing torch and modelopt"):
        import torch
    print(f"on {device(torch)}", flush=True)
    tokens = tokenized(args, texts) if measured else []
    with alive("reading the weights"):
        model = loaded(args, torch)
    if measured:
        model = quantized(args, model, tokens)
    export(args, model, config, torch)
    if torch.cuda.is_available():
        print(f"GPU memory: {', '.join(peaks(torch))} at most", flush=True)
    path = args.out / "config.json"
    written = corrected(json.loads(path.read_text("utf-8")), args, config)
    path.write_text(json.dumps(written, indent=4) + "\n", "utf-8")
    (args.out / "quant_cfg.json").unlink(missing_ok=True)  # of mixed precision only; here it says nothing
    files = sorted(args.out.glob("rank*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    rows = f", scales measured on {len(tokens)} texts" if measured else ""
    line = f"{args.precision} checkpoint: {len(files)} ranks (tp{args.tp_size} pp{args.pp_size}), {size / 1e6:.1f} MB"
    (args.out / "summary.txt").write_text(f"{line}{rows}\n", "utf-8")


def source_config(args: argparse.Namespace) -> dict[str, Any]:
    """The model's config.json; raise Refused where there is none or no weights beside it."""
    try:
        content = json.loads((args.source / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as problem:
        raise Refused(f"config.json cannot be read\n    reason  {problem}") from None
    kinds = ("*.safetensors", *(("pytorch_model*.bin",) if args.allow_pickle else ()))
    if not isinstance(content, dict) or not any(any(args.source.glob(kind)) for kind in kinds):
        raise Refused("the source holds no safetensors weights\n    hint: it must be a Hugging Face checkpoint")
    return content


def refuse_impossible(args: argparse.Namespace, config: dict[str, Any]) -> None:
    """Raise Refused with all that cannot be: models that are not known, sizes that cannot be split."""
    family = str(config.get("model_type"))
    if family not in DECODERS:
        raise Refused(f"models of this type cannot be made yet\n    type   {family}\n    known  {', '.join(DECODERS)}")
    tp, heads, kv_heads, hidden, inner, layers = args.tp_size, *sizes(config)
    rules = [
        (tp < 1 or args.pp_size < 1, f"tp {tp} and pp {args.pp_size} must be at least 1"),
        (tp > 0 and heads % tp != 0, f"{heads} attention heads cannot be split over tp {tp}"),
        (tp > 0 and kv_heads % tp != 0 and tp % kv_heads != 0, f"{kv_heads} KV heads do not fit tp {tp}"),
        (args.pp_size > 0 and layers % args.pp_size != 0, f"{layers} layers cannot be split over pp {args.pp_size}"),
        (args.precision == "int8_sq" and tp > kv_heads, f"int8_sq cannot copy {kv_heads} KV heads to tp {tp}"),
    ]
    if args.precision == "int4_awq" and tp > 0:
        block = args.block_size
        bad = [size for size in (hidden, inner) if block < 1 or size % (block * tp)]
        rules += [(True, f"int4_awq: {size} columns over tp {tp} are no whole blocks of {block}") for size in bad]
    if args.precision in PRESETS or args.kv_cache_dtype != "auto":
        what = args.precision if args.precision in PRESETS else f"a KV cache in {args.kv_cache_dtype}"
        missing = [f"--{name}" for name in CALIBRATION if getattr(args, name) is None]
        rules += [(bool(missing), f"{what} needs scales that are measured on texts: give {' and '.join(missing)}")]
    wrong = [f"    {said}" for holds, said in rules if holds]
    if wrong:
        raise Refused(
            "\n".join(
                ["the checkpoint cannot be made", *wrong, "    hint: another precision, tp or pp, or a smaller block"]
            )
        )


def sizes(config: dict[str, Any]) -> tuple[int, int, int, int, int]:
    """Attention heads, KV heads, hidden and MLP columns, layers; GPT-2 has names of its own for them."""
    heads = config.get("num_attention_heads") or config.get("n_head") or 0
    hidden = config.get("hidden_size") or config.get("n_embd") or 0
    inner = config.get("intermediate_size") or config.get("n_inner") or 4 * hidden
    layers = config.get("num_hidden_layers") or config.get("n_layer") or 0
    return heads, config.get("num_key_value_heads") or heads, hidden, inner, layers


def calibration_texts(args: argparse.Namespace) -> list[str]:
    """The first `calibration_size` texts that are not empty; raise Refused when there are fewer."""
    found: list[str] = []
    for path in calibration_files(args.calibration):
        for number, row in enumerate(rows(path), 1):
            if args.calibration_column not in row:
                raise Refused(
                    f"the calibration data has no such column\n    column     {args.calibration_column}\n"
                    f"    there are  {', '.join(sorted(row))}\n    row        {number} of {path.name}"
                )
            text = row[args.calibration_column]
            if not isinstance(text, str):
                raise Refused(
                    f"the calibration column holds no text\n    row    {number} of {path.name}\n    value  {text!r}"
                )
            found += [text] if text.strip() else []
            if len(found) == args.calibration_size:
                return found
    raise Refused(
        f"the calibration data has too few texts\n    asked for  {args.calibration_size}\n    there are  {len(found)}\n"
        "    hint: declare the size that there is"
    )


def calibration_files(path: Path) -> list[Path]:
    """One file, or those of a folder in the order of their names: of the train split where names tell splits."""
    if path.is_file():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.suffix in {".jsonl", ".parquet"})
    if not found:
        raise Refused("the calibration folder holds no .jsonl and no .parquet file")
    return [file for file in found if file.name.startswith("train")] or found


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a .jsonl or .parquet file."""
    if path.suffix == ".parquet":
        yield from parquet_rows(path)
        return
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line) if line.strip() else None
            except ValueError:
                row = line
            if row is not None and not isinstance(row, dict):
                raise Refused(f"a line of the calibration data is no JSON object\n    line  {number} of {path.name}")
            if row is not None:
                yield row


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a .parquet file."""
    try:
        from arro3.io import read_parquet
    except ModuleNotFoundError:
        raise Refused(
            f"parquet cannot be read here: arro3-io is not installed\n    file  {path.name}\n"
            '    hint: ./doitw installs it; or write the column as jsonl, {"text": "..."} per line'
        ) from None
    with path.open("rb") as file:  # a file that was cut off ends in arro3's own panic, which is no Exception
        begin, size = file.read(4), file.seek(0, os.SEEK_END)
        file.seek(max(size - 4, 0))
        if size < 12 or (begin, file.read()) != (b"PAR1", b"PAR1"):
            raise Refused(f"this is no whole parquet file\n    file  {path.name}\n    size  {size} bytes")
    for batch in read_parquet(path):
        columns = [batch.column(name).to_pylist() for name in batch.schema.names]
        yield from (dict(zip(batch.schema.names, row, strict=True)) for row in zip(*columns, strict=True))


def tokenized(args: argparse.Namespace, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, at most `calibration_length`."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer, trust_remote_code=args.trust_remote_code)
    ids = [tokenizer(text, truncation=True, max_length=args.calibration_length)["input_ids"] for text in texts]
    print(f"{len(ids)} calibration texts, {sum(map(len, ids))} tokens", flush=True)
    return ids


def device(torch: Any) -> str:
    """Where the model will be, for the user: a GPU that was leased and cannot be used is told, with the reason."""
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        return f"{', '.join(names)} (PyTorch {torch.__version__})"
    cpu = f"the CPU, {torch.get_num_threads()} threads (PyTorch {torch.__version__})"
    if not os.environ.get("CUDA_VISIBLE_DEVICES"):
        return cpu
    reason = "it finds no CUDA driver" if torch.version.cuda else "it is a CPU build"
    return f"{cpu}: a GPU is held for this, and this PyTorch does not see it, since {reason}; docs/trtllm.md"


def peaks(torch: Any) -> list[str]:
    """The most memory that PyTorch held on each GPU."""
    held = (torch.cuda.max_memory_reserved(number) for number in range(torch.cuda.device_count()))
    return [f"{size / (1 << 30):.2f} GiB" for size in held]


def loaded(args: argparse.Namespace, torch: Any) -> Any:
    """The model in `args.dtype`, on the GPUs when there are any. Several need `accelerate`; without it, the first."""
    from importlib.util import find_spec

    from transformers import AutoModelForCausalLM

    several = torch.cuda.is_available() and find_spec("accelerate") is not None
    where = {"device_map": "auto"} if several else {}
    trust = args.trust_remote_code
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
        model = AutoModelForCausalLM.from_pretrained(
            args.source, dtype=getattr(torch, args.dtype), trust_remote_code=trust, **where
        )
    if torch.cuda.is_available() and not several:
        model = model.to("cuda")
    return model.eval()


def quantized(args: argparse.Namespace, model: Any, tokens: list[list[int]]) -> Any:
    """The model with quantizers whose scales were measured on `tokens`."""
    import torch
    from modelopt.torch import quantization

    # Without the first entry ModelOpt's default, int8 everywhere, quantizes what only the KV cache was meant for.
    plain: dict[str, Any] = {"quant_cfg": [{"quantizer_name": "*", "enable": False}], "algorithm": "max"}
    name = PRESETS.get(args.precision)
    wanted = copy.deepcopy(getattr(quantization, name)) if name else plain
    if args.precision == "int4_awq":
        for entry in wanted["quant_cfg"]:
            if "block_sizes" in (entry.get("cfg") or {}):
                entry["cfg"]["block_sizes"][-1] = args.block_size
    if args.kv_cache_dtype != "auto":
        bits: Any = (4, 3) if args.kv_cache_dtype == "fp8" else 8
        cache = {"quantizer_name": "*[kv]_bmm_quantizer", "cfg": {"num_bits": bits}, "enable": True}
        wanted["quant_cfg"] = [*wanted["quant_cfg"], cache]
    # Logits of the last token only: those of a whole step would take more memory than the model.
    last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    done = 0

    def measure(model: Any) -> None:
        nonlocal done
        with torch.no_grad():
            for texts in batches(tokens):
                model(torch.tensor(texts, device=model.device), use_cache=False, **last)
                done += len(texts)

    def so_far() -> str:
        """AWQ goes through the texts twice."""
        number, text = divmod(max(0, done - 1), len(tokens))
        return f"{text + (done > 0)} of {len(tokens)} texts" + (f", pass {number + 1}" if number else "")

    with alive("measuring scales", so_far), contextlib.redirect_stdout(io.StringIO()):
        return quantization.quantize(model, wanted, measure)


def batches(tokens: list[list[int]]) -> Iterator[list[list[int]]]:
    """Texts of equal length side by side: AWQ rounds every weight anew in each step. None is padded, as what a layer
    makes of padding would be measured, too.
    """
    for size, texts in itertools.groupby(sorted(tokens, key=len), key=len):
        same = list(texts)
        width = max(1, STEP // max(1, size))
        yield from (same[first : first + width] for first in range(0, len(same), width))


def export(args: argparse.Namespace, model: Any, config: dict[str, Any], torch: Any) -> None:
    """Write config.json and a file a rank."""
    from modelopt.torch.export import export_tensorrt_llm_checkpoint

    decoder, dtype = DECODERS[config["model_type"]], getattr(torch, args.dtype)
    so_far = lambda: f"{len(list(args.out.glob('rank*.safetensors')))} of {args.tp_size * args.pp_size} ranks"  # noqa: E731
    with alive("writing the ranks", so_far), contextlib.redirect_stdout(io.StringIO()), torch.inference_mode():
        try:
            export_tensorrt_llm_checkpoint(model, decoder, dtype, args.out, args.tp_size, args.pp_size)
        except NotImplementedError as problem:
            raise Refused(f"modelopt cannot split this model so\n    reason  {problem}") from None


def corrected(written: dict[str, Any], args: argparse.Namespace, config: dict[str, Any]) -> dict[str, Any]:
    """config.json as the release's own quantize.py leaves it: rotary base and scaling, names, algorithms, mapping."""
    tp, release = args.tp_size, tuple(int(part) for part in args.release.split(".")[:3])
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    base = rope.get("rope_theta") or config.get("rope_theta")
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if base:
        written["rotary_base"] = base
    if kind != "default":
        factors = {name: value for name, value in rope.items() if name != "rope_theta"}
        written["rotary_scaling"] = {**factors, "type": kind, "rope_type": kind}
    if config["model_type"] == "qwen2":
        written["qwen_type"] = "qwen2"
    if config["model_type"] == "gpt2":
        written |= {"architecture": "GPTForCausalLM", "position_embedding_type": "learned_absolute"}
    newer = {"gpus_per_node": (8, (0, 10, 0)), "moe_tp_size": (tp, (0, 11, 0)), "moe_ep_size": (1, (0, 11, 0))}
    written["mapping"] |= {name: value for name, (value, first) in newer.items() if release >= first}
    quantization = written["quantization"]
    quantization |= {"quant_algo": ALGORITHMS[args.precision], "kv_cache_quant_algo": KV_CACHE[args.kv_cache_dtype]}
    excluded = sorted(quantization.pop("exclude_modules", None) or [])  # from a set: another order in every run
    if excluded:
        quantization["exclude_modules"] = excluded
    return {name: value for name, value in written.items() if not (isinstance(value, float) and math.isinf(value))}


@contextlib.contextmanager
def alive(what: str, so_far: Said = lambda: "") -> Iterator[None]:
    """Print `what` at once and again every 4 s with how far it is and the seconds passed, until the block ends."""
    done, started, stream = threading.Event(), time.monotonic(), sys.stdout
    print(what, file=stream, flush=True)

    def tell() -> None:
        while not done.wait(4):
            print(
                ": ".join(filter(None, (what, so_far()))) + f", {time.monotonic() - started:.0f} s",
                file=stream,
                flush=True,
            )

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


if __name__ == "__main__":
    sys.exit(main())
