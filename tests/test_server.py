"""What a server is started with, release by release, as a text that a person has read."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from rules.built import Built
from rules.launcher import Mode
from rules.release import versions
from rules.server import Engine, Server
from tests.lane import planned, toml

Golden = Callable[[str, str], None]


def server(folder: Path, release: str = "0.10.0", runner: str = "docker", several: int = 1, **more: object) -> Server:
    """A server of tp2 variants on GPUs 4 and 5, and so on."""
    shapes = ", ".join(f"{{ batch = {8 + n}, isl = 128, osl = 64 }}" for n in range(several))
    image = 'image = "registry.local/triton@sha256:0"' if runner != "local" else ""
    llama = {"source": '"hf:meta-llama/Llama-2-7b-chat-hf"', "build": '{ quantizer = "upstream" }'}
    text = toml(release, runner, 90, image, parallelism='["tp2"]', shapes=f"[{shapes}]", **llama)
    plan = planned(text, folder)
    built = Built(version=release, ranks=(10, 10), request=1, batch=8)
    engines = [
        Engine(variant=variant, repository=Path("/artifacts", name), action=plan.actions[f"engine:{name}"], built=built)
        for name, variant in plan.variants.items()
    ]
    given = {"host": "127.0.0.1", "ports": (8400, 8401, 8402), "mode": "leader", "verbose": False, **more}
    places = [(str(4 + 2 * n), str(5 + 2 * n)) for n in range(several)]
    return Server(engines=engines, places=places, folder=Path("/server/77.0"), **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("release", versions())
def test_the_command_lines_of_a_release(
    release: str, tmp_path: Path, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container; here, with Triton's own verbose log; and as an orchestrator where the release has one."""
    monkeypatch.setattr("os.getuid", lambda: 1000)
    monkeypatch.setattr("os.getgid", lambda: 1000)
    cases: list[tuple[str, Mode, bool]] = [("docker", "leader", False), ("local", "leader", True)]
    cases += [("local", "orchestrator", False)] if release != "0.8.0" else []
    lines = [
        f"# {runner}, {mode}\n{_typed(server(tmp_path, release, runner, mode=mode, verbose=verbose))}\n"
        for runner, mode, verbose in cases
    ]
    golden(f"serve/{release}.txt", "\n".join(lines))


def _typed(made: Server) -> str:
    text = made.text()
    words = shlex.join(text["argv"]).replace(" : ", " : \\\n").replace(" --", " \\\n  --")
    return (
        "".join(f"{name}={value} " for name, value in text["env"].items() if name.startswith(("CUDA", "TRT"))) + words
    )


def test_the_repository_of_a_container_is_the_artifact_itself_read_only(tmp_path: Path) -> None:
    text = server(tmp_path).text()
    (name,) = text["repositories"]
    assert f"--mount=type=bind,source=/artifacts/{name},target=/repository,readonly" in text["argv"]
    assert "layout" not in text
    assert text["container"] == ["docker", "doit-serve-77-0"]
    assert "prefix" not in text, "a container has a /dev/shm of its own"


def test_here_the_configs_must_name_other_places_so_the_repository_is_laid_out(tmp_path: Path) -> None:
    text = server(tmp_path, runner="local").text()
    assert text["layout"]["seen"] == text["layout"]["target"] == "/server/77.0/repository"
    assert "--model-repository=/server/77.0/repository" in text["argv"]
    assert text["layout"]["devices"] == {}, "one engine takes what it sees"
    assert text["prefix"] == "doit_trtllm_{pid}_0_rank"


def test_an_orchestrator_of_several_engines_tells_each_its_gpus_counted_from_zero(tmp_path: Path) -> None:
    made = server(tmp_path, several=2, mode="orchestrator")
    layout = made.text()["layout"]
    assert list(layout["devices"].values()) == ["0,1", "2,3"]
    assert layout["seen"] == "/repository"
    assert "--gpus '\"device=4,5,6,7\"'" in shlex.join(made.text()["argv"])
    assert made.text()["name"] == "m_tp2_fp16_isl128_osl64_bs8+m_tp2_fp16_isl128_osl64_bs9"


def test_ports_are_published_on_the_address_that_was_asked_for(tmp_path: Path) -> None:
    published = [word for word in server(tmp_path, host="::1").text()["argv"] if word.startswith("--publish")]
    assert published == ["--publish=[::1]:8400:8000", "--publish=[::1]:8401:8001", "--publish=[::1]:8402:8002"]
