"""Real TensorRT-LLM checkpoints from NVIDIA ModelOpt on a CPU, verified, and refusals that name every reason."""

from __future__ import annotations

import argparse
import json
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.fakes import PROJECT
from tests.made import Made, Run

ROWS = 4


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibration set: six rows, of which one is empty."""
    path = tmp_path_factory.mktemp("calibration") / "train.jsonl"
    said = ["the river is long", "  ", "a town by the sea", "where is it?", "the third answer", "模型 🙂"]
    path.write_text("".join(json.dumps({"text": text, "id": n}) + "\n" for n, text in enumerate(said)), "utf-8")
    return path


@pytest.fixture(scope="session")
def quantized(make: Made, source: Made, texts: Path) -> Made:
    """`quantized(architecture, precision, tp, pp, kv)` is a checkpoint."""

    def made(architecture: str, precision: str, tp: int = 1, pp: int = 1, kv: str = "auto") -> Path:
        return make("modelopt_quantize", *_arguments(source(architecture), texts, precision, tp, pp, kv))

    return made


def _arguments(
    source: Path, texts: Path, precision: str, tp: int = 1, pp: int = 1, kv: str = "auto"
) -> tuple[object, ...]:
    dtype = "bfloat16" if precision == "bf16" else "float16"
    split = (f"--tp-size={tp}", f"--pp-size={pp}", f"--kv-cache-dtype={kv}", f"--precision={precision}")
    calibration = (f"--tokenizer={source}", f"--calibration={texts}", f"--calibration-size={ROWS}")
    return (f"--source={source}", f"--dtype={dtype}", "--release=0.11.0", *split, *calibration)


def _config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "precision", "tp", "pp", "kv", "algorithm"),
    [
        ("qwen2", "fp8", 4, 2, "fp8", "FP8"),
        ("qwen2", "int8_wo", 4, 1, "auto", "W8A16"),
        ("llama", "int8_sq", 1, 1, "auto", "W8A8_SQ_PER_CHANNEL"),
        ("llama", "int4_awq", 1, 1, "int8", "W4A16_AWQ"),
        ("llama", "fp16", 2, 1, "fp8", None),
        ("gpt2", "bf16", 2, 2, "auto", None),
    ],
)
def test_a_checkpoint_is_what_was_asked_for(
    run_tool: Run, quantized: Made, architecture: str, precision: str, tp: int, pp: int, kv: str, algorithm: str | None
) -> None:
    folder = quantized(architecture, precision, tp, pp, kv)
    names = {"config.json", "summary.txt", *(f"rank{rank}.safetensors" for rank in range(tp * pp))}
    assert {path.name for path in folder.iterdir()} == names
    assert _config(folder)["quantization"]["quant_algo"] == algorithm
    wanted = (f"--precision={precision}", f"--kv-cache-dtype={kv}", f"--tp-size={tp}", f"--pp-size={pp}")
    verified = run_tool("trtllm_checkpoint", *wanted, f"--out={folder}", "--", "true")
    assert (verified.returncode, verified.stderr) == (0, "")


@pytest.mark.slow
def test_fp8_halves_the_linear_weights_and_scales_are_measured(quantized: Made) -> None:
    from safetensors import safe_open

    largest = []
    for rank in range(4):  # of the first stage: tp 4
        with safe_open(quantized("qwen2", "fp8", 4, 2, "fp8") / f"rank{rank}.safetensors", "pt") as file:
            scale = file.get_tensor("transformer.layers.0.attention.qkv.activation_scaling_factor")
            weight = file.get_tensor("transformer.layers.0.attention.qkv.weight")
        assert 0 < scale.item() < 1
        assert weight.element_size() == 1
        largest.append(weight.float().abs().max().item())
    assert max(largest) == pytest.approx(448, rel=0.1), "the largest weight is fp8's largest number"


@pytest.mark.slow
def test_only_the_kv_cache_is_quantized_when_only_that_was_asked_for(quantized: Made) -> None:
    """ModelOpt's default quantizes every layer to int8 here, and calls it SmoothQuant."""
    from safetensors import safe_open

    folder = quantized("llama", "fp16", 2, 1, "fp8")
    assert _config(folder)["quantization"] == {"quant_algo": None, "kv_cache_quant_algo": "FP8"}
    with safe_open(folder / "rank0.safetensors", "pt") as file:
        assert {str(file.get_tensor(name).dtype) for name in file.keys() if name.endswith(".weight")} == {  # noqa: SIM118
            "torch.float16"
        }
        assert not [name for name in file.keys() if "weights_scaling" in name]  # noqa: SIM118


@pytest.mark.slow
def test_what_modelopt_leaves_out_of_config_json_is_there(quantized: Made, source: Made) -> None:
    qwen, gpt = _config(quantized("qwen2", "fp8", 4, 2, "fp8")), _config(quantized("gpt2", "bf16", 2, 2))
    assert qwen["rotary_base"] == _config(source("qwen2"))["rope_parameters"]["rope_theta"]
    assert (qwen["qwen_type"], qwen["architecture"]) == ("qwen2", "Qwen2ForCausalLM")
    assert qwen["quantization"]["exclude_modules"] == ["lm_head"]
    sizes = {"world_size": 8, "tp_size": 4, "pp_size": 2, "gpus_per_node": 8, "moe_tp_size": 4, "moe_ep_size": 1}
    assert qwen["mapping"] == sizes
    assert (gpt["architecture"], gpt["position_embedding_type"]) == ("GPTForCausalLM", "learned_absolute")


@pytest.mark.slow
def test_another_rotary_base_and_scaling_reach_the_checkpoint(
    make: Made, source: Made, texts: Path, tmp_path: Path
) -> None:
    """Written as Hugging Face wrote them before transformers 5, which is how real models are."""
    folder = tmp_path / "long"
    shutil.copytree(source("llama"), folder)
    config = _config(folder)
    del config["rope_parameters"]
    scaling = {"rope_type": "linear", "factor": 2.0}
    (folder / "config.json").write_text(json.dumps({**config, "rope_theta": 1e6, "rope_scaling": scaling}))
    written = _config(make("modelopt_quantize", *_arguments(folder, texts, "fp16")))
    assert written["rotary_base"] == 1e6
    assert written["rotary_scaling"] == {"rope_type": "linear", "type": "linear", "factor": 2.0}


@pytest.mark.slow
def test_equal_inputs_make_equal_bytes(run_tool: Run, quantized: Made, source: Made, texts: Path, out: Path) -> None:
    done = run_tool("modelopt_quantize", *_arguments(source("qwen2"), texts, "fp8", 4, 2, "fp8"), f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert f"{ROWS} calibration texts, " in done.stdout
    first = quantized("qwen2", "fp8", 4, 2, "fp8")
    assert {p.name: p.read_bytes() for p in first.iterdir()} == {p.name: p.read_bytes() for p in out.iterdir()}


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A source as far as refusals look at it."""
    sizes = {"num_attention_heads": 12, "num_key_value_heads": 3, "hidden_size": 384, "intermediate_size": 512}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2", "num_hidden_layers": 3, **sizes}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    return tmp_path


def test_all_that_cannot_be_is_told_at_once_and_before_any_work(run_tool: Run, bare: Path, out: Path) -> None:
    split = ("--tp-size=8", "--pp-size=2", "--precision=int4_awq", "--kv-cache-dtype=auto", "--dtype=float16")
    done = run_tool("modelopt_quantize", f"--source={bare}", *split, "--release=0.10.0", f"--out={out}")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        "error: the checkpoint cannot be made",
        "    12 attention heads cannot be split over tp 8",
        "    3 KV heads do not fit tp 8",
        "    3 layers cannot be split over pp 2",
        "    int4_awq: 384 columns over tp 8 are no whole blocks of 128",
        "    int4_awq: 512 columns over tp 8 are no whole blocks of 128",
        "    int4_awq needs scales that are measured on texts: give --tokenizer and --calibration",
        "    hint: another precision, tp or pp, or a smaller block",
    ]


def test_int8_sq_is_refused_where_modelopt_cannot_copy_kv_heads(
    run_tool: Run, bare: Path, texts: Path, out: Path
) -> None:
    done = run_tool("modelopt_quantize", *_arguments(bare, texts, "int8_sq", 6), f"--out={out}")
    assert "int8_sq cannot copy 3 KV heads to tp 6" in done.stderr


def test_a_model_that_is_not_known_is_refused(run_tool: Run, bare: Path, texts: Path, out: Path) -> None:
    (bare / "config.json").write_text('{"model_type": "mamba"}')
    done = run_tool("modelopt_quantize", *_arguments(bare, texts, "fp16"), f"--out={out}")
    assert (done.returncode, "known  qwen2, llama, mistral, gpt2" in done.stderr) == (1, True)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            '{"prompt": "a", "answer": "b"}\n',
            "    column     text\n    there are  answer, prompt\n    row        1 of c.jsonl",
        ),
        ('{"text": "a"}\nnot json\n', "a line of the calibration data is no JSON object\n    line  2 of c.jsonl"),
        ('{"text": ["a"]}\n', "the calibration column holds no text\n    row    1 of c.jsonl"),
        ('{"text": "a"}\n{"text": ""}\n', "    asked for  4\n    there are  1\n"),
    ],
)
def test_calibration_data_that_cannot_be_used_is_refused(
    run_tool: Run, bare: Path, out: Path, content: str, said: str
) -> None:
    path = bare / "c.jsonl"
    path.write_text(content)
    done = run_tool("modelopt_quantize", *_arguments(bare, path, "fp8"), f"--out={out}")
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr


def test_a_folder_without_texts_is_refused(run_tool: Run, bare: Path, out: Path) -> None:
    done = run_tool("modelopt_quantize", *_arguments(bare, out, "fp8"), f"--out={out}")
    assert "the calibration folder holds no .jsonl and no .parquet file" in done.stderr


PARQUET = Path(__file__).parents[1] / "golden" / "parquet"  # by pyarrow 26: snappy, a dictionary, two row groups


def _read(path: Path, **more: object) -> list[str]:
    """The texts that would be measured on, without the quarter of a minute that torch takes to import."""
    tool = runpy.run_path(str(PROJECT / "rules" / "tools" / "modelopt_quantize.py"))
    given = {"calibration": path, "calibration_column": "text", "calibration_size": 5, **more}
    texts: list[str] = tool["calibration_texts"](argparse.Namespace(**given))
    return texts


def test_parquet_is_read_as_jsonl_is(texts: Path) -> None:
    """requirements.md row 29: a folder of parquet files, of which the train split's first rows are taken."""
    pytest.importorskip("arro3.io")
    assert _read(PARQUET) == _read(texts)


def test_a_parquet_file_that_was_cut_off_or_lacks_the_column_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("arro3.io")
    whole = next(PARQUET.glob("train*"))
    (tmp_path / "cut.parquet").write_bytes(whole.read_bytes()[:-1])
    with pytest.raises(Exception, match="this is no whole parquet file"):
        _read(tmp_path / "cut.parquet")
    with pytest.raises(Exception, match=r"no such column\n    column     article\n    there are  id, text\n"):
        _read(whole, calibration_column="article")


def test_parquet_without_its_reader_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "arro3.io", None)
    with pytest.raises(Exception, match=r"arro3-io is not installed\n.*\n    hint: ./doitw installs it; or write"):
        _read(PARQUET)


def _tool() -> dict[str, Any]:
    return runpy.run_path(str(PROJECT / "rules" / "tools" / "modelopt_quantize.py"))


def test_texts_of_one_length_are_measured_side_by_side_and_none_is_padded() -> None:
    """AWQ rounds every weight eleven times a step: on an H200 a text a step took 2 s, whatever the GPU could do."""
    tool = _tool()
    tokens = [[1] * 512] * 40 + [[2] * 3, [3] * 512, [4] * 20000]
    made = list(tool["batches"](tokens))
    assert [(len(texts), len(texts[0])) for texts in made] == [(1, 3), (16, 512), (16, 512), (9, 512), (1, 20000)]
    assert sorted(text for texts in made for text in texts) == sorted(tokens)


@pytest.mark.parametrize(
    ("seen", "built", "held", "said"),
    [
        (["NVIDIA H200"], "13.0", "0", "NVIDIA H200 (PyTorch 2.13.0)"),
        ([], None, "", "the CPU, 2 threads (PyTorch 2.13.0)"),
        ([], None, "0", "a GPU is held for this, and this PyTorch does not see it, since it is a CPU build"),
        ([], "13.0", "0", "a GPU is held for this, and this PyTorch does not see it, since it finds no CUDA driver"),
    ],
)
def test_where_it_runs_is_told_and_why_not_on_the_gpu_that_is_held(
    monkeypatch: pytest.MonkeyPatch, seen: list[str], built: str | None, held: str, said: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", held)
    cuda = SimpleNamespace(
        is_available=lambda: bool(seen), device_count=lambda: len(seen), get_device_name=seen.__getitem__
    )
    version = SimpleNamespace(cuda=built)
    torch = SimpleNamespace(cuda=cuda, version=version, __version__="2.13.0", get_num_threads=lambda: 2)
    assert said in _tool()["device"](torch)
