"""harness.py: what an instance of lm-evaluation-harness asks of the server, and a whole task where the harness is.

ENGINES_LM_EVAL names the Python of an environment with lm_eval, where this one has none.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import pytest

from tests.fakes import PROJECT
from tests.made import Run

HARNESS = PROJECT / "rules/tools/harness.py"
PYTHON = os.environ.get("ENGINES_LM_EVAL", sys.executable if importlib.util.find_spec("lm_eval") else "")
TASK = """task: bees
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
output_type: generate_until
test_split: test
doc_to_text: "{{input}}"
doc_to_target: "{{expected}}"
generation_kwargs: {until: ["."], max_gen_toks: 40, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


def _module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("harness_tool", HARNESS)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = _module()


def test_a_request_is_greedy_and_ends_where_the_task_says() -> None:
    wanted = {"until": ["\n", ""], "max_gen_toks": 40, "do_sample": False, "temperature": 0.7}
    assert tool.body("q", wanted, 64) == {
        "text_input": "q",
        "max_tokens": 40,
        "exclude_input_in_output": True,
        "stop_words": ["\n"],
    }


def test_sampling_is_asked_for_when_the_task_samples_and_length_stays_within_the_limit() -> None:
    asked = tool.body("q", {"do_sample": True, "temperature": 0.7, "top_k": 5, "max_gen_toks": 4000}, 64)
    assert (asked["temperature"], asked["top_k"], asked["max_tokens"]) == (0.7, 5, 64)


def test_what_the_server_cannot_be_asked_is_refused_by_name() -> None:
    with pytest.raises(tool.Refused, match="num_beams"):
        tool.body("q", {"num_beams": 4}, 64)


def test_an_answer_ends_before_the_first_of_the_strings() -> None:
    assert tool.cut("one. two\nthree", ["\n", "."]) == "one"
    assert tool.cut("one", ["."]) == "one"


def test_without_the_harness_a_person_is_told_what_to_install(run_tool: Run) -> None:
    if importlib.util.find_spec("lm_eval"):
        pytest.skip("lm_eval is installed here")
    done = run_tool("harness", "--tasks=any")
    assert (done.returncode, "lm_eval is not installed here" in done.stderr) == (1, True)


class Bees(BaseHTTPRequestHandler):
    """Knows one answer, and goes on after it."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = "honey. And so on" if asked["text_input"] == "What do bees make?" else "?"
        data = json.dumps({"text_output": text}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON, reason="no environment with lm_eval: set ENGINES_LM_EVAL to its Python")
def test_a_local_task_is_run_and_one_that_ranks_is_refused(tmp_path: Path) -> None:
    rows = [{"input": "What do bees make?", "expected": "honey"}, {"input": "Why?", "expected": "because"}]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = TASK.replace("DATA", str(tmp_path / "q.jsonl"))
    (tmp_path / "bees.yaml").write_text(text)
    ranking = text.replace("task: bees", "task: ranked").replace("generate_until", "multiple_choice")
    (tmp_path / "ranked.yaml").write_text(ranking + 'doc_to_choice: ["a", "b"]\n')
    server = ThreadingHTTPServer(("127.0.0.1", 0), Bees)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    argv = [PYTHON, "-I", str(HARNESS), f"--url=127.0.0.1:{server.server_address[1]}", f"--include={tmp_path}"]
    env = {**os.environ, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    try:
        ran, refused = (
            subprocess.run(
                [*argv, f"--tasks={name}"], capture_output=True, text=True, env=env, timeout=500, check=False
            )
            for name in ("bees", "ranked")
        )
    finally:
        server.shutdown()
        server.server_close()
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["bees"]["exact_match,none"] == 0.5
    assert (refused.returncode, "ranked: ranks given answers" in refused.stderr) == (1, True)
