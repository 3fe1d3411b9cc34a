"""Asks a served model every question of a jsonl once, greedily, and keeps text, token ids and log-probabilities.

    ask.py --data FILE --out DIR --repository DIR --server PATH_OF_serve.py     (starts and stops the server)
    ask.py --data FILE --out DIR --url HOST:PORT                                (a server that runs)

Writes OUT/answers.jsonl, a line per question in the data's order: `{"input", "expected", "text", "ids", "log_probs",
"error"}`. Token ids are those of the model `tensorrt_llm`, which is asked between `preprocessing` and `postprocessing`
as the ensemble does; a server without these three is asked `ensemble` for the text alone, and ids are null.

With --likelihood a row also has `likely`, what the engine makes of the expected answer behind its question:
`{"ids", "log_probs", "top": [[[token, log-probability], ...] per id]}`, the TOP likeliest first. They come from
`context_logits`, asked for over gRPC, at the port after HTTP's unless --grpc-url says another.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

PROMPTS = ("input", "text_input", "text", "prompt")
EXPECTED = ("expected", "output")
LENGTHS = ("max_tokens", "output_tokens")
PARTS = ("preprocessing", "tensorrt_llm", "postprocessing")
TIMEOUT_SECONDS = 600
SPEAK_SECONDS = 3.0
PR_SET_PDEATHSIG = 1  # linux/prctl.h
TOP = 64  # of a distribution: what else there is, is one outcome

Json = dict[str, Any]


class Refused(Exception):
    """Something the user can mend; its text is what they read."""


def questions(path: Path, column: str, expected: str, size: int | None, *, answered: bool) -> list[Json]:
    """`{"input", "expected", "max_tokens"}` of the first `size` rows, which are all `answered` where that is asked for.

    Raises Refused with the line that is wrong.
    """
    try:
        lines = path.read_text("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise Refused(f"{path.name} is not UTF-8\n    reason  {error}") from None
    found: list[Json] = []
    for number, line in enumerate(lines, 1):
        if line.strip() and (size is None or len(found) < size):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise Refused(f"line {number} of {path.name} is not JSON\n    reason  {error}") from None
            found.append(question(row, number, (column,) if column else PROMPTS, (expected,) if expected else EXPECTED))
            if answered and found[-1]["expected"] is None:
                hint = "give it one, or name no metrics: fidelity to a reference precision needs none"
                raise Refused(f"line {number} of {path.name} has no expected answer\n    hint: {hint}")
    if not found:
        raise Refused(f"{path.name} has no questions")
    return found


def question(row: object, number: int, prompts: tuple[str, ...], expected: tuple[str, ...]) -> Json:
    """One row in our words."""
    fields = row if isinstance(row, dict) else {}
    text = next((fields[name] for name in prompts if isinstance(fields.get(name), str)), None)
    if text is None:
        hint = f'{{"{prompts[0]}": "...", "{expected[0]}": "..."}} per line'
        raise Refused(f"line {number} has no text in {' or '.join(prompts)}\n    hint: {hint}")
    right = next((fields[name] for name in expected if isinstance(fields.get(name), str | int | float)), None)
    length = next((fields[name] for name in LENGTHS if isinstance(fields.get(name), int)), None)
    return {"input": text, "expected": None if right is None else str(right), "max_tokens": length}


class Served:
    """The models of one server, asked by several threads with a connection each."""

    def __init__(self, url: str, model: str, max_tokens: int, grpc: str = "") -> None:
        """With `grpc`, HOST:PORT, expected answers are measured too. Raises Refused where they cannot be."""
        self._host, _, port = url.rpartition(":")
        self._port, self._model, self._max_tokens = int(port), model, max_tokens
        self._own = threading.local()
        kind, _, variant = model.partition("__")  # as serve.py names the models of several repositories
        self._parts = [f"{part}__{variant}" if variant else part for part in PARTS]
        self._in_parts = kind == "ensemble" and all(self._ready(part) for part in self._parts)
        self._logits = Logits(grpc, self._parts[1]) if grpc else None
        if grpc and not self._in_parts:
            raise Refused(f"{url} has not the models {', '.join(self._parts)}, which a likelihood needs")

    def answer(self, asked: Json) -> Json:
        """A row of answers.jsonl; what went wrong is in it."""
        length = asked["max_tokens"] or self._max_tokens
        row = {"input": asked["input"], "expected": asked["expected"], "text": None, "ids": None, "log_probs": None}
        try:
            found = self._by_parts(asked["input"], length) if self._in_parts else self._whole(asked["input"], length)
            more = {"likely": self._likely(asked)} if self._logits else {}
            return {**row, **found, **more, "error": None}
        except (OSError, HTTPException, ValueError, LookupError) as error:
            self._own.connection = None
            return {**row, "error": f"{type(error).__name__}: {error}"}

    def _likely(self, asked: Json) -> Json:
        """Of the ids that question and expected answer have beyond the question's own."""
        assert self._logits
        before, whole = (self._ids(text)[1] for text in (asked["input"], asked["input"] + asked["expected"]))
        ids = whole[len(before) :]
        return likely(self._logits.of(whole[:-1])[-len(ids) :], ids) if ids else {"ids": [], "log_probs": [], "top": []}

    def _ids(self, text: str, length: int = 1) -> tuple[Json, list[int]]:
        prompt = self._generate(self._parts[0], {"QUERY": text, "REQUEST_OUTPUT_LEN": length})
        return prompt, _list(prompt["INPUT_ID"])

    def _by_parts(self, text: str, length: int) -> Json:
        prompt, ids = self._ids(text, length)
        asked: Json = {"input_ids": ids, "input_lengths": len(ids), "request_output_len": length}
        asked |= {"exclude_input_in_output": True, "return_log_probs": True}
        asked |= {
            name: prompt[f"OUT_{name.upper()}"] for name in ("end_id", "pad_id") if f"OUT_{name.upper()}" in prompt
        }
        reply = self._generate(self._parts[1], asked)
        found = _list(reply["output_ids"])[: _list(reply["sequence_length"])[0]]
        log_probs = _list(reply["output_log_probs"])[: len(found)] if "output_log_probs" in reply else None
        text = self._text(found) if found else ""
        return {"text": text, "ids": found, "log_probs": log_probs}

    def _text(self, ids: list[int]) -> str:
        return str(self._generate(self._parts[2], {"TOKENS_BATCH": ids, "SEQUENCE_LENGTH": len(ids)})["OUTPUT"])

    def _whole(self, text: str, length: int) -> Json:
        asked = {"text_input": text, "max_tokens": length, "exclude_input_in_output": True}
        return {"text": str(self._generate(self._model, asked)["text_output"])}

    def _generate(self, model: str, body: Json) -> Json:
        status, text = self._http("POST", f"/v2/models/{model}/generate", json.dumps(body))
        if status != 200:
            raise ValueError(f"{model}: HTTP {status}: {text[:500]}")
        return dict(json.loads(text))

    def _ready(self, model: str) -> bool:
        return self._http("GET", f"/v2/models/{model}/ready")[0] == 200

    def _http(self, method: str, path: str, body: str | None = None) -> tuple[int, str]:
        connection = getattr(self._own, "connection", None)
        if connection is None:
            connection = self._own.connection = HTTPConnection(self._host, self._port, timeout=TIMEOUT_SECONDS)
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.read().decode("utf-8")


class Logits:
    """Context logits of `model` over gRPC, asked by several threads with a connection each."""

    def __init__(self, url: str, model: str) -> None:
        self._url, self._model = url, model
        self._own, self._numbers = threading.local(), itertools.count()

    def of(self, ids: list[int]) -> Any:
        """Floats [n, vocabulary] of n ids. Raises ValueError where the engine does not return a row for each."""
        from tritonclient.grpc import InferRequestedOutput

        number, (client, replies) = str(next(self._numbers)), self._connection()
        wanted = [InferRequestedOutput("context_logits")]
        client.async_stream_infer(self._model, inputs(ids), request_id=number, outputs=wanted)
        while True:
            result, error = next_of(replies)
            if error:
                del self._own.pair
                raise ValueError(f"no logits from {self._model}: {error}")
            reply = result.get_response()
            if reply.id == number and reply.outputs:
                return self._checked(result.as_numpy("context_logits"), ids)

    def _checked(self, found: Any, ids: list[int]) -> Any:
        rows, columns = (0, 0) if found is None else found.shape[-2:]
        if rows != len(ids) or columns <= max(ids):
            need = "an engine of TensorRT-LLM needs gather_context_logits, and a server without enable_kv_cache_reuse"
            raise ValueError(f"{self._model} returned logits of {rows} tokens of {len(ids)}: {need}")
        return found.reshape(rows, columns)

    def _connection(self) -> tuple[Any, queue.Queue[Any]]:
        from tritonclient.grpc import InferenceServerClient

        if not hasattr(self._own, "pair"):
            client, replies = InferenceServerClient(self._url), queue.Queue[Any]()
            client.start_stream(lambda result, error: replies.put((result, error)))
            self._own.pair = client, replies
        found: tuple[Any, queue.Queue[Any]] = self._own.pair
        return found


def next_of(replies: queue.Queue[Any]) -> Any:
    """(result, error). Raises TimeoutError."""
    try:
        return replies.get(timeout=TIMEOUT_SECONDS)
    except queue.Empty:
        raise TimeoutError(f"no answer over gRPC in {TIMEOUT_SECONDS} s") from None


def inputs(ids: list[int]) -> list[Any]:
    """The tensors of a request for context logits; one token has to be generated."""
    import numpy as np
    from tritonclient.grpc import InferInput

    values = {"input_ids": [ids], "input_lengths": [[len(ids)]], "request_output_len": [[1]]}
    arrays = {name: np.array(value, np.int32) for name, value in values.items()}
    arrays["return_context_logits"] = np.ones((1, 1), np.bool_)
    made = []
    for name, array in arrays.items():
        made.append(InferInput(name, list(array.shape), "BOOL" if array.dtype == np.bool_ else "INT32"))
        made[-1].set_data_from_numpy(array)
    return made


def likely(logits: Any, ids: list[int]) -> Json:
    """Log-probabilities, in nats, of each id in its row of `logits`, and of the row's TOP likeliest tokens."""
    import numpy as np

    rows = logits.astype(np.float64)
    rows -= rows.max(-1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(-1, keepdims=True))
    best = np.argsort(-rows, axis=-1, kind="stable")[:, :TOP]
    tops = [[[int(token), round(float(row[token]), 6)] for token in top] for row, top in zip(rows, best, strict=True)]
    return {"ids": ids, "log_probs": [float(row[token]) for row, token in zip(rows, ids, strict=True)], "top": tops}


def _list(value: Any) -> list[Any]:
    """Triton's `generate` writes a tensor of one element without its list."""
    return value if isinstance(value, list) else [value]


def ask(served: Served, asked: list[Json], concurrency: int, out: Path) -> int:
    """Writes the answers in order while they come, and says how far it is. Returns how many failed."""
    failed, spoke = 0, time.monotonic()
    with out.open("w", encoding="utf-8") as lines, ThreadPoolExecutor(concurrency) as pool:
        for number, row in enumerate(pool.map(served.answer, asked), 1):
            print(json.dumps(row, ensure_ascii=False), file=lines, flush=True)
            failed += row["error"] is not None
            if row["error"] and failed == 1:
                print(f"warning: question {number} got no answer: {row['error']}", file=sys.stderr)
            if number == len(asked) or time.monotonic() - spoke > SPEAK_SECONDS:
                spoke = time.monotonic()
                print(f"  {number} of {len(asked)} answered" + (f", {failed} failed" if failed else ""), flush=True)
    return failed


@contextmanager
def server(tool: Path, repository: Path, out: Path) -> Iterator[tuple[str, str]]:
    """HOST:PORT of HTTP and of gRPC of a server on free ports, stopped by the kernel when this process dies.

    Its log goes to `out` in the end; of one that did not start it stays where the runner looks for logs.
    """
    folder = Path(tempfile.mkdtemp(prefix="doit_eval_"))
    log = folder / "server.log"
    argv = [sys.executable, "-I", str(tool), f"--repository=eval={repository}", f"--log={log}"]
    argv += [f"--state={folder / 'state.json'}", "--http-port=0", "--grpc-port=0", "--metrics-port=0"]
    die_too = partial(ctypes.CDLL(None).prctl, PR_SET_PDEATHSIG, signal.SIGTERM)
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, preexec_fn=die_too)  # noqa: PLW1509
    try:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            if line == "tritonserver: ready\n":
                break
        if not (folder / "state.json").is_file():
            raise Refused("the server did not start")  # serve.py has said why
        state = json.loads((folder / "state.json").read_text())
        yield f"{state['host']}:{state['http_port']}", f"{state['host']}:{state['grpc_port']}"
    finally:
        process.terminate()
        process.wait()
    shutil.move(log, out)
    shutil.rmtree(folder)


def run(args: argparse.Namespace) -> None:
    """Raises Refused when the data is wrong, the server does not start, or no question was answered."""
    asked = questions(args.data, args.column, args.expected, args.size, answered=args.answered or args.likelihood)
    answers = args.out / "answers.jsonl"
    with closing_server(args) as (url, grpc):
        served = Served(url, args.model, args.max_tokens, grpc if args.likelihood else "")
        failed = ask(served, asked, args.concurrency, answers)
    if failed == len(asked):
        raise Refused("no question was answered")


@contextmanager
def closing_server(args: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """The server that runs already, or one of our own: HTTP and gRPC."""
    if args.url:
        host, port = args.url.rpartition(":")[::2]
        try:
            with closing(HTTPConnection(host, int(port), timeout=10)) as connection:
                connection.connect()
        except (OSError, ValueError) as error:
            raise Refused(f"{args.url} does not answer\n    reason  {error}\n    hint: HOST:PORT of HTTP") from None
        yield args.url, args.grpc_url or f"{host}:{int(port) + 1}"
    else:
        with server(args.server, args.repository, args.out) as both:
            yield both


def main() -> int:
    """Exit 1 with what is wrong."""
    parser = argparse.ArgumentParser(description="Ask a served model.")
    for name in ("--data", "--out"):
        parser.add_argument(name, type=lambda text: Path(text).absolute(), required=True)
    for name in ("--repository", "--server"):
        parser.add_argument(name, type=lambda text: Path(text).absolute())
    for name, default in (
        ("--url", ""),
        ("--grpc-url", ""),
        ("--model", "ensemble"),
        ("--column", ""),
        ("--expected", ""),
    ):
        parser.add_argument(name, default=default)
    for name, preset in (("--size", None), ("--max-tokens", 64), ("--concurrency", 8)):
        parser.add_argument(name, type=int, default=preset)
    parser.add_argument("--answered", action="store_true", help="every question must have an expected answer")
    parser.add_argument("--likelihood", action="store_true", help="measure the expected answers too")
    args = parser.parse_args()
    try:
        run(args)
    except Refused as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
