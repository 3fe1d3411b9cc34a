"""What a quantizer wrote is verified: mapping, one file a rank, shapes against tp, finite scales."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import PROJECT

TOOL = PROJECT / "rules" / "tools" / "trtllm_checkpoint.py"
SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_size": 2,
    "vocab_size": 32,
    "use_parallel_embedding": True,
}
BYTES = {"F8_E4M3": 1, "F16": 2, "BF16": 2, "F32": 4}
Tensors = dict[str, tuple[str, list[int], bytes]]


def _tensor(dtype: str, *shape: int, value: bytes = b"") -> tuple[str, list[int], bytes]:
    count = 1
    for size in shape:
        count *= size
    return dtype, list(shape), (value or b"\1" * BYTES[dtype]) * count


def _scale(value: float) -> tuple[str, list[int], bytes]:
    return _tensor("F32", 1, value=struct.pack("<f", value))


def _rank() -> Tensors:
    """One rank of tp2 pp1 in fp8."""
    linear = {"attention.qkv": (8, 8), "attention.dense": (8, 4), "mlp.fc": (8, 8), "mlp.proj": (8, 8)}
    found: Tensors = {
        "transformer.vocab_embedding.weight": _tensor("F16", 16, 8),
        "lm_head.weight": _tensor("F16", 16, 8),
    }
    for layer in range(2):
        for name, shape in linear.items():
            found[f"transformer.layers.{layer}.{name}.weight"] = _tensor("F8_E4M3", *shape)
            for kind in ("weights", "activation"):
                found[f"transformer.layers.{layer}.{name}.{kind}_scaling_factor"] = _scale(0.5)
        found[f"transformer.layers.{layer}.attention.kv_cache_scaling_factor"] = _scale(1.0)
    return found


def _write(path: Path, tensors: Tensors) -> None:
    header, data = {}, b""
    for name, (dtype, shape, values) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A whole fp8 checkpoint for tp2."""
    _configure(tmp_path)
    for rank in range(2):
        _write(tmp_path / f"rank{rank}.safetensors", _rank())
    return tmp_path


def _configure(folder: Path, **more: Any) -> None:
    config = {
        **SIZES,
        "mapping": {"world_size": 2, "tp_size": 2, "pp_size": 1},
        "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"},
        **more,
    }
    (folder / "config.json").write_text(json.dumps(config))


def _verify(folder: Path, *more: str, command: tuple[str, ...] = ("true",)) -> subprocess.CompletedProcess[str]:
    wanted = ("--precision=fp8", "--kv-cache-dtype=fp8", "--tp-size=2", "--pp-size=1", f"--out={folder}", *more)
    argv = [sys.executable, "-I", str(TOOL), *wanted, "--", *command]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=300)


def test_a_whole_checkpoint_is_verified(checkpoint: Path) -> None:
    done = _verify(checkpoint)
    assert (done.returncode, done.stdout, done.stderr) == (0, "verified: 2 ranks, shapes and scales\n", "")


def test_the_commands_exit_code_is_ours(checkpoint: Path) -> None:
    done = _verify(checkpoint, command=("sh", "-c", "echo heard; exit 7"))
    assert (done.returncode, done.stdout) == (7, "heard\n")
    assert _verify(checkpoint, command=("sh", "-c", "kill -9 $$")).returncode == 137


def test_every_violation_is_named_at_once(checkpoint: Path) -> None:
    (checkpoint / "rank1.safetensors").unlink()
    _write(checkpoint / "rank2.safetensors", _rank())
    quantization = {"quant_algo": "W8A8_SQ_PER_CHANNEL", "kv_cache_quant_algo": None}
    _configure(checkpoint, mapping={"world_size": 3, "tp_size": 3, "pp_size": 1}, quantization=quantization)
    assert _verify(checkpoint).stderr == (
        "error: the checkpoint is not what was asked for\n"
        "    mapping.tp_size is 3, not 2\n"
        "    mapping.world_size is 3, not 2\n"
        "    quant_algo is W8A8_SQ_PER_CHANNEL, not FP8\n"
        "    kv_cache_quant_algo is None, not FP8\n"
        "    rank1.safetensors is missing\n"
        "    rank2.safetensors is one too many\n"
    )


QKV = "transformer.layers.1.attention.qkv"


@pytest.mark.parametrize(
    ("name", "tensor", "said"),
    [
        (f"{QKV}.weight", _tensor("F8_E4M3", 16, 8), f"{QKV}.weight is [16, 8], not [8, 8]"),
        (f"{QKV}.weight", _tensor("F16", 8, 8), f"{QKV}.weight is F16, not F8_E4M3"),
        ("lm_head.weight", _tensor("F16", 8, 8), "lm_head.weight is [8, 8], not [16, 8]"),
        (f"{QKV}.weight", None, f"{QKV}.weight is missing"),
        (f"{QKV}.activation_scaling_factor", None, f"{QKV}.activation_scaling_factor is missing"),
        ("transformer.layers.0.attention.kv_cache_scaling_factor", None, "kv_cache_scaling_factor is missing"),
        (f"{QKV}.weights_scaling_factor", _scale(float("nan")), "not finite and positive, such as nan"),
        (f"{QKV}.weights_scaling_factor", _scale(float("inf")), "not finite and positive, such as inf"),
        (f"{QKV}.weights_scaling_factor", _scale(0.0), "not finite and positive, such as 0.0"),
        (f"{QKV}.prequant_scaling_factor", _tensor("F16", 2, value=b"\0\x7c"), "2 of its values not finite"),
        (f"{QKV}.prequant_scaling_factor", _tensor("BF16", 2, value=b"\x80\x7f"), "2 of its values not finite"),
    ],
)
def test_one_wrong_tensor_is_found(checkpoint: Path, name: str, tensor: Any, said: str) -> None:
    tensors = _rank()
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor
    _write(checkpoint / "rank1.safetensors", tensors)
    done = _verify(checkpoint)
    assert done.returncode == 1
    assert "    rank1.safetensors: " in done.stderr
    assert said in done.stderr
    assert "rank0" not in done.stderr


def test_a_mistake_in_every_layer_is_told_three_times_and_counted(checkpoint: Path) -> None:
    tensors = {name: it for name, it in _rank().items() if not name.endswith("scaling_factor")}
    _write(checkpoint / "rank0.safetensors", tensors)
    said = _verify(checkpoint).stderr
    assert said.count("is missing") == 3
    assert "rank0.safetensors: ... and 15 more like these\n" in said


def test_a_file_that_is_cut_off_is_found(checkpoint: Path) -> None:
    path = checkpoint / "rank0.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert "rank0.safetensors has" in _verify(checkpoint).stderr
    path.write_bytes(b"\xff" * 7)
    assert "rank0.safetensors cannot be read" in _verify(checkpoint).stderr


def test_a_padded_vocabulary_and_copied_kv_heads_are_right(checkpoint: Path) -> None:
    _configure(checkpoint, vocab_size=31, num_key_value_heads=2)
    assert _verify(checkpoint).returncode == 0


def test_no_config_is_an_error_and_no_traceback(tmp_path: Path) -> None:
    done = _verify(tmp_path)
    assert done.returncode == 1
    assert "config.json cannot be read" in done.stderr
    assert "Traceback" not in done.stderr
