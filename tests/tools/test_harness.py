"""harness.py: what an instance of lm-evaluation-harness asks of the server, and a whole task where the harness is.

ENGINES_LM_EVAL names the Python of an environment with lm_eval, where this one has none. With the real server and
engine, and against PyTorch: tests/e2e/test_requests.py.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
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


class Letters:
    """A tokenizer with a token per character, but for "ab"; `special` comes before every text."""

    prefix = 99

    def __init__(self, special: list[int]) -> None:
        self.special = special

    def plain(self, text: str) -> list[int]:
        return [7 if piece == "\0" else ord(piece) for piece in text.replace("ab", "\0")]

    def ids(self, text: str) -> list[int]:
        return self.special + self.plain(text)


A, B, SPACE = ord("a"), ord("b"), ord(" ")


@pytest.mark.parametrize(
    ("context", "continuation", "before", "after"),
    [
        ("b", " a", [B], [SPACE, A]),
        ("b ", "a", [B], [SPACE, A]),  # white space belongs to what follows
        ("aa", "b", [A, A], []),  # both are [a, ab]: the boundary is where the context's tokens end
        ("a", "bb", [A], [B]),
        ("", "a", [99], [A]),
        ("  ", "a", [99], [SPACE, SPACE, A]),
    ],
)
def test_the_continuation_is_what_both_texts_have_beyond_the_contexts_tokens(
    context: str, continuation: str, before: list[int], after: list[int]
) -> None:
    if after:
        assert tool.pair(Letters([]), context, continuation) == (before, after)
    else:
        with pytest.raises(tool.Refused, match="no tokens of its own"):
            tool.pair(Letters([]), context, continuation)


def test_special_tokens_begin_the_context_once() -> None:
    assert tool.pair(Letters([99]), "b", "a") == ([99, B], [A])
    assert tool.pair(Letters([99]), "", "a") == ([99], [A])


def test_windows_predict_each_token_once_with_as_much_before_as_fits() -> None:
    found = list(tool.windows(list(range(10)), 99, 4))
    assert found == [([99], [0, 1, 2, 3]), ([3], [4, 5, 6, 7]), ([5, 6, 7], [8, 9])]
    assert {len(tool.sent(*one, 4)) for one in found} == {4}
    assert list(tool.windows([0, 1], 99, 4)) == [([99], [0, 1])]
    assert list(tool.windows([], 99, 4)) == []


def test_the_engine_is_sent_all_but_the_last_token_and_a_long_context_from_its_end() -> None:
    assert tool.sent([1, 2, 3], [4, 5], None) == (1, 2, 3, 4)
    assert tool.sent([1, 2, 3], [4, 5], 3) == (2, 3, 4)
    with pytest.raises(tool.Refused, match="a continuation of 2 tokens is longer than --max-length 1"):
        tool.sent([1], [4, 5], 1)


def test_a_continuation_is_scored_by_the_rows_before_its_tokens() -> None:
    logits = np.log([[0.1, 0.9], [0.25, 0.75], [0.6, 0.4]]).astype(np.float32) + 5
    assert tool.scored(logits, [1, 0]) == (pytest.approx(math.log(0.75 * 0.6)), True)
    assert tool.scored(logits, [0, 0]) == (pytest.approx(math.log(0.25 * 0.6)), False)
    assert tool.scored(logits, [1]) == (pytest.approx(math.log(0.4)), False)


class Table:
    """An engine of four tokens that most likes the successor of each, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, ...]] = []

    def logits(self, ids: tuple[int, ...]) -> Any:
        self.asked.append(ids)
        return np.array([[3.0 if token == (one + 1) % 4 else 0.0 for token in range(4)] for one in ids])


def test_answers_to_one_context_come_in_order_and_of_one_question() -> None:
    engine = Table()
    scores = tool.Scores(None, engine, None, 3)
    found = scores.of_ids([([0, 1], [3]), ([0, 1], [2]), ([1], [2, 3]), ([0, 1], [1])])
    assert sorted(engine.asked) == [(0, 1), (1, 2)]
    assert [greedy for _, greedy in found] == [False, True, True, False]
    assert found[1][0] > found[0][0] == found[3][0]


def test_a_text_is_the_sum_of_its_windows() -> None:
    engine, tokens = Table(), SimpleNamespace(ids=lambda text: [int(one) for one in text], prefix=3)
    found = tool.Scores(tokens, engine, 2, 1).rolling(["0123", "", "1"])
    likely, other = 3 - math.log(math.exp(3) + 3), -math.log(math.exp(3) + 3)
    assert found == pytest.approx([4 * likely, 0, other])
    assert engine.asked == [(3, 0), (1, 2), (3,)]


@pytest.mark.parametrize(
    ("shape", "hint"),
    [
        (None, "gather_context_logits"),
        ((1, 1, 1), "gather_context_logits"),  # what releases to 0.13 send when there are none
        ((1, 2, 50), "enable_kv_cache_reuse = false"),  # the part that was not in the cache
    ],
)
def test_less_than_all_logits_is_refused_with_what_to_do(shape: tuple[int, ...] | None, hint: str) -> None:
    with pytest.raises(tool.Refused, match=hint):
        tool.checked(None if shape is None else np.zeros(shape), (5, 6, 7), "tensorrt_llm")
    assert tool.checked(np.zeros((1, 3, 50)), (5, 6, 7), "tensorrt_llm").shape == (3, 50)


def test_grpc_is_on_the_next_port() -> None:
    assert tool.beside("[::1]:8000") == "[::1]:8001"


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
def test_a_local_task_is_run_and_one_of_whole_texts_wants_a_length(tmp_path: Path) -> None:
    rows = [{"input": "What do bees make?", "expected": "honey"}, {"input": "Why?", "expected": "because"}]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = TASK.replace("DATA", str(tmp_path / "q.jsonl"))
    (tmp_path / "bees.yaml").write_text(text)
    whole = text.replace("task: bees", "task: whole").replace("generate_until", "loglikelihood_rolling")
    (tmp_path / "whole.yaml").write_text(whole)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Bees)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    argv = [PYTHON, "-I", str(HARNESS), f"--url=127.0.0.1:{server.server_address[1]}", f"--include={tmp_path}"]
    env = {**os.environ, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    try:
        ran, refused = (
            subprocess.run(
                [*argv, f"--tasks={name}"], capture_output=True, text=True, env=env, timeout=500, check=False
            )
            for name in ("bees", "whole")
        )
    finally:
        server.shutdown()
        server.server_close()
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["bees"]["exact_match,none"] == 0.5
    assert (refused.returncode, "whole: measures whole texts in windows" in refused.stderr) == (1, True)


DEFINITIONS = """
import importlib.util, random, sys
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
spec = importlib.util.spec_from_file_location("harness_tool", sys.argv[1])
tool = importlib.util.module_from_spec(spec)
sys.modules["harness_tool"] = tool
spec.loader.exec_module(tool)
random.seed(1)
class Letters:
    backend, prefix = "causal", 99
    def tok_encode(self, text, add_special_tokens=None):
        return [ord(one) for one in text.replace("ab", "#").replace(" b", "*")]
    ids = plain = tok_encode
for length in (1, 2, 7):
    for count in range(20):
        ids = [random.randrange(9) for _ in range(count)]
        theirs = [make_disjoint_window(one) for one in get_rolling_token_windows(ids, 99, length, 1)]
        assert list(tool.windows(ids, 99, length)) == theirs, (length, ids)
for _ in range(500):
    context, continuation = ("".join(random.choices("ab c", k=random.randint(1, 5))) for _ in range(2))
    theirs = TemplateLM._encode_pair(Letters(), context, continuation)
    if all(theirs):
        assert tool.pair(Letters(), context, continuation) == theirs, (context, continuation)
"""


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON, reason="no environment with lm_eval: set ENGINES_LM_EVAL to its Python")
def test_boundaries_and_windows_are_the_harness_own() -> None:
    argv = [PYTHON, "-I", "-c", DEFINITIONS, str(HARNESS)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
