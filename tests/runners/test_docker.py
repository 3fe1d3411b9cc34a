"""Commands in containers: the line that is shown is the line that runs, and nothing of it is left behind."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from rules.action import Action, Files
from rules.errors import StepFailed
from rules.executor import Executor
from rules.gpu import Gpus
from rules.runners import docker
from tests.fakes import PROJECT
from tests.lab import Lab
from tests.serving import alive, until
from tests.standins import docker as standin

IMAGE = "nvcr.io/nvidia/tritonserver:24.06-trtllm-python-py3"
OTHER = "registry.local/serving@sha256:" + "0" * 64
CALL = docker.Call(
    program="docker",
    image=IMAGE,
    name="doit-0123",
    argv=["trtllm-build", "--checkpoint_dir=/in/checkpoint", "--output_dir=/out"],
    env={},
    reads=[("/in/checkpoint", "/data/checkpoint")],
    writes=[("/out", "/data/out"), ("/scratch", "/data/scratch")],
    devices=["4"],
    user="1000:1000",
)


def test_the_line_is_what_the_guides_type_without_their_mistakes() -> None:
    """requirements.md row 9: `docker run -dt --restart=always --gpus '"device=6"' --network=host --shm-size=32g -v`."""
    assert shlex.join(docker.line(CALL)) == (
        "docker run --rm --init --name=doit-0123 --gpus '\"device=4\"' --shm-size=32g --ulimit=memlock=-1 "
        "--ulimit=stack=67108864 --network=none --user=1000:1000 "
        "--mount=type=bind,source=/data/checkpoint,target=/in/checkpoint,readonly "
        "--mount=type=bind,source=/data/out,target=/out --mount=type=bind,source=/data/scratch,target=/scratch "
        "--workdir=/scratch --env=HOME=/scratch --env=TMPDIR=/scratch --env=USER=doit --env=LANG=C.UTF-8 "
        "--env=PYTHONUNBUFFERED=1 --env=HF_HUB_OFFLINE=1 --env=TRANSFORMERS_OFFLINE=1 "
        f"--env=TOKENIZERS_PARALLELISM=false {IMAGE} trtllm-build --checkpoint_dir=/in/checkpoint --output_dir=/out"
    )


@pytest.mark.parametrize(
    ("devices", "port", "typed"),
    [
        (["4"], 8200, "--gpus '\"device=4\"' --shm-size=32g"),  # requirements.md row 75
        (["1", "2"], 8400, "--gpus '\"device=1,2\"' --shm-size=32g"),  # row 76
    ],
)
def test_a_server_has_its_ports_and_gpus_as_in_the_guides(devices: list[str], port: int, typed: str) -> None:
    shown = shlex.join(docker.line(replace(CALL, devices=devices, ports=[(port, 8000)])))
    assert typed in shown
    assert f"--publish={port}:8000" in shown
    assert "--network" not in shown


def test_podman_has_its_own_words_for_gpus_and_users() -> None:
    shown = docker.line(replace(CALL, program="podman", devices=["0", "1"]))
    assert shown[0] == "podman"
    assert {"--device=nvidia.com/gpu=0", "--device=nvidia.com/gpu=1", "--userns=keep-id"} <= set(shown)
    assert "--gpus" not in shown


def test_no_gpu_is_asked_for_when_none_is_leased() -> None:
    assert "--gpus" not in docker.line(replace(CALL, devices=()))


class Box(Lab):
    """A lab whose actions run in the stand-in's containers."""

    engine = Path()

    @property
    def executor(self) -> Executor:
        made = super().executor
        return Executor(made.artifacts, self.cache, self.graph, lambda: Gpus(("3", "5"), self.root / "gpus"))

    def contained(self, code: str, runner: Literal["docker", "podman"] = "docker", **more: object) -> Action:
        fields: dict[str, object] = {"toolchain": (("image", IMAGE), ("tensorrt_llm", "0.10.0")), "runner": runner}
        return self.action("s:a", code, **{**fields, **more})

    def calls(self, verb: str = "run") -> list[list[str]]:
        """What docker was called with."""
        lines = (self.engine / "calls.jsonl").read_text("utf-8").splitlines()
        return [call for call in map(json.loads, lines) if call[0] == verb]

    def containers(self) -> list[str]:
        return [path.name for path in (self.engine / "containers").iterdir()]


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Box:
    images = {IMAGE: {"tensorrt_llm": "0.10.0", "tensorrt": "10.0.1"}, OTHER: {"tensorrt-llm": "0.17.0.post1"}}
    path = standin.install(tmp_path / "engine", images)
    monkeypatch.setenv("PATH", f"{path}:{os.environ['PATH']}")
    made = Box(tmp_path)
    made.engine = tmp_path / "engine"
    return made


OK = "(out / 'a').write_text(os.environ['HOME'])"


@pytest.mark.parametrize("runner", ["docker", "podman"])
def test_an_action_runs_in_a_container_and_its_outputs_are_kept(box: Box, runner: Literal["docker", "podman"]) -> None:
    made = box.contained(f"print('heard', flush=True); {OK}", runner)
    assert box.make(made) == ["ran"]
    assert box.heard == ["heard"]
    assert box.files("s:a")["a"].endswith(b"/scratch")
    assert box.containers() == []
    assert box.make(made) == ["fresh"]


def test_the_line_that_plan_shows_is_the_line_that_runs(box: Box) -> None:
    tool = box.root / "tool.txt"
    tool.write_text("text")
    code = "(out / 'a').write_text(places[0].read_text())"
    made = box.contained(code, gpus=2, env=(("MODE", "{tool}"),), warm="timings")
    made = box.graph["s:a"] = replace(
        made, argv=(*made.argv, "{tool}"), inputs=(("tool", Files(root=str(tool), members=(("", "0" * 64),))),)
    )
    key = box.made(made).key
    shown = box.executor.command_line(made, key)
    ran = ["docker", *box.calls()[-1]]
    assert [word for word in ran if not word.startswith(("--name", "--label", '"device'))] == [
        word for word in shown if not word.startswith(("--name", '"device'))
    ]
    assert '"device=3,5"' in ran, "the leased ones"
    assert f"--mount=type=bind,source={box.store.root}/warm/timings,target=/warm" in ran
    assert f"--mount=type=bind,source={tool},target=/in/tool.txt,readonly" in ran
    assert ran[-1] == "/in/tool.txt", "readers go by the suffix"
    assert "--env=MODE=/in/tool.txt" in ran
    assert not [word for word in ran if word.startswith("--env=CUDA_VISIBLE_DEVICES")], "inside they are 0 and 1"


def test_a_plan_of_what_has_no_inputs_yet_shows_their_names(box: Box) -> None:
    shown = box.executor.command_line(box.contained(OK), None)
    assert "--mount=type=bind,source={out},target=/out" in shown
    assert "--mount=type=bind,source={scratch},target=/scratch" in shown
    assert IMAGE in shown


def test_an_image_of_another_release_is_refused_before_anything_runs(box: Box) -> None:
    toolchain = (("image", IMAGE), ("tensorrt_llm", "0.11.0"), ("tensorrt", "10.0.1"), ("torch", "2.3"))
    with pytest.raises(StepFailed) as error:
        box.made(box.contained(OK, toolchain=toolchain))
    told = str(error.value)
    assert "tensorrt_llm in the image is not the version that the key declares" in told
    assert "declared      0.11.0\n    in the image  0.10.0\n" in told
    assert "torch in the image is not" in told
    assert "tensorrt in the image is not" not in told
    assert box.ran() == []


def test_an_image_is_asked_once_and_known_by_its_digest(box: Box) -> None:
    toolchain = (("image", OTHER), ("tensorrt_llm", "0.17.0"))  # a post-release is the same release
    for number in range(3):
        box.made(box.contained(f"{OK} # {number}", toolchain=toolchain))
    assert sum("--entrypoint=python3" in call for call in box.calls()) == 1
    assert [path.suffix for path in box.file("images").iterdir()] == [".json"]


def test_an_image_that_there_is_not_is_told(box: Box) -> None:
    with pytest.raises(StepFailed, match=r"there is no such image\n +image +no/such\n +said +Error: No such image"):
        box.made(box.contained(OK, toolchain=(("image", "no/such"),)))


def test_no_docker_is_told(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(StepFailed, match="docker is not installed here"):
        box.made(box.contained(OK))


@pytest.mark.parametrize(
    ("code", "said"), [("sys.exit(3)", "exit code 3"), ("os.kill(os.getpid(), 9)", "exit code 137")]
)
def test_a_failing_command_is_told_as_here(box: Box, code: str, said: str) -> None:
    with pytest.raises(StepFailed) as error:
        box.made(box.contained(f"print('last line', flush=True); {code}"))
    assert f"s:a failed with {said}" in str(error.value)
    assert "last line" in str(error.value)
    assert ("memory" in str(error.value)) == ("137" in said)
    assert box.containers() == []


STUBBORN = "import signal; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"


def test_a_container_that_ignores_the_end_is_removed(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rules.runners.local._TERM_SECONDS", 0.3)
    with pytest.raises(StepFailed, match=r"had no end after 1 s"):
        box.made(box.contained(STUBBORN, timeout_s=1.0))
    assert box.containers() == []


def test_a_container_whose_owner_is_gone_is_removed_by_the_next_run_and_another_is_not(box: Box) -> None:
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as left:
        for name, owner in (("gone", f"{socket.gethostname()}:{2**22 + 1}:1"), ("other", "elsewhere:1:1")):
            said = {"pid": left.pid if name == "gone" else 2**22 + 1, "label": owner}
            (box.engine / "containers" / name).write_text(json.dumps(said))
        (box.engine / "containers" / "ours").write_text(json.dumps({"pid": 2**22 + 1, "label": docker.owner()}))
        box.made(box.contained(OK))
        assert left.wait(60) == -signal.SIGKILL
    assert sorted(box.containers()) == ["other", "ours"]


HOLDER = """
import sys
from pathlib import Path
from rules.runners import docker, local
scratch = Path(sys.argv[1])
code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
call = docker.Call(program="docker", image=sys.argv[2], name="held", argv=["python3", "-c", code], env={}, user="0:0",
                   writes=[("/scratch", sys.argv[1])], owner=docker.owner())
command = local.Command(argv=[], env={}, log=scratch / "log", scratch=scratch)
docker.run(call, command, lambda line: print(line, flush=True))
"""


def test_a_container_ends_when_we_are_killed(box: Box) -> None:
    """The leash ends docker's program, which passes the signal on."""
    scratch = box.root / "scratch"
    scratch.mkdir()
    argv = [sys.executable, "-c", HOLDER, str(scratch), IMAGE]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=PROJECT) as holder:
        assert holder.stdout is not None
        pid = int(holder.stdout.readline())
        holder.kill()
    assert until(lambda: not alive(pid))
