"""ask.py: the user's dialects of a question, and answers in order from a server that does not always answer.

With the real server and engine: tests/e2e/test_requests.py.
"""

from __future__ import annotations

import importlib.util
import json
import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.fakes import PROJECT
from tests.made import Run


def _module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ask_tool", PROJECT / "rules/tools/ask.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = _module()


class Echo(BaseHTTPRequestHandler):
    """Speaks `generate` as Triton does, of a model in one piece that answers with the prompt in capitals."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._reply(404, {})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "fail" in asked["text_input"]:
            self._reply(500, {"error": "the engine is gone"})
        else:
            self._reply(200, {"text_output": f"{asked['text_input'].upper()} {asked['max_tokens']}"})

    def _reply(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def _data(folder: Path, *rows: object) -> Path:
    path = folder / "questions.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")
    return path


def _answers(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "answers.jsonl").read_text("utf-8").split("\n") if line]


def test_every_dialect_of_a_question_is_read(run_tool: Run, url: str, out: Path, tmp_path: Path) -> None:
    data = _data(
        tmp_path,
        {"input": "a\u2028b", "output": "A"},
        {"text_input": "c", "expected": "C", "output": "other"},
        {"text": "d", "max_tokens": 5},
        {"prompt": "e", "output_tokens": 6, "expected": 7},
    )
    done = run_tool("ask", "--data", data, "--url", url, "--max-tokens=9", "--out", out)
    assert done.returncode == 0, done.stderr
    found = [(row["input"], row["expected"], row["text"], row["ids"]) for row in _answers(out)]
    assert found == [
        ("a\u2028b", "A", "A\u2028B 9", None),
        ("c", "C", "C 9", None),
        ("d", None, "D 5", None),
        ("e", "7", "E 6", None),
    ]


def test_columns_and_size_are_the_users(run_tool: Run, url: str, out: Path, tmp_path: Path) -> None:
    data = _data(tmp_path, {"input": "no", "frage": "ja", "antwort": "JA"}, {"frage": "nicht mehr"})
    options = ("--column=frage", "--expected=antwort", "--size=1")
    done = run_tool("ask", "--data", data, "--url", url, *options, "--out", out)
    assert done.returncode == 0, done.stderr
    assert [(row["input"], row["expected"]) for row in _answers(out)] == [("ja", "JA")]


def test_answers_keep_the_order_of_the_questions(run_tool: Run, url: str, out: Path, tmp_path: Path) -> None:
    data = _data(tmp_path, *({"input": f"q{number}"} for number in range(50)))
    assert run_tool("ask", "--data", data, "--url", url, "--out", out).returncode == 0
    assert [row["text"] for row in _answers(out)] == [f"Q{number} 64" for number in range(50)]


def test_a_question_without_answer_is_told_and_the_others_go_on(
    run_tool: Run, url: str, out: Path, tmp_path: Path
) -> None:
    data = _data(tmp_path, {"input": "one"}, {"input": "fail"}, {"input": "three"})
    done = run_tool("ask", "--data", data, "--url", url, "--concurrency=1", "--out", out)
    assert done.returncode == 0
    assert "question 2 got no answer" in done.stderr
    assert [row["text"] for row in _answers(out)] == ["ONE 64", None, "THREE 64"]
    assert "the engine is gone" in _answers(out)[1]["error"]


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"input": "fail"}], "no question was answered"),
        ([{"question": "q"}], "line 1 has no text in input or text_input or text or prompt"),
        ([{"input": "q"}, ["q"]], "line 2 has no text"),
        ([], "has no questions"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    run_tool: Run, url: str, out: Path, tmp_path: Path, rows: list[object], told: str
) -> None:
    done = run_tool("ask", "--data", _data(tmp_path, *rows), "--url", url, "--out", out)
    assert done.returncode == 1
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_question_without_an_answer_is_told_before_anything_is_asked(
    run_tool: Run, out: Path, tmp_path: Path
) -> None:
    data = _data(tmp_path, {"input": "q", "expected": "e"}, {"input": "r"})
    done = run_tool("ask", "--data", data, "--url=127.0.0.1:9", "--answered", "--out", out)
    assert done.returncode == 1
    assert "line 2 of questions.jsonl has no expected answer" in done.stderr


def test_a_line_that_is_not_json_is_told_with_its_number(run_tool: Run, url: str, out: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"input": "q"}\n\n{"input": \n')
    done = run_tool("ask", "--data", tmp_path / "bad.jsonl", "--url", url, "--out", out)
    assert (done.returncode, "line 3 of bad.jsonl is not JSON" in done.stderr) == (1, True)


def test_questions_in_another_encoding_are_told(run_tool: Run, out: Path, tmp_path: Path) -> None:
    (tmp_path / "latin.jsonl").write_bytes('{"input": "é"}\n'.encode("latin-1"))
    done = run_tool("ask", "--data", tmp_path / "latin.jsonl", "--url=127.0.0.1:9", "--out", out)
    assert (done.returncode, "error: latin.jsonl is not UTF-8" in done.stderr) == (1, True)


def test_a_server_that_is_not_there_is_told(run_tool: Run, out: Path, tmp_path: Path) -> None:
    done = run_tool("ask", "--data", _data(tmp_path, {"input": "q"}), "--url=127.0.0.1:9", "--out", out)
    assert (done.returncode, "127.0.0.1:9 does not answer" in done.stderr) == (1, True)


def test_expected_answers_are_measured_only_where_the_engine_can_be_asked(
    run_tool: Run, url: str, out: Path, tmp_path: Path
) -> None:
    data = _data(tmp_path, {"input": "q", "expected": "e"})
    done = run_tool("ask", "--data", data, "--url", url, "--likelihood", "--out", out)
    assert done.returncode == 1
    assert "has not the models preprocessing, tensorrt_llm, postprocessing" in done.stderr


def test_a_row_of_logits_says_how_likely_each_token_is() -> None:
    logits = np.log(np.array([[1, 2, 5], [4, 3, 1]], np.float32)) + 7
    found = tool.likely(logits, [1, 1])
    assert found["ids"] == [1, 1]
    assert found["log_probs"] == pytest.approx([math.log(2 / 8), math.log(3 / 8)])
    assert [[token for token, _ in top] for top in found["top"]] == [[2, 1, 0], [0, 1, 2]]
    assert [math.exp(value) for _, value in found["top"][0]] == pytest.approx([5 / 8, 2 / 8, 1 / 8], abs=1e-5)


def test_of_a_distribution_the_likeliest_are_kept() -> None:
    found = tool.likely(np.arange(100, dtype=np.float32).reshape(1, 100), [3])
    assert [token for token, _ in found["top"][0]] == list(range(99, 99 - tool.TOP, -1))


def test_less_than_all_logits_is_an_error_with_what_is_needed() -> None:
    with pytest.raises(
        ValueError, match="logits of 2 tokens of 3: an engine of TensorRT-LLM needs gather_context_logi"
    ):
        tool.Logits("", "tensorrt_llm")._checked(np.zeros((1, 2, 9)), [1, 2, 3])
