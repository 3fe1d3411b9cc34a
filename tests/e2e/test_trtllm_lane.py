"""The TensorRT-LLM lane end to end: real ModelOpt, the real chain, and stand-ins for docker and trtllm-build alone."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from tests.fakes import site
from tests.made import Made
from tests.space import Space
from tests.standins import docker, trtllm_build

pytestmark = [pytest.mark.slow]
IMAGE = "nvcr.io/nvidia/tritonserver:24.06-trtllm-python-py3"
MODELS = f"""
[toolchains.t]
backend = "trtllm"
release = "0.10.0"
runner = "docker"
image = "{IMAGE}"

[platforms.h20]
sm = 90
memory_gib = 96
gpus = 8

[models.tiny]
source = "file:llama"
toolchain = "t"
platform = "h20"
precisions = ["fp8"]
parallelism = ["tp4pp2"]
shapes = [{{ batch = 8, isl = 128, osl = 64 }}, {{ batch = 4, isl = 128, osl = 64 }}]
calibration = {{ data = "file:texts.jsonl", size = 2 }}
"""
CHECKPOINT = "tiny_tp4pp2_fp8"
FIVE = {"preprocessing", "tensorrt_llm", "postprocessing", "ensemble", "tensorrt_llm_bls"}
EIGHT = f"{CHECKPOINT}_isl128_osl64_bs8"


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory, source: Made) -> Path:
    """A project folder in which doit runs with this repository's own tools, as a wheel has them, and the checkpoint."""
    folder = tmp_path_factory.mktemp("quantized")
    (folder / "space").mkdir()
    made = Space(folder / "space", site(folder / "site", real_tools=True))
    shutil.copytree(source("llama"), made.root / "llama")
    made.write("models.toml", MODELS)
    made.write("texts.jsonl", '{"text": "the river is long"}\n{"text": "where is the sea?"}\n')
    assert f"checkpoint:{CHECKPOINT}  made" in made.build("checkpoint:tiny")
    return folder


@pytest.fixture
def space(tmp_path: Path, quantized: Path) -> Space:
    """A copy of it."""
    copied = Space(Path(shutil.copytree(quantized / "space", tmp_path / "space")), quantized / "site")
    copied.write("models.toml", MODELS)
    return copied


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """The stand-in's folder, with the release's image."""
    folder = tmp_path / "engine"
    docker.install(folder, {IMAGE: {"tensorrt_llm": "0.10.0"}})
    trtllm_build.install(folder / "bin", "0.10.0")
    return folder


def test_two_shapes_of_eight_ranks_share_one_checkpoint_and_a_failing_rank_spoils_nothing(
    space: Space, engine: Path
) -> None:
    env = {"PATH": f"{engine / 'path'}:{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}
    (engine / "fails").write_text("rank5")
    failed = space.run("build:tiny", **env)
    assert failed.rc == 1, failed.out + failed.err
    assert "Failed to build the engine of rank 5" in failed.out + failed.err
    (engine / "fails").write_text("killed")
    killed = space.run(f"engine:{EIGHT}", **env)
    assert "trtllm-build ran out of host memory (signal 9)" in killed.out + killed.err
    assert re.search(r"host memory +\d+\.\d GiB\n +lowest free +\d+\.\d GiB available", killed.out + killed.err)
    assert "checkpoint:" not in killed.out, "the one of the time before"

    (engine / "fails").unlink()
    built = space.run("build:tiny", **env)
    assert built.rc == 0, built.out + built.err
    assert "checkpoint:" not in built.out
    folder = space.root / "artifacts" / "engine" / EIGHT
    assert len(list(folder.glob("rank*.engine"))) == 8
    _whole(space.root / "artifacts")
    config = json.loads((folder / "config.json").read_text())
    assert (config["version"], config["build_config"]["max_batch_size"]) == ("0.10.0", 8)
    assert config["pretrained_config"]["quantization"]["quant_algo"] == "FP8"
    assert not list((engine / "containers").iterdir())
    logs = [path.read_text() for path in (space.root / "artifacts" / "logs" / "engine").glob("*.log")]
    assert sorted(text.partition(" timings loaded")[0][-1] for text in logs) == ["0", "1"], "the second is the quicker"
    assert "warm     trtllm-0.10.0-sm90, " in space.run("cache", "status").out

    calls = (engine / "calls.jsonl").read_text().count("\n")
    again = space.run("build:tiny", **env)
    assert "everything is up to date" in again.out
    assert (engine / "calls.jsonl").read_text().count("\n") == calls, "docker is not even asked"


def _whole(artifacts: Path) -> None:
    """A real checkpoint of eight ranks, and a repository with the engine and the tokenizer in it."""
    checkpoint, repository = artifacts / "checkpoint" / CHECKPOINT, artifacts / "build" / EIGHT
    assert len(list(checkpoint.glob("rank*.safetensors"))) == 8
    assert json.loads((checkpoint / "config.json").read_text())["producer"]["name"] == "modelopt"
    assert len(list(repository.glob("tensorrt_llm/1/engine/rank*.engine"))) == 8
    assert {path.parent.name for path in repository.glob("*/config.pbtxt")} == FIVE
    assert list(repository.glob("preprocessing/1/tokenizer/tokenizer.json"))


def test_an_image_of_another_release_builds_nothing(space: Space, engine: Path) -> None:
    docker.install(engine / "other", {IMAGE: {"tensorrt_llm": "0.11.0"}})
    env = {"PATH": f"{engine / 'other' / 'path'}:{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}
    refused = space.run(f"engine:{EIGHT}", **env)
    assert refused.rc == 1
    assert "tensorrt_llm in the image is not the version that the key declares" in refused.out + refused.err
