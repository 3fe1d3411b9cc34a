"""probe.py against a real Triton server whose models keep their promises, or break one at a time."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.serving import SERVE, Server

PROBE = SERVE.with_name("probe.py")
CANNED = Path(__file__).with_name("canned.py")
QUESTIONS = {"Bees?": " Bees make honey 🐝🍯", "蜜蜂？": "蜜蜂酿蜂蜜🐝"}
TEXT = {"text_input": "STRING", "max_tokens": "INT32", "stream": "BOOL", "stop_words": "STRING", "end_id": "INT32"}
TEXT |= {"exclude_input_in_output": "BOOL", "return_num_output_tokens": "BOOL"}
TEXT_OUT = {"text_output": "STRING", "num_output_tokens": "INT32"}
IDS = {"input_ids": "INT32", "input_lengths": "INT32", "request_output_len": "INT32", "exclude_input_in_output": "BOOL"}
IDS |= {"return_log_probs": "BOOL"}
MODELS = {
    "ensemble": (TEXT, TEXT_OUT),
    "tensorrt_llm_bls": (TEXT, TEXT_OUT),
    "preprocessing": ({"QUERY": "STRING", "REQUEST_OUTPUT_LEN": "INT32"}, {"INPUT_ID": "INT32"}),
    "tensorrt_llm": (IDS, {"output_ids": "INT32", "sequence_length": "INT32"}),
    "postprocessing": ({"TOKENS_BATCH": "INT32", "SEQUENCE_LENGTH": "INT32"}, {"OUTPUT": "STRING"}),
}
BROKEN = {
    "answer": "expected_answers",
    "split": "stream_equals_whole",
    "stop": "stop_word",
    "end_id": "end_id",
    "max": "max_tokens_is_honoured",
    "length": "too_long_prompt_is_refused",
    "memory": "three_streams_in_a_row",
    "serial": "eight_in_flight_together",
    "echo": "echo",
    "leak": "cancelled_streams_free_their_slots",
    "bls": "bls_equals_ensemble",
}


def _module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("probe_tool", PROBE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


probe_tool = _module()
ASSERTIONS = {assertion.__name__: assertion for assertion in probe_tool.ASSERTIONS}


def _config(name: str) -> str:
    inputs, outputs = MODELS[name]
    lines = [f'name: "{name}" backend: "python" max_batch_size: 8 model_transaction_policy {{ decoupled: true }}']
    lines += [f'input {{ name: "{n}" data_type: TYPE_{t} dims: [ -1 ] optional: true }}' for n, t in inputs.items()]
    lines += [f'output {{ name: "{n}" data_type: TYPE_{t} dims: [ -1 ] }}' for n, t in outputs.items()]
    return "\n".join([*lines, "instance_group { kind: KIND_CPU }"])


def canned_repository(folder: Path) -> Path:
    (folder / "tensorrt_llm/1/engine").mkdir(parents=True)
    (folder / "tensorrt_llm/1/engine/engine.json").write_text('{"max_input_len": 20, "max_output_len": 64}')
    for name in MODELS:
        (folder / name / "1").mkdir(parents=True, exist_ok=True)
        (folder / name / "config.pbtxt").write_text(_config(name))
        (folder / name / "1/fault").write_text("")
        shutil.copyfile(CANNED, folder / name / "1/model.py")
    return folder


def _break(repository: Path, fault: str) -> None:
    for name in MODELS:
        (repository / name / "1/fault").write_text(fault)


class _Separated(BaseHTTPRequestHandler):
    """Answers with characters at which Python's splitlines would cut, as Triton does: within the JSON, as they are."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        pieces = (json.dumps({"text_output": text}, ensure_ascii=False) for text in ("a\u2028", "\x85b"))
        self.wfile.write("".join(f"data: {piece}\n\n" for piece in pieces).encode())

    def log_message(self, *_: object) -> None:
        """Nothing."""


def test_a_line_separator_ends_neither_a_question_nor_a_piece(tmp_path: Path) -> None:
    (tmp_path / "questions.jsonl").write_text('{"text_input": "a\u2028b"}\n', encoding="utf-8")
    with ThreadingHTTPServer(("127.0.0.1", 0), _Separated) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        state = {"host": "127.0.0.1", **dict.fromkeys(("http_port", "grpc_port", "metrics_port"), server.server_port)}
        probe = probe_tool.Probe(state, tmp_path, tmp_path)
        assert probe.question == "a\u2028b"
        assert probe.stream("any") == ["a\u2028", "\x85b"]
        server.shutdown()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return canned_repository(tmp_path_factory.mktemp("canned") / "repository")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    lines = [json.dumps({"text_input": text, "expected": answer}) for text, answer in QUESTIONS.items()]
    (folder / "questions.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, repository: Path, source: Path) -> Iterator[Any]:
    server = Server(tmp_path_factory.mktemp("server"), a=repository)
    yield probe_tool.Probe(server.ready(), repository, source)
    server.end()


@pytest.fixture
def probe(running: Any, repository: Path) -> Iterator[Any]:
    running.exchanges = []
    yield running
    _break(repository, "")


@pytest.mark.server
@pytest.mark.parametrize("name", ASSERTIONS)
def test_an_assertion_holds_where_its_promise_is_kept(probe: Any, name: str) -> None:
    assert probe_tool.attempt(ASSERTIONS[name], probe) == ""


@pytest.mark.server
@pytest.mark.parametrize(("fault", "name"), BROKEN.items())
def test_a_broken_promise_fails_its_assertion(
    probe: Any, repository: Path, fault: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe_tool, "SETTLE_SECONDS", 1)
    _break(repository, fault)
    assert probe_tool.attempt(ASSERTIONS[name], probe).startswith("AssertionError: ")


@pytest.mark.server
def test_the_transcript_holds_what_was_sent_and_what_came_back(probe: Any, tmp_path: Path) -> None:
    assert probe_tool.assert_all(probe, tmp_path / "transcript.jsonl") == 0
    lines = [json.loads(line) for line in (tmp_path / "transcript.jsonl").read_text("utf-8").splitlines()]
    assert [line["assertion"] for line in lines] == list(ASSERTIONS)
    asked = next(line for line in lines if line["assertion"] == "expected_answers")["exchanges"][0]
    assert asked["sent"]["body"]["text_input"] == "Bees?"
    assert QUESTIONS["Bees?"] in json.loads(asked["received"]["text"])["text_output"]


@pytest.mark.server
def test_a_failure_names_the_assertion_what_was_sent_and_what_came_back(
    repository: Path, source: Path, tmp_path: Path
) -> None:
    _break(repository, "stop")
    argv = [f"--repository={repository}", f"--source={source}", f"--server={SERVE}", f"--out={tmp_path}"]
    result = subprocess.run(
        [sys.executable, "-I", PROBE, *argv], capture_output=True, text=True, check=False, timeout=300
    )
    _break(repository, "")
    assert result.returncode == 1
    assert "error: smoke test: stop_word does not hold" in result.stderr
    assert '"stop_words": "' in result.stderr
    assert "Bees make honey" in result.stderr
    assert result.stderr.count("does not hold") == 1
    assert "ok       bls_equals_ensemble" in result.stdout, "the others are tried too"
    assert not (tmp_path / "summary.txt").exists()


@pytest.mark.server
def test_the_summary_is_a_question_with_its_answer(repository: Path, source: Path, tmp_path: Path) -> None:
    argv = [f"--repository={repository}", f"--source={source}", f"--server={SERVE}", f"--out={tmp_path}"]
    subprocess.run([sys.executable, "-I", PROBE, *argv], capture_output=True, check=True, timeout=300)
    assert (tmp_path / "summary.txt").read_text("utf-8") == "Q: Bees?\nA: Bees make honey 🐝🍯\n"


@pytest.mark.server
def test_a_server_that_does_not_start_fails_the_test(source: Path, tmp_path: Path) -> None:
    argv = [f"--repository={tmp_path}", f"--source={source}", f"--server={SERVE}", f"--out={tmp_path}"]
    result = subprocess.run(
        [sys.executable, "-I", PROBE, *argv], capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == 1
    assert "is not a Triton model repository" in result.stderr
    assert "Traceback" not in result.stderr
