"""render.py: what it writes for the embedded lane, and each mistake it refuses before it writes anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

PROJECT = Path(__file__).parents[2]
RENDER = PROJECT / "rules/tools/render.py"
GOLDEN = PROJECT / "tests/golden/render"
MODELS = ("ensemble", "postprocessing", "preprocessing", "tensorrt_llm", "tensorrt_llm_bls")
SETTINGS = {
    "triton_max_batch_size": "8",
    "decoupled_mode": "true",
    "max_queue_delay_microseconds": "100",
    "max_queue_size": "16",
    "preprocessing_instance_count": "2",
    "postprocessing_instance_count": "3",
    "bls_instance_count": "1",
    "accumulate_tokens": "false",
    "add_special_tokens": "true",
    "skip_special_tokens": "true",
    "exclude_input_in_output": "true",
    "enable_kv_cache_reuse": "true",
    "enable_chunked_context": "true",
    "max_tokens_in_paged_kv_cache": "",
    "max_beam_width": "1",
    "cancellation_check_period_ms": "100",
}


class Case:
    """An engine, a tokenizer, templates and settings to render, with whatever a test makes of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder / "out"
        self.templates = [PROJECT / "templates/triton", PROJECT / "templates/openvino"]
        self.contract = PROJECT / "rules/releases/main.json"
        self.settings = dict(SETTINGS)
        self.engine = self.file("engine/engine.json", "{}").parent
        self.tokenizer = self.file("tokenizer/tokenizer.json", "{}").parent
        self.out.mkdir()

    def file(self, path: str, text: str) -> Path:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        return target

    def run(self) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-I", str(RENDER), f"--contract={self.contract}", f"--out={self.out}"]
        argv += [f"--engine={self.engine}", f"--tokenizer={self.tokenizer}"]
        argv += [f"--templates={folder}" for folder in self.templates]
        argv += [f"--set={name}={value}" for name, value in self.settings.items()]
        return subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)

    def rendered(self) -> Path:
        done = self.run()
        assert done.returncode == 0, done.stderr
        return self.out

    def refused(self) -> str:
        done = self.run()
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert "hint: " in done.stderr
        assert "Traceback" not in done.stderr
        assert list(self.out.iterdir()) == []
        return done.stderr


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden settings, rendered once. Read-only."""
    return Case(tmp_path_factory.mktemp("render")).rendered()


@pytest.mark.parametrize("model", MODELS)
def test_a_config_is_the_golden_text(repository: Path, model: str) -> None:
    golden = GOLDEN / f"{model}.pbtxt"
    text = (repository / model / "config.pbtxt").read_text()
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text(), "UPDATE_GOLDEN=1 rewrites it"


@pytest.mark.parametrize("model", MODELS)
def test_a_config_parses_as_a_triton_model_of_its_name(repository: Path, model: str) -> None:
    text = (repository / model / "config.pbtxt").read_bytes()
    assert text_format.Parse(text, model_config_pb2.ModelConfig()).name == model


def test_no_placeholder_is_left(repository: Path) -> None:
    assert not [path for path in repository.glob("*/config.pbtxt") if "${" in path.read_text()]


def test_every_python_model_has_its_code_and_no_template(repository: Path) -> None:
    files = {str(path.relative_to(repository)) for path in repository.rglob("*") if path.is_file()}
    assert {f"{model}/1/model.py" for model in MODELS if model != "ensemble"} <= files
    assert {f"{model}/1/tokenizing.py" for model in MODELS if model != "ensemble"} <= files
    assert not [path for path in files if path.endswith(".j2") or "contract.json" in path]


def test_the_engine_is_linked_and_not_copied(case: Case) -> None:
    repository = case.rendered()
    assert (repository / "tensorrt_llm/1/engine/engine.json").samefile(case.engine / "engine.json")


def test_the_tokenizer_is_in_each_model_that_reads_it(repository: Path) -> None:
    found = {path.parents[2].name for path in repository.glob("*/1/tokenizer/tokenizer.json")}
    assert found == {"preprocessing", "tensorrt_llm", "postprocessing"}


def test_a_model_without_code_keeps_its_version_directory_as_a_file(repository: Path) -> None:
    assert [path.name for path in (repository / "ensemble/1").iterdir()] == [".keep"]


def test_all_wrong_names_are_told_at_once_with_the_nearest_good_word(case: Case) -> None:
    case.settings["decoupled_mod"] = case.settings.pop("decoupled_mode")
    case.settings["medusa_choices"] = "{0}"
    error = case.refused()
    assert "unknown   decoupled_mod (did you mean decoupled_mode?)" in error
    assert "unknown   medusa_choices" in error, "the openvino overlay fixes it: it may not be set"
    assert "unfilled  decoupled_mode" in error


def test_a_value_that_is_not_protobuf_names_file_and_line(case: Case) -> None:
    case.settings["decoupled_mode"] = "perhaps"
    error = case.refused()
    assert "tensorrt_llm/config.pbtxt" in error
    assert "tensorrt_llm_bls/config.pbtxt" in error
    assert "model_transaction_policy { decoupled: perhaps }" in error


def test_a_quote_in_a_value_stays_a_value(case: Case) -> None:
    case.settings["tokenizer_dir"] = 'a "b"\\c'
    text = (case.rendered() / "preprocessing/config.pbtxt").read_text()
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    assert config.parameters["tokenizer_dir"].string_value == 'a "b"\\c'


def test_a_later_template_directory_overlays_an_earlier_one(case: Case) -> None:
    case.file("overlay/postprocessing/1/model.py", "OURS = True\n")
    case.templates.append(case.folder / "overlay")
    assert (case.rendered() / "postprocessing/1/model.py").read_text() == "OURS = True\n"


def test_a_template_that_asks_for_what_the_contract_lacks_is_refused(case: Case) -> None:
    case.file("overlay/ensemble/config.pbtxt.j2", "name: {{ config.title }}\n")
    case.templates.append(case.folder / "overlay")
    error = case.refused()
    assert "ensemble/config.pbtxt.j2" in error
    assert "title" in error


def test_a_release_without_dynamic_batching_renders_without_it(case: Case) -> None:
    release = json.loads(case.contract.read_text())
    del release["triton"]["preprocessing"]["dynamic_batching"]
    case.contract = case.file("older.json", json.dumps(release))
    assert "dynamic_batching" not in (case.rendered() / "preprocessing/config.pbtxt").read_text()


def test_an_empty_engine_directory_is_refused(case: Case) -> None:
    case.engine = case.folder / "nothing"
    case.engine.mkdir()
    assert "there is nothing to serve" in case.refused()
