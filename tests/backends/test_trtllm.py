"""The TensorRT-LLM lane's actions, and its model repositories against what upstream's templates yield."""

from __future__ import annotations

import json
import re
import runpy
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from rules import steps
from rules.action import Action, Files
from rules.plan import Plan
from rules.release import load, versions
from tests.lane import TEXTS, planned, toml

Golden = Callable[[str, str], None]
PROJECT = Path(__file__).parents[2]
UPSTREAM = PROJECT / "tests" / "golden" / "upstream"
MODELS = ("preprocessing", "tensorrt_llm", "postprocessing", "ensemble", "tensorrt_llm_bls")


def _one(plan: Plan, stage: str) -> Action:
    (action,) = (one for one in plan.actions.values() if one.stage == stage)
    return action


def _render(action: Action, out: Path) -> dict[str, str]:
    """Runs the render action as it stands in the plan, without engine and tokenizer: model -> config.pbtxt."""
    places = {name: source.root for name, source in action.inputs if hasattr(source, "root")}
    return _rendered([word.format(**places, python=sys.executable, out=out) for word in _given(action)], out)


def _given(action: Action) -> list[str]:
    return [word for word in action.argv if "{engine}" not in word and "{tokenizer}" not in word]


@cache
def _tool() -> dict[str, Any]:
    """render.py as a module: a process for each rendering would take minutes."""
    return runpy.run_path(str(PROJECT / "rules" / "tools" / "render.py"))


def _rendered(argv: list[str], out: Path) -> dict[str, str]:
    out.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", argv[2:])
        assert _tool()["main"]() == 0
    return {model: (out / model / "config.pbtxt").read_text() for model in MODELS}


def _parsed(text: str) -> dict[str, Any]:
    message = text_format.Parse(text, ModelConfig())
    return dict(json_format.MessageToDict(message, preserving_proto_field_name=True))


def test_an_engine_is_one_command_for_all_ranks_on_a_declared_platform(tmp_path: Path) -> None:
    engine = _one(planned(toml(parallelism='["tp4pp2"]'), tmp_path), "engine")
    _, typed = " ".join(engine.argv).split(" -- ")
    assert typed.startswith("trtllm-build --checkpoint_dir {checkpoint} --output_dir {out} --input_timing_cache ")
    assert " --workers 8 " in typed
    assert engine.outputs == ("config.json", *(f"rank{rank}.engine" for rank in range(8)))
    assert (engine.platform, engine.gpus) == ("sm90", 8)


def test_an_engine_is_verified_against_what_was_asked_for(tmp_path: Path) -> None:
    engine = _one(planned(toml(parallelism='["tp4pp2"]'), tmp_path), "engine")
    verify, _ = " ".join(engine.argv).split(" -- ")
    assert verify == (
        "{python} -I {tool} --release=0.11.0 --tp-size=4 --pp-size=2 --limit=max_batch_size=8"
        " --limit=max_input_len=2048 --limit=max_seq_len=3072 --limit=max_beam_width=1 --limit=max_num_tokens=8192"
        " --timing-cache={warm}/model.cache --out={out}"
    )
    tool = dict(engine.inputs)["tool"]
    assert isinstance(tool, Files)
    offered = set(re.findall(r'add_argument\("(--[a-z-]+)"', Path(tool.root).read_text()))
    assert {word.partition("=")[0] for word in verify.split()[3:]} == offered


def test_engines_of_one_release_and_gpu_share_a_timing_cache(tmp_path: Path) -> None:
    def engine(release: str, sm: int = 90, **entry: str) -> Action:
        return _one(planned(toml(release, sm=sm, **entry), tmp_path), "engine")

    assert engine("0.11.0").warm == engine("0.11.0", precisions='["bf16"]').warm == "trtllm-0.11.0-sm90"
    assert len({engine("0.11.0").warm, engine("0.12.0").warm, engine("0.11.0", sm=80).warm}) == 3
    assert "--input_timing_cache model.cache --output_timing_cache model.cache" in " ".join(engine("0.11.0").argv)
    old = engine("0.8.0", source='"hf:meta-llama/Llama-2-7b-chat-hf"')
    assert (old.warm, "timing" in " ".join(old.argv)) == ("", False), "its flag is read by nothing"


def test_workers_bound_the_gpus_that_are_leased(tmp_path: Path) -> None:
    engine = _one(planned(toml(parallelism='["tp4pp2"]', build="{ workers = 2 }"), tmp_path), "engine")
    assert engine.gpus == 2
    assert "--workers 2 " in " ".join(engine.argv)


def test_twelve_shapes_share_one_checkpoint(tmp_path: Path) -> None:
    shapes = ", ".join(f"{{ batch = {n}, isl = 64, osl = 64 }}" for n in range(1, 13))
    plan = planned(toml(shapes=f"[{shapes}]", precisions='["fp8", "fp16"]', calibration=TEXTS), tmp_path)
    assert [name for name in plan.actions if name.startswith("checkpoint")] == ["checkpoint:m_fp8", "checkpoint:m_fp16"]
    assert len([name for name in plan.actions if name.startswith("engine")]) == 24


def test_the_image_is_the_toolchain_in_a_container_and_the_version_here(tmp_path: Path) -> None:
    image = load("0.11.0").image
    assert _one(planned(toml(), tmp_path), "engine").toolchain == (("tensorrt_llm", "0.11.0"),)
    engine = _one(planned(toml(runner="podman"), tmp_path), "engine")
    assert (engine.runner, engine.toolchain) == ("podman", (("image", image), ("tensorrt_llm", "0.11.0")))
    named = planned(toml(runner="docker", head='image = "registry.local/own@sha256:00"'), tmp_path)
    assert dict(_one(named, "engine").toolchain)["image"] == "registry.local/own@sha256:00"


def test_an_image_is_asked_for_the_version_that_its_package_has(tmp_path: Path) -> None:
    head = 'image = "nvcr.io/nvidia/tritonserver:25.02-trtllm-python-py3"'
    engine = _one(planned(toml("0.17.0", runner="docker", head=head), tmp_path), "engine")
    assert dict(engine.toolchain)["tensorrt_llm"] == "0.17.0.post1"
    assert "--release=0.17.0.post1" in engine.argv


def test_a_serving_option_that_needs_a_flag_changes_the_engine_and_others_do_not(tmp_path: Path) -> None:
    def engine(serving: str) -> Action:
        return _one(planned(toml(serving=serving), tmp_path), "engine")

    assert engine("{ enable_kv_cache_reuse = true }") != engine("{}")
    assert engine("{ kv_cache_free_gpu_mem_fraction = 0.5, streaming = false }") == engine("{}")


def test_the_smoke_test_runs_where_its_engine_does_and_is_not_shared(tmp_path: Path) -> None:
    plan = planned(toml(runner="docker", parallelism='["tp4pp2"]'), tmp_path)
    engine, smoke = _one(plan, "engine"), _one(plan, "smoke")
    assert (smoke.toolchain, smoke.platform, smoke.runner) == (engine.toolchain, engine.platform, "docker")
    assert (smoke.gpus, smoke.sharing) == (8, "local")
    assert dict(smoke.inputs)["server"] == steps.tool("serve_engine"), "serve.py is the embedded lane's"
    assert json.loads(dict(smoke.env)["ENGINES_SERVER"]).count("-n") == 8


def test_inside_an_image_its_own_programs_and_libraries_are_found(tmp_path: Path) -> None:
    """trtllm-build loads TensorRT from LD_LIBRARY_PATH, and an image's python3 is not that of our environment."""
    plan = planned(toml(build='{ quantizer = "upstream" }'), tmp_path)
    for stage in ("checkpoint", "engine", "smoke"):
        assert {"PATH", "LD_LIBRARY_PATH"} <= set(_one(plan, stage).passes), stage


@pytest.mark.parametrize("version", versions())
def test_a_repository_is_the_contract_of_its_release_filled_in(version: str, tmp_path: Path) -> None:
    """As protobufs, all of every config: tensors with their order, shapes and options, parameters, steps, batching."""
    source = '"hf:meta-llama/Llama-2-7b-chat-hf"' if version == "0.8.0" else '"hf:Qwen/Qwen2-7B"'
    action = _one(planned(toml(version, source=source), tmp_path), "build")
    texts = _render(action, tmp_path / "out")
    given = dict(word.removeprefix("--set=").partition("=")[::2] for word in action.argv if word.startswith("--set="))
    assert given["triton_max_batch_size"] == "8"
    assert given["decoupled_mode"] == "True"
    for model, text in texts.items():
        places = {
            "engine_dir": "/repository/tensorrt_llm/1/engine",
            "tokenizer_dir": f"/repository/{model}/1/tokenizer",
        }
        config = load(version).contract[model]
        typed = {key: {"string_value": value} for key, value in config.get("parameters", {}).items()}
        contract = json.dumps({**config, "parameters": typed})
        filled = re.sub(r"\$\{(\w+)\}", lambda match: {**places, **given}[match[1]], contract)  # noqa: B023
        wanted = json_format.Parse(filled.replace('"decoupled": "True"', '"decoupled": true'), ModelConfig())
        assert _parsed(text) == json_format.MessageToDict(wanted, preserving_proto_field_name=True), model


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """`rendered(version)` is the five configs of one and the same entry in that release."""

    @cache
    def of(version: str) -> str:
        folder = tmp_path_factory.mktemp("rendered")
        source = '"hf:meta-llama/Llama-2-7b-chat-hf"' if version == "0.8.0" else '"hf:Qwen/Qwen2-7B"'
        serving = "{ enable_chunked_context = true, kv_cache_free_gpu_mem_fraction = 0.95 }"
        texts = _render(_one(planned(toml(version, source=source, serving=serving), folder), "build"), folder / "out")
        blank = re.compile(r"\n{2,}")
        return "".join(f"# {model}\n{blank.sub(chr(10), texts[model])}" for model in MODELS)

    return of


@pytest.mark.parametrize("version", versions())
def test_the_rendered_repository_of_a_release(version: str, rendered: Callable[[str], str], golden: Golden) -> None:
    """Where a release's is that of the release before, the golden text says so."""
    before = versions()[versions().index(version) - 1]
    same = version != versions()[0] and rendered(version) == rendered(before)
    golden(f"trtllm/{version}.pbtxt", f"# as {before}\n" if same else rendered(version))


def test_engine_and_tokenizer_are_named_where_the_server_sees_them(tmp_path: Path) -> None:
    texts = _render(_one(planned(toml("0.19.0"), tmp_path), "build"), tmp_path / "out")
    parameters = {model: _parsed(text).get("parameters", {}) for model, text in texts.items()}
    assert parameters["tensorrt_llm"]["gpt_model_path"]["string_value"] == "/repository/tensorrt_llm/1/engine"
    for model in ("preprocessing", "postprocessing", "tensorrt_llm"):
        assert parameters[model]["tokenizer_dir"]["string_value"] == f"/repository/{model}/1/tokenizer"


# --- the two guides whose repositories upstream's own fill_template.py filled


def _settings(example: str, model: str) -> dict[str, str]:
    """The guide's substitutions for one model, and every other placeholder left as it is, as upstream leaves it."""
    meta = json.loads((UPSTREAM / example / "_meta.json").read_text())["models"][model]
    pairs = dict(pair.partition(":")[::2] for pair in meta["substitutions"].split(","))
    return {**{name: f"${{{name}}}" for name in meta["unfilled_in_live_text"]}, **pairs}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("example", ["a_da59830", "b_v0.10.0"])
def test_the_guides_settings_give_upstreams_own_config(example: str, model: str, tmp_path: Path) -> None:
    """Rendered once per model, since the guides give one setting different values in different models."""
    contract = json.loads((UPSTREAM / example / "contract.json").read_text())
    wanted = set(re.findall(r"\$\{(\w+)\}", json.dumps(contract)))
    given = dict.fromkeys(wanted, "1") | {"decoupled_mode": "False"} | _settings(example, model)
    argv = [sys.executable, "-I", str(PROJECT / "rules/tools/render.py"), f"--templates={PROJECT}/templates/triton"]
    argv += [f"--contract={UPSTREAM / example / 'contract.json'}", f"--out={tmp_path / 'out'}"]
    argv += [f"--set={name}={value}" for name, value in given.items()]
    made = _parsed(_rendered(argv, tmp_path / "out")[model])
    assert made == json.loads((UPSTREAM / example / f"{model}.json").read_text())


def test_the_contract_of_the_second_guide_is_that_of_its_release() -> None:
    assert json.loads((UPSTREAM / "b_v0.10.0" / "contract.json").read_text())["triton"] == load("0.10.0").contract


def test_the_shipped_entry_equals_the_guide_where_the_guide_says_something(tmp_path: Path) -> None:
    """models.toml's qwen1_5_14b_chat: what the guide filled is the same, but for its two traps and the folders."""
    plan = planned_models()
    name = "build:qwen1_5_14b_chat_fp8_isl1024_osl1024_bs256"
    texts = _render(plan.actions[name], tmp_path / "out")
    for model in MODELS:
        ours = _parsed(texts[model])
        theirs = json.loads((UPSTREAM / "b_v0.10.0" / f"{model}.json").read_text())
        filled = {
            key: value for key, value in theirs.pop("parameters", {}).items() if "${" not in value["string_value"]
        }
        mine = ours.pop("parameters", {})
        for key, value in filled.items():
            if key not in ("tokenizer_dir", "gpt_model_path"):
                assert mine[key] == value
        if model == "tensorrt_llm_bls":  # the guide: True in tensorrt_llm and False here, so that no request can work
            assert theirs.pop("model_transaction_policy") == {}
            assert ours.pop("model_transaction_policy") == {"decoupled": True}
        assert ours == theirs


def test_the_commands_of_the_shipped_entries(golden: Golden) -> None:
    """What each guide typed by hand: requirements.md 1C and 1D, its traps of 1I mended."""
    actions = planned_models().actions.values()
    lines = [f"# {one.name}\n{' '.join(one.argv)}\n" for one in actions if "--tp-size=" in " ".join(one.argv)]
    golden("trtllm/models.txt", "\n".join(lines))


def planned_models() -> Plan:
    """The plan of this repository's own models.toml."""
    from rules import plan

    return plan.load((PROJECT / "models.toml").read_text(), PROJECT)
