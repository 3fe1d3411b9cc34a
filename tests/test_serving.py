"""From a wish to servers that listen: engines read, GPUs chosen and held, images asked, stand-ins started."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rules import gpu, workspace
from rules.commands.serve import shown
from rules.commands.stop import stop_all
from rules.errors import BuildError, Misconfigured
from rules.gpu import Gpus
from rules.serving import Wish, launch_argv, servers, unwise
from rules.workspace import Workspace
from tests.lane import toml
from tests.serving import free, until
from tests.standins import docker, triton
from tests.test_built import engine

IMAGE = "nvcr.io/nvidia/tritonserver:24.07-trtllm-python-py3"
SHAPES = "[{ batch = 8, isl = 2048, osl = 1024 }, { batch = 4, isl = 2048, osl = 1024 }]"
CONFIG = """name: "{model}" backend: "python"
parameters {{ key: "tokenizer_dir" value {{ string_value: "/repository/{model}/1/tokenizer" }} }}
parameters {{ key: "gpt_model_path" value {{ string_value: "/repository/tensorrt_llm/1/engine" }} }}
parameters {{ key: "tensorrt_llm_model_name" value {{ string_value: "tensorrt_llm" }} }}
parameters {{ key: "gpu_device_ids" value {{ string_value: "" }} }}
"""
MODELS = ("preprocessing", "tensorrt_llm", "postprocessing", "ensemble", "tensorrt_llm_bls")


class Host:
    """A machine with four H100 and the release's image, as far as stand-ins go."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.standins = folder, folder / "engine"
        docker.install(self.standins, {IMAGE: {"tensorrt_llm": "0.11.0"}})
        triton.install(self.standins, self.standins / "bin", gpus=4)
        shutil.copy(self.standins / "bin" / "nvidia-smi", self.standins / "path")

    def space(self, tp: int = 2, version: str = "0.11.0", serve: str = "") -> Workspace:
        """Two variants that are built."""
        root = self.folder / "space"
        root.mkdir()
        text = toml(runner="docker", parallelism=f'["tp{tp}"]', shapes=SHAPES)
        (root / "models.toml").write_text(f"[serve]\n{serve}\n{text}")
        space = workspace.load(root)
        for variant in space.plan.variants:
            folder = space.executor.artifacts.folder(f"build:{variant}")
            for model in MODELS:
                (folder / model).mkdir(parents=True)
                (folder / model / "config.pbtxt").write_text(CONFIG.format(model=model))
            engine(folder / "tensorrt_llm" / "1" / "engine", tp=tp, version=version)
        return space


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    made = Host(tmp_path)
    monkeypatch.setenv("PATH", f"{made.standins / 'path'}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    gpu.machine.cache_clear()
    yield made
    gpu.machine().let_go()
    gpu.machine.cache_clear()


def told(space: Workspace, **wish: object) -> list[str]:
    with pytest.raises(BuildError) as problems:
        servers(space, list(space.plan.variants.values()), Wish(**wish), space.root / "1")  # type: ignore[arg-type]
    return [str(problem) for problem in problems.value.problems]


def test_two_variants_are_two_servers_in_containers_that_answer_until_they_are_stopped(host: Host) -> None:
    space = host.space()
    first = free()
    ports = (first[0], 0, 0)
    made = servers(space, list(space.plan.variants.values()), Wish(ports=ports), space.root / "server" / "1")
    assert [server.devices for server in made] == [["0", "1"], ["2", "3"]]
    assert made[1].ports[0] == first[0] + 3
    assert Gpus(("0", "1", "2", "3"), Path(tempfile.gettempdir()) / "doit-engines-gpus").idle() == ()
    out = host.folder / "out"
    with out.open("wb") as output:
        running = subprocess.Popen(launch_argv(made, space.root / "server" / "1", 60), stdout=output, stderr=output)
    state = space.root / "server" / "1.json"
    assert until(lambda: state.exists() or running.poll() is not None)
    assert state.exists(), out.read_text()
    ranks = [json.loads(line) for line in (host.standins / "ranks.jsonl").read_text().splitlines()]
    assert sorted((one["rank"], one["gpus"]) for one in ranks) == [(0, "0,1"), (0, "2,3"), (1, "0,1"), (1, "2,3")]
    lines, stopped = stop_all(state.parent)
    assert stopped, lines
    assert ", ".join(space.plan.variants) in lines[0]
    assert running.wait(60) == 0
    assert not list((host.standins / "containers").iterdir())
    assert sorted(path.name for path in state.parent.iterdir()) == ["1.0.log", "1.1.log"], "logs alone are left"


def test_an_orchestrator_serves_all_variants_under_names_of_their_own(
    host: Host, request: pytest.FixtureRequest
) -> None:
    space = host.space()
    names = list(space.plan.variants)
    wish = Wish(ports=(0, 0, 0), mode="orchestrator", gpus=(("0", "1"), ("2", "3")))
    made = servers(space, list(space.plan.variants.values()), wish, space.root / "server" / "1")
    out = host.folder / "out"
    with out.open("wb") as output:
        running = subprocess.Popen(launch_argv(made, space.root / "server" / "1", 60), stdout=output, stderr=output)
    request.addfinalizer(running.kill)  # its janitor ends the rest
    state = space.root / "server" / "1.json"
    told = f"/v2/models/ensemble__{names[0]}/generate"
    assert until(lambda: told in out.read_text() or running.poll() is not None)
    assert told in out.read_text()
    assert state.exists(), out.read_text()
    laid = space.root / "server" / "1.0" / "repository"
    config = (laid / f"tensorrt_llm__{names[1]}" / "config.pbtxt").read_text()
    assert f'"/repository/tensorrt_llm__{names[1]}/1/engine"' in config
    assert 'string_value: "2,3"' in config
    assert f'"tensorrt_llm__{names[1]}"' in (laid / f"tensorrt_llm_bls__{names[1]}" / "config.pbtxt").read_text()
    rank = f"tensorrt_llm__{names[1]}/1/engine/rank0.engine"
    assert (laid / rank).stat().st_nlink == 2, "the artifact itself"
    (one,) = [json.loads(line) for line in (host.standins / "ranks.jsonl").read_text().splitlines()]
    assert one["orchestrator"] == "1"
    stop_all(state.parent)
    assert running.wait(60) == 0
    assert not laid.exists()


def test_engine_image_and_gpus_that_do_not_match_are_refused(host: Host) -> None:
    space = host.space(version="0.10.0")
    images = json.loads((host.standins / "images.json").read_text())
    images[IMAGE]["packages"]["tensorrt_llm"] = "0.12.0"
    (host.standins / "images.json").write_text(json.dumps(images))
    texts = told(space)
    assert [text.splitlines()[0].partition(": ")[2] for text in texts[::2]] == ["the engine is of another release"] * 2
    assert texts[1].startswith("tensorrt_llm in the image is not the version that the key declares")


def test_an_engine_of_another_architecture_is_refused(host: Host) -> None:
    triton.install(host.standins, host.standins / "bin", gpus=4, sm="8.0")
    assert told(host.space())[0].split(": ")[1].startswith("the engine is for another GPU")


def test_a_machine_without_gpus_is_refused_in_words(host: Host) -> None:
    triton.install(host.standins, host.standins / "bin", gpus=0)
    assert told(host.space())[0].startswith("4 GPUs are needed, 0 are free")


def test_an_engine_of_more_ranks_than_there_are_gpus_is_for_a_cluster(host: Host) -> None:
    (first, second) = told(host.space(tp=8))
    name = "m_tp8_fp16_isl2048_osl1024_bs8"
    assert first.startswith(f"{name}: 8 ranks are more than the 4 GPUs of this machine")
    assert f"doit k8s:{name} writes" in first
    assert "bs4" in second


def test_an_engine_that_lost_a_rank_is_not_served(host: Host) -> None:
    space = host.space()
    next(space.root.rglob("rank1.engine")).unlink()
    assert told(space)[0].startswith("rank1.engine is missing or empty")


def test_gpus_that_another_doit_uses_are_not_taken(host: Host) -> None:
    space, other = host.space(tp=1), Gpus(("0", "1", "2", "3"), Path(tempfile.gettempdir()) / "doit-engines-gpus")
    other.hold(["0", "2"])
    try:
        made = servers(space, list(space.plan.variants.values()), Wish(), space.root / "1")
        assert [server.devices for server in made] == [["1"], ["3"]]
        assert told(space, gpus=(("0",), ("2",)))[0].startswith("GPU 0 is in use by another doit")
    finally:
        other.let_go()


def test_several_instances_of_a_variant_have_gpus_and_ports_of_their_own(host: Host) -> None:
    space = host.space(tp=1)
    (variant, _) = space.plan.variants.values()
    made = servers(space, [variant], Wish(instances=4), space.root / "1")
    assert [server.devices for server in made] == [["0"], ["1"], ["2"], ["3"]]
    assert [server.ports for server in made][:2] == [(8000, 8001, 8002), (8003, 8004, 8005)]
    assert made[1].name == f"{variant.name}#1"
    assert "--one-by-one" not in launch_argv(made, space.root / "1", 60)


def test_gpus_may_be_said_in_models_toml_for_a_variant_or_a_group(host: Host) -> None:
    """One variant has two servers there, the other takes what is left; the command line goes over it."""
    space = host.space(tp=1, serve='gpus = { m_fp16_isl2048_osl1024_bs4 = ["0", "3"] }')
    variants = list(space.plan.variants.values())
    made = servers(space, variants, Wish(), space.root / "1")
    assert [(server.name[:29], server.devices) for server in made] == [
        ("m_fp16_isl2048_osl1024_bs8", ["1"]),
        ("m_fp16_isl2048_osl1024_bs4", ["0"]),
        ("m_fp16_isl2048_osl1024_bs4#1", ["3"]),
    ]
    shown = servers(space, variants, Wish(real=False), space.root / "1")
    assert [server.devices for server in shown] == [["1"], ["0"], ["3"]]
    shown = servers(space, variants, Wish(real=False, gpus=(("5",), ("6",))), space.root / "1")
    assert [server.devices for server in shown] == [["5"], ["6"]]


def test_a_group_says_it_for_its_variants_unless_they_say_it_themselves(host: Host) -> None:
    space = host.space(serve='gpus = { m = ["2,3"], m_tp2_fp16_isl2048_osl1024_bs8 = ["0,1"] }')
    made = servers(space, list(space.plan.variants.values()), Wish(real=False), space.root / "1")
    assert [server.devices for server in made] == [["0", "1"], ["2", "3"]]


def test_only_shown_nothing_needs_to_be_built_or_there(host: Host) -> None:
    (host.standins / "path" / "docker").unlink()
    space = host.space()
    shutil.rmtree(space.executor.artifacts.root)
    made = servers(space, list(space.plan.variants.values()), Wish(real=False), space.root / "1")
    assert [server.devices for server in made] == [["0", "1"], ["2", "3"]]
    assert shown(made[0]).count("-n 1 /opt/tritonserver/bin/tritonserver") == 2
    with pytest.raises(Misconfigured, match="1 lists of GPUs for 2 servers"):
        servers(space, list(space.plan.variants.values()), Wish(real=False, gpus=(("0",),)), space.root / "1")


def test_an_orchestrator_has_engines_of_one_toolchain_and_a_release_that_has_it(host: Host) -> None:
    assert told(host.space(), mode="orchestrator", instances=2)[0].startswith("an orchestrator is one server")


def test_a_release_without_orchestrator_mode_is_named(host: Host) -> None:
    root = host.folder / "old"
    root.mkdir()
    llama = {"source": '"hf:meta-llama/Llama-2-7b-chat-hf"', "build": '{ quantizer = "upstream" }'}
    (root / "models.toml").write_text(toml("0.8.0", "docker", 90, "", **llama))
    space = workspace.load(root)
    assert told(space, mode="orchestrator", real=False)[0].startswith("release 0.8.0 has no orchestrator mode")


def test_a_small_shm_is_told_of_where_no_container_has_its_own(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    space = host.space()
    made = servers(space, list(space.plan.variants.values()), Wish(real=False), space.root / "1")
    monkeypatch.setattr("rules.serving._SHM_PER_RANK", 1 << 60)
    assert unwise(made) == []
    (space.root / "models.toml").write_text(toml(runner="local", parallelism='["tp2"]', shapes=SHAPES))
    workspace.load.cache_clear()
    local = workspace.load(space.root)
    (problem,) = unwise(servers(local, list(local.plan.variants.values()), Wish(real=False), space.root / "1"))
    assert "ranks  4" in str(problem)
