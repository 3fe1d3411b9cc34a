"""manifests.py: texts that a person has read, and that the API servers' schemas take."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from rules import plan
from rules.action import Action
from tests.conform import KINDS, mistakes
from tests.fakes import PROJECT
from tests.lane import toml

Golden = Callable[[str, str], None]
GUIDE = {
    "source": '"hf:meta-llama/Llama-2-7b-chat-hf"',
    "build": '{ quantizer = "upstream" }',
    "shapes": "[{ batch = 64, isl = 1024, osl = 1024 }]",
}
ALL = 'kinds = ["deployment", "kserve", "t9k"]'
FULL = f"""[k8s]
{ALL}
namespace = "serving"
replicas = 2
claim = "engines"
claim_gib = 500
storage_class = "fast"
folder = "prod/llama2"
pull_secret = "registry"
queue = "default"
node_selector = {{ "nvidia.com/gpu.product" = "NVIDIA-A100-SXM4-80GB" }}
"""
CASES = {
    # requirements.md, guide S0: release 0.8, one GPU, the claim triton-tensorrtllm, on T9k
    "guide": toml("0.8.0", "docker", 80, "", k8s=f"{{ {ALL} }}", **GUIDE),
    "full": FULL
    + toml("0.19.0", "docker", 80, 'image = "registry.local/triton@sha256:0"', parallelism='["tp4"]', **GUIDE),
    "nodes": toml("0.12.0", "docker", 90, "", parallelism='["tp8pp2"]').replace("gpus = 8", "gpus = 8\nnodes = 2"),
}


def run(action: Action, out: Path) -> subprocess.CompletedProcess[str]:
    """What the action's command does."""
    out.mkdir(exist_ok=True)
    places = {
        "{python}": sys.executable,
        "{tool}": str(PROJECT / "rules/tools/manifests.py"),
        "{templates}": str(PROJECT / "templates/k8s"),
        "{out}": str(out),
    }
    argv = list(action.argv)
    for name, place in places.items():
        argv = [word.replace(name, place) for word in argv]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def written(text: str, folder: Path) -> dict[str, str]:
    """Path below the output folder -> text, of the one variant of a models.toml."""
    (action,) = [one for one in plan.load(text, folder).actions.values() if one.stage == "k8s"]
    result = run(action, folder / "out")
    assert result.returncode == 0, result.stderr
    paths = sorted(path for path in (folder / "out").rglob("*") if path.is_file())
    return {path.relative_to(folder / "out").as_posix(): path.read_text("utf-8") for path in paths}


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Mapping[str, str]]:
    """Case -> its files."""
    return {case: written(text, tmp_path_factory.mktemp(case)) for case, text in CASES.items()}


def documents(files: Mapping[str, str]) -> dict[str, Any]:
    """Kind -> manifest."""
    loaded = [yaml.safe_load(text) for path, text in files.items() if path.endswith(".yaml")]
    return {one["kind"]: one for one in loaded}


@pytest.mark.parametrize("case", CASES)
def test_the_texts_of_a_case(case: str, manifests: Mapping[str, Mapping[str, str]], golden: Golden) -> None:
    golden(f"k8s/{case}.txt", "\n".join(f"=== {path}\n{text}" for path, text in manifests[case].items()))


def test_the_servers_schemas_take_every_manifest(manifests: Mapping[str, Mapping[str, str]]) -> None:
    found = {kind: one for files in manifests.values() for kind, one in documents(files).items()}
    assert set(found) == set(KINDS)
    for files in manifests.values():
        assert [wrong for one in documents(files).values() for wrong in mistakes(one)] == []


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("spec", "replica"), 1, "spec.replica: there is no such field"),
        (("spec", "replicas"), "1", "spec.replicas: '1' is no integer"),
        (("spec", "template", "spec", "containers", 0, "ports", 0, "containerPort"), None, "is no integer"),
        (("spec", "template", "spec", "volumes", 1, "emptyDir", "medium"), 1, "is no string"),
        (("apiVersion",), "apps/v2", "'apps/v2' is not one of"),
    ],
)
def test_the_schemas_refuse_what_is_wrong(
    path: tuple[Any, ...], value: object, told: str, manifests: Mapping[str, Mapping[str, str]]
) -> None:
    wrong = copy.deepcopy(documents(manifests["guide"])["Deployment"])
    place = wrong
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert told in " ".join(mistakes(wrong))


def _pods(files: Mapping[str, str]) -> dict[str, Any]:
    """Kind -> pod specification."""
    found = documents(files)
    pods = {
        "Deployment": ("template", "spec"),
        "InferenceService": ("predictor",),
        "MLServiceRuntime": ("template", "spec"),
    }
    pods |= {"LeaderWorkerSet": ("leaderWorkerTemplate", "leaderTemplate", "spec")}
    made = {}
    for kind, path in pods.items():
        if kind in found:
            made[kind] = found[kind]["spec"]
            for step in path:
                made[kind] = made[kind][step]
    return made


def test_every_pod_has_gpus_shared_memory_and_a_place_to_write(manifests: Mapping[str, Mapping[str, str]]) -> None:
    for case, gpus in (("guide", 1), ("full", 4), ("nodes", 8)):
        for pod in _pods(manifests[case]).values():
            (container,) = pod["containers"]
            assert container["resources"]["limits"]["nvidia.com/gpu"] == gpus
            assert container["resources"]["limits"] == container["resources"]["requests"]
            mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            volumes = {volume["name"]: volume for volume in pod["volumes"]}
            assert volumes[mounted["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
            assert set(mounted.values()) == set(volumes)
            assert {"name": "HF_HUB_OFFLINE", "value": "1"} in container["env"]


def test_a_repository_is_read_only_and_where_its_configs_say(manifests: Mapping[str, Mapping[str, str]]) -> None:
    for kind in ("Deployment", "InferenceService"):
        mounts = {mount["name"]: mount for mount in _pods(manifests["full"])[kind]["containers"][0]["volumeMounts"]}
        assert mounts["repository"] == {
            "name": "repository",
            "mountPath": "/repository",
            "subPath": "prod/llama2",
            "readOnly": True,
        }
    predictor = documents(manifests["full"])["MLService"]["spec"]["releases"][0]["predictor"]
    assert predictor["storage"]["pvc"] == {"name": "engines", "subPath": "prod/llama2", "mountPath": "/repository"}
    assert predictor["model"]["parameters"]["MODEL_REPO_PATH"] == "/repository"


def test_loading_may_take_as_long_as_is_said_before_a_pod_is_killed(manifests: Mapping[str, Mapping[str, str]]) -> None:
    for kind in ("Deployment", "InferenceService"):
        probe = _pods(manifests["guide"])[kind]["containers"][0]["startupProbe"]
        assert probe["periodSeconds"] * probe["failureThreshold"] == 30 * 60


def test_selectors_find_the_pods_that_they_are_for(manifests: Mapping[str, Mapping[str, str]]) -> None:
    found = documents(manifests["guide"])
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for selector in (found["Deployment"]["spec"]["selector"]["matchLabels"], found["Service"]["spec"]["selector"]):
        assert selector.items() <= labels.items()
    names = {port["name"] for port in _pods(manifests["guide"])["Deployment"]["containers"][0]["ports"]}
    assert {port["targetPort"] for port in found["Service"]["spec"]["ports"]} == names


def test_several_nodes_are_one_group_of_which_the_leader_starts_every_rank(
    manifests: Mapping[str, Mapping[str, str]],
) -> None:
    found = documents(manifests["nodes"])
    group = found["LeaderWorkerSet"]["spec"]["leaderWorkerTemplate"]
    assert group["size"] == 2
    (leader,) = group["leaderTemplate"]["spec"]["containers"]
    assert leader["args"].count("-n") == 16
    assert "--hostfile=/scratch/hosts" in leader["args"]
    assert "slots=8" in leader["command"][2]
    selector = found["Service"]["spec"]["selector"]
    assert selector["leaderworkerset.sigs.k8s.io/name"] == found["LeaderWorkerSet"]["metadata"]["name"]
    assert found["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteMany"]


def test_the_leaders_script_waits_for_its_workers_and_writes_where_they_are(
    tmp_path: Path, manifests: Mapping[str, Mapping[str, str]]
) -> None:
    """Run by a real bash, with a stand-in for ssh that refuses the first time."""
    group = documents(manifests["nodes"])["LeaderWorkerSet"]["spec"]["leaderWorkerTemplate"]
    (leader,) = group["leaderTemplate"]["spec"]["containers"]
    ssh = tmp_path / "ssh"
    ssh.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\ntest -e {tmp_path}/up || {{ touch {tmp_path}/up; exit 255; }}\n'
    )
    ssh.chmod(0o755)
    script = leader["command"][2].replace("/scratch", str(tmp_path)).replace("sleep 2", "sleep 0")
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "LWS_LEADER_ADDRESS": "m-0.m.serving", "LWS_GROUP_SIZE": "2"}
    command = [*leader["command"][:2], script, leader["command"][3], "cat", str(tmp_path / "hosts")]
    ran = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert ran.stdout == "m-0.m.serving slots=8\nm-0-1.m.serving slots=8\n"
    assert (tmp_path / "asked").read_text().count("m-0-1.m.serving true") == 2


@pytest.mark.parametrize("version", ["0.8.0", "0.13.0", "0.19.0", "1.2.1"])
def test_old_and_new_releases_have_manifests_that_the_schemas_take(version: str, tmp_path: Path) -> None:
    text = toml(version, "docker", 90, 'image = "registry.local/triton:1"', k8s=f"{{ {ALL} }}", **GUIDE)
    files = written(text, tmp_path)
    assert [wrong for one in documents(files).values() for wrong in mistakes(one)] == []


def test_a_value_that_is_missing_writes_nothing(tmp_path: Path) -> None:
    (action,) = [one for one in plan.load(CASES["guide"], tmp_path).actions.values() if one.stage == "k8s"]
    less = tuple(word for word in action.argv if not word.startswith("--set=claim="))
    result = run(Action(stage="k8s", argv=less), tmp_path / "out")
    assert result.returncode == 1
    assert "error: the templates do not fit the values" in result.stderr
    assert "'claim' is undefined" in result.stderr
    assert list((tmp_path / "out").iterdir()) == []
