"""The contracts up to 0.13 behind the real Triton server: what passed through postprocessing then still does.

TensorRT-LLM's backend is a stand-in of the Python backend, which says log-probabilities when it is asked for them; all
else is what the build renders for that release.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from rules.action import Action, Files
from tests.fakes import PROJECT
from tests.lane import planned, toml
from tests.serving import Server

pytestmark = [pytest.mark.server]

RELEASES = {"r8": "0.8.0", "r10": "0.10.0", "r13": "0.13.0"}
WORDS = ["<end>", "bees", "make", "honey", "what", "do", "?"]
ENGINE = """
import json
import numpy as np
import triton_python_backend_utils as pb

class TritonPythonModel:
    def initialize(self, args):
        self.outputs = [output["name"] for output in json.loads(args["model_config"])["output"]]
        self.always = "batch_index" not in self.outputs and LOG_PROBS

    def execute(self, requests):
        for request in requests:
            asked = pb.get_input_tensor_by_name(request, "return_log_probs")
            found = {"output_ids": np.array([[[1, 2, 3]]], np.int32), "sequence_length": np.array([[3]], np.int32)}
            if self.always or (asked is not None and asked.as_numpy().any()):
                found["cum_log_probs"] = np.array([[-1.5]], np.float32)
                found["output_log_probs"] = np.array([[[-0.5, -0.25, -0.75]]], np.float32)
            if "batch_index" in self.outputs:
                found["batch_index"] = np.zeros((1, 1), np.int32)
            sender = request.get_response_sender()
            answer = [pb.Tensor(name, value) for name, value in found.items()]
            sender.send(pb.InferenceResponse(answer), flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""


def _tokenizer(folder: Path) -> Path:
    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<end>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    return folder


def _repository(release: str, folder: Path) -> Path:
    """What `doit build` renders for the release, with the stand-in as its engine's backend."""
    source = '"hf:meta-llama/Llama-2-7b-chat-hf"' if release == "0.8.0" else '"hf:Qwen/Qwen2-7B"'
    folder.mkdir()
    plan = planned(toml(release, source=source), folder)
    (action,) = (one for one in plan.actions.values() if one.stage == "build")
    out = folder / "out"
    out.mkdir()
    subprocess.run(_command(action, folder, out), check=True, capture_output=True)
    config = out / "tensorrt_llm/config.pbtxt"
    config.write_text(config.read_text().replace('backend: "tensorrtllm"', 'backend: "python"'))
    # 0.8.0 has no optional inputs in postprocessing: its engine always says log-probabilities.
    (out / "tensorrt_llm/1/model.py").write_text(ENGINE.replace("LOG_PROBS", str(release == "0.8.0")))
    return out


def _command(action: Action, folder: Path, out: Path) -> list[str]:
    places = {name: source.root for name, source in action.inputs if isinstance(source, Files)}
    places |= {"python": sys.executable, "out": str(out), "tokenizer": str(_tokenizer(folder / "tokenizer"))}
    given = (word for word in action.argv if "{engine}" not in word and not word.startswith("--root="))
    return [word.format(**places) for word in given]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server with all of them."""
    folder = tmp_path_factory.mktemp("contracts")
    repositories = {name: _repository(release, folder / name) for name, release in RELEASES.items()}
    made = Server(folder, **repositories)
    made.ready()
    yield made
    made.end()


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
@pytest.mark.parametrize("name", RELEASES)
def test_log_probabilities_that_are_asked_for_are_in_the_answer(server: Server, name: str, model: str) -> None:
    asked = {"text_input": "what do bees make ?", "max_tokens": 3, "return_log_probs": True}
    answer = server.post(f"/v2/models/{model}__{name}/generate", asked)
    assert answer.get("text_output") == "bees make honey", answer
    assert answer["cum_log_probs"] == -1.5
    assert answer["output_log_probs"] == [-0.5, -0.25, -0.75]


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
@pytest.mark.parametrize("name", ["r10", "r13"])
def test_every_public_output_is_in_every_answer(server: Server, name: str, model: str) -> None:
    answer = server.post(f"/v2/models/{model}__{name}/generate", {"text_input": "what", "max_tokens": 3})
    contract = json.loads((PROJECT / f"rules/releases/{RELEASES[name]}.json").read_text())["triton"][model]
    assert {output["name"] for output in contract["output"]} <= set(answer), answer
    assert (answer["cum_log_probs"], answer["context_logits"]) == (0, 0)
