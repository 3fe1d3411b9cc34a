"""The smoke test: serves a Triton model repository with serve.py and asserts what a user relies on.

    probe.py --repository DIR --source DIR --server PATH_OF_serve.py --out DIR

Writes OUT/transcript.jsonl, what was sent and what came back per assertion, and OUT/summary.txt, a question with its
answer. SOURCE/questions.jsonl, `{"text_input", "expected"}` per line, is what greedy decoding must answer; a source
without it is asked questions of our own, and only consistency is asserted. The five models and their tensors are
those of TensorRT-LLM's inflight_batcher_llm.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from queue import Empty, Queue
from typing import Any
from unittest import SkipTest

OWN_QUESTIONS = [{"text_input": text} for text in ("What is a KV cache?", "蜜蜂做什么？🐝", "How do bees fly?")]
TYPES: dict[str, Any] = {"BYTES": object, "INT32": "int32", "BOOL": bool}
TIMEOUT_SECONDS, SETTLE_SECONDS = 120, 60  # of an answer; of what the server does on its own once a client has gone
SHOWN = 1500  # characters of what was sent and of what came back, in a failure
TOGETHER = 8  # requests
RESPONSES, REQUESTS = "nv_inference_count", "nv_inference_request_success"  # Triton's counters
PR_SET_PDEATHSIG = 1  # linux/prctl.h

Json = dict[str, Any]
Inputs = list[tuple[str, str, list[Any]]]  # name, type, values


def expect(holds: object, message: str) -> None:
    """Raises AssertionError, also under -O, unless `holds`."""
    if not holds:
        raise AssertionError(message)


class Probe:
    """A running server, what is known about its model, and every exchange with it."""

    def __init__(self, state: Json, repository: Path, source: Path) -> None:
        self.host, self.ports = state["host"], {name: state[f"{name}_port"] for name in ("http", "grpc", "metrics")}
        self.exchanges: list[Json] = []
        engine = repository / "tensorrt_llm/1/engine/engine.json"
        limits = json.loads(engine.read_text()) if engine.is_file() else {}
        self.max_input_len = int(limits.get("max_input_len", 4096))
        self.max_tokens = min(int(limits.get("max_output_len", 64)), 128)
        lines = [line for path in source.glob("questions.jsonl") for line in path.read_text("utf-8").split("\n")]
        self.questions: list[Json] = [json.loads(line) for line in lines if line.strip()] or OWN_QUESTIONS
        self.question = str(self.questions[0]["text_input"])

    def http(self, path: str, body: Json | None = None, port: str = "http") -> tuple[int, str]:
        """(status, text) of one request, recorded. OSError when the server is gone."""
        with closing(HTTPConnection(self.host, self.ports[port], timeout=TIMEOUT_SECONDS)) as connection:
            connection.request("POST" if body else "GET", path, json.dumps(body) if body else None)
            response = connection.getresponse()
            status, text = response.status, response.read().decode("utf-8")
        if port != "metrics":
            self.record({"path": path, "body": body}, {"status": status, "text": text})
        return status, text

    def record(self, sent: object, received: object) -> None:
        """Keeps an exchange for the transcript."""
        self.exchanges.append({"sent": sent, "received": received})

    def generate(self, model: str, text: str, **fields: Any) -> Json:
        """The response to a non-streamed request; the prompt is left out of the answer unless asked for."""
        status, answer = self.http(f"/v2/models/{model}/generate", self.body(text, **fields))
        expect(status == 200, f"HTTP status {status}")
        return dict(json.loads(answer))

    def answer(self, text: str, model: str = "ensemble", **fields: Any) -> str:
        """The text of a non-streamed answer."""
        return str(self.generate(model, text, **fields)["text_output"])

    def stream(self, text: str, model: str = "ensemble", **fields: Any) -> list[str]:
        """The pieces of a streamed answer, through generate_stream (server-sent events)."""
        status, events = self.http(f"/v2/models/{model}/generate_stream", self.body(text, stream=True, **fields))
        expect(status == 200, f"HTTP status {status}")
        pieces = [json.loads(line.removeprefix("data:")) for line in events.split("\n") if line.startswith("data:")]
        expect(all("error" not in piece for piece in pieces), "an error within the stream")
        return [str(piece["text_output"]) for piece in pieces]

    def body(self, text: str, **fields: Any) -> Json:
        """A request in the flat form; what `fields` names overrides the defaults."""
        return {"text_input": text, "max_tokens": self.max_tokens, "exclude_input_in_output": True, **fields}

    def counter(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry `labels` (Prometheus text format)."""
        _, text = self.http("/metrics", port="metrics")
        samples = re.findall(rf"^{name}{{(.*)}} (\S+)$", text, re.MULTILINE)
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        return sum(float(value) for found, value in samples if all(label in found for label in wanted))

    def active(self) -> float:
        """Sequences that the engine has accepted and not ended."""
        return self.counter("nv_trt_llm_request_metrics", model="tensorrt_llm", request_type="active")

    def settles(self, value: Callable[[], float], holds: Callable[[float], bool]) -> float:
        """Polls `value` until it `holds` or SETTLE_SECONDS are over; returns the last one."""
        end = time.monotonic() + SETTLE_SECONDS
        while not holds(now := value()) and time.monotonic() < end:
            time.sleep(0.01)
        return now

    def need_streams(self) -> None:
        """Skips where the repository is configured to send one response per request."""
        config = json.loads(self.http("/v2/models/tensorrt_llm/config")[1])
        if not config.get("model_transaction_policy", {}).get("decoupled"):
            raise SkipTest("decoupled_mode is false: no streams")


def open_stream(probe: Probe, model: str, inputs: Inputs) -> tuple[Any, Queue[tuple[Any, Any]]]:
    """(client, queue of (result, error)) of one request over gRPC, every tensor of shape [1, n]."""
    import numpy as np
    from tritonclient import grpc

    client = grpc.InferenceServerClient(f"{probe.host}:{probe.ports['grpc']}")
    responses: Queue[tuple[Any, Any]] = Queue()
    client.start_stream(lambda result, error: responses.put((result, error)))
    tensors = [grpc.InferInput(name, [1, len(values)], kind) for name, kind, values in inputs]
    for tensor, (_, kind, values) in zip(tensors, inputs, strict=True):
        tensor.set_data_from_numpy(np.array([values], dtype=TYPES[kind]))
    client.async_stream_infer(model, tensors, enable_empty_final_response=True)
    return client, responses


def infer(probe: Probe, model: str, inputs: Inputs, output: str) -> list[list[Any]]:
    """One output, flat, of each response until the final one."""
    client, responses = open_stream(probe, model, inputs)
    received: list[list[Any]] = []
    probe.record({"grpc": model, "inputs": inputs}, received)
    while True:
        result, error = responses.get(timeout=TIMEOUT_SECONDS)
        expect(not error, f"gRPC error: {error}")
        if (array := result.as_numpy(output)) is not None:
            received.append([v.decode() if isinstance(v, bytes) else v for v in array.ravel().tolist()])
        if result.get_response().parameters["triton_final_response"].bool_param:
            client.stop_stream()
            return received


def streaming(text: str, **numbers: int) -> Inputs:
    """What asks the ensemble for a stream, which never echoes."""
    asked = [(name, "INT32", [number]) for name, number in numbers.items()]
    return [("text_input", "BYTES", [text]), ("stream", "BOOL", [True]), *asked]


def health_and_models_are_ready(probe: Probe) -> None:
    """The server is alive and ready, and so is each of the five models."""
    models = ("preprocessing", "tensorrt_llm", "postprocessing", "ensemble", "tensorrt_llm_bls")
    for path in ("health/live", "health/ready", *(f"models/{model}/ready" for model in models)):
        expect(probe.http(f"/v2/{path}")[0] == 200, f"{path} is not ready")


def ensemble_config(probe: Probe) -> None:
    """The config shows the public inputs and outputs."""
    config = json.loads(probe.http("/v2/models/ensemble/config")[1])
    names = {tensor["name"] for tensor in config["input"] + config["output"]}
    missing = {"text_input", "max_tokens", "stream", "stop_words", "end_id", "text_output"} - names
    expect(config["name"] == "ensemble" and not missing, f"missing: {sorted(missing)}")


def expected_answers(probe: Probe) -> None:
    """Each question gets its expected answer; without expectations, each gets the same answer twice."""
    for question in probe.questions:
        reply = probe.generate("ensemble", question["text_input"], return_num_output_tokens=True)
        expected = question.get("expected") or probe.answer(question["text_input"])
        text = reply["text_output"]
        if reply["num_output_tokens"] >= probe.max_tokens:  # cut short by the shape, perhaps within a character
            text, expected = text.rstrip("\ufffd"), expected[: len(text.rstrip("\ufffd"))]
        expect(text == expected, f"{text!r} is not {expected!r}")


def nested_parameters(probe: Probe) -> None:
    """Fields below "parameters" mean the same as flat ones."""
    flat = probe.body(probe.question, max_tokens=4)
    nested = {"text_input": flat.pop("text_input"), "parameters": flat}
    text = probe.http("/v2/models/ensemble/generate", nested)[1]
    expect(json.loads(text)["text_output"] == probe.answer(nested["text_input"], max_tokens=4), "another text")


def stream_equals_whole(probe: Probe) -> None:
    """Pieces over HTTP and gRPC add up to the whole text, CJK and emoji included, without a replacement character."""
    probe.need_streams()
    for question in probe.questions:
        whole = probe.answer(question["text_input"])
        inputs = streaming(question["text_input"], max_tokens=probe.max_tokens)
        over_grpc = [piece[0] for piece in infer(probe, "ensemble", inputs, "text_output")]
        for pieces in (probe.stream(question["text_input"]), over_grpc):
            expect("".join(pieces) == whole, f"{''.join(pieces)!r} is not {whole!r}")
            expect("expected" not in question or "\ufffd" not in whole, "U+FFFD in the text")
            expect(len(pieces) > 1 or len(whole) < 8, "one piece only: not a stream")


def stop_word(probe: Probe) -> None:
    """Text ends at a stop word, given as a string or as a list."""
    whole = probe.answer(probe.question)
    word = re.search(r"(?<=..)[A-Za-z]{2,}", whole)
    if word is None:
        raise SkipTest(f"no word to stop at in {whole!r}")
    for given in (word[0], [word[0], "never said"]):
        cut = probe.answer(probe.question, stop_words=given)
        expect(cut == whole[: word.start()], f"{cut!r} does not end at {word[0]!r} in {whole!r}")


def end_id(probe: Probe) -> None:
    """Generation ends at the token given as end_id, which the text leaves out."""
    asked: Inputs = [("QUERY", "BYTES", [probe.question]), ("REQUEST_OUTPUT_LEN", "INT32", [probe.max_tokens])]
    prompt = infer(probe, "preprocessing", asked, "INPUT_ID")[0]
    inputs: Inputs = [("input_ids", "INT32", prompt), ("input_lengths", "INT32", [len(prompt)])]
    inputs += [("request_output_len", "INT32", [probe.max_tokens]), ("exclude_input_in_output", "BOOL", [True])]
    ids = infer(probe, "tensorrt_llm", inputs, "output_ids")[0]
    place = max(ids.index(token) for token in ids[:-1] or ids)
    expected = probe.answer(probe.question, max_tokens=place) if place else ""
    cut = probe.answer(probe.question, end_id=ids[place])
    expect(cut == expected, f"end_id {ids[place]} gave {cut!r}, expected {expected!r}")


def max_tokens_is_honoured(probe: Probe) -> None:
    """No more tokens than asked for, and they are the beginning of the answer."""
    reply = probe.generate("ensemble", probe.question, max_tokens=2, end_id=-1, return_num_output_tokens=True)
    expect(reply["num_output_tokens"] == 2, f"{reply['num_output_tokens']} tokens instead of 2")
    expect(probe.answer(probe.question, end_id=-1).startswith(reply["text_output"].rstrip("\ufffd")), "another text")


def too_long_prompt_is_refused(probe: Probe) -> None:
    """A prompt beyond max_input_len is an error with the numbers, and the server goes on."""
    status, text = probe.http("/v2/models/ensemble/generate", probe.body("bee " * (2 * probe.max_input_len)))
    expect(status >= 400 and re.search(r"\d", json.loads(text)["error"]), "no error with numbers")
    probe.answer(probe.question)


def three_streams_in_a_row(probe: Probe) -> None:
    """A stream leaves nothing behind that would change the next."""
    probe.need_streams()
    texts = {"".join(probe.stream(probe.question)) for _ in range(3)}
    expect(len(texts) == 1, f"different texts: {texts}")


def eight_in_flight_together(probe: Probe) -> None:
    """Eight requests are in the engine at the same time, and each gets its own answer."""
    asked = [probe.questions[i % len(probe.questions)] for i in range(TOGETHER)]
    most, rounds = 0.0, 5  # a small model may be through before the last of eight has been sent
    while most < TOGETHER and (rounds := rounds - 1):
        with ThreadPoolExecutor(TOGETHER) as pool:
            futures = [pool.submit(probe.answer, question["text_input"], end_id=-1) for question in asked]
            while not all(future.done() for future in futures):
                most = max(most, probe.active())
    probe.record({"requests at once": TOGETHER}, {"most active in the engine": most})
    expect(most == TOGETHER, f"at most {most:.0f} of {TOGETHER} were active together")
    for question, future in zip(asked, futures, strict=True):
        expected = question.get("expected", future.result())
        begin = future.result()[: len(expected)].rstrip("\ufffd")
        expect(expected.startswith(begin), f"{begin!r} is not {expected!r}")


def echo(probe: Probe) -> None:
    """The prompt is in the answer when it is not excluded, and only then."""
    without = probe.answer(probe.question, exclude_input_in_output=True)
    with_it = probe.answer(probe.question, exclude_input_in_output=False)
    expect(probe.question not in without, "the prompt is in the answer although it is excluded")
    expect(with_it.startswith(probe.question) and with_it.endswith(without), f"no echo in {with_it!r}")


def cancelled_streams_free_their_slots(probe: Probe) -> None:
    """Clients that go away stop their sequences: fewer responses are made than asked for, and none is active."""
    probe.need_streams()
    before = probe.counter(RESPONSES, model="postprocessing")
    inputs = streaming(probe.question, max_tokens=probe.max_tokens, end_id=-1)
    streams = [open_stream(probe, "ensemble", inputs) for _ in range(TOGETHER)]
    streams[0][1].get(timeout=TIMEOUT_SECONDS)
    for client, _ in streams:
        client.stop_stream(cancel_requests=True)
    left = probe.settles(probe.active, lambda active: active == 0)
    asked, done = TOGETHER * probe.max_tokens, probe.counter(RESPONSES, model="postprocessing") - before
    probe.record({"streams cancelled": TOGETHER}, {"active": left, "responses": done, "asked for": asked})
    expect(left == 0, f"{left:.0f} sequences are still active after {SETTLE_SECONDS} s")
    expect(done < asked or probe.max_tokens < 32, f"all {asked} responses were made")
    probe.answer(probe.question)


def bls_equals_ensemble(probe: Probe) -> None:
    """The model tensorrt_llm_bls gives the ensemble's answers."""
    for question in probe.questions[:8]:
        whole = probe.answer(question["text_input"])
        through = probe.answer(question["text_input"], model="tensorrt_llm_bls")
        expect(through == whole, f"{through!r} is not {whole!r}")


def counters_move(probe: Probe) -> None:
    """A request is counted."""
    before = probe.counter(REQUESTS, model="ensemble")
    probe.answer(probe.question)
    after = probe.settles(lambda: probe.counter(REQUESTS, model="ensemble"), lambda now: now > before)
    expect(after > before, f"{REQUESTS} stayed at {before:.0f}")


ASSERTIONS: tuple[Callable[[Probe], None], ...] = (
    health_and_models_are_ready, ensemble_config, counters_move, expected_answers, nested_parameters,
    stream_equals_whole, stop_word, end_id, max_tokens_is_honoured, too_long_prompt_is_refused, three_streams_in_a_row,
    eight_in_flight_together, echo, cancelled_streams_free_their_slots, bls_equals_ensemble,
)  # fmt: skip


def attempt(assertion: Callable[[Probe], None], probe: Probe) -> str:
    """Runs one assertion. Returns what is wrong, or an empty string; a missing field is a wrong answer too."""
    from tritonclient.utils import InferenceServerException

    verdict, wrong = "ok      ", ""
    try:
        assertion(probe)
    except SkipTest as reason:
        verdict = f"skipped ({reason})"
    except (AssertionError, OSError, HTTPException, InferenceServerException, Empty, ValueError, LookupError) as why:
        verdict, wrong = "FAILED  ", f"{type(why).__name__}: {why}"
    print(f"  {verdict} {assertion.__name__}")
    return wrong


def complain(assertion: str, wrong: str, exchanges: list[Json]) -> None:
    """Says on stderr what does not hold, what was sent last, and what came back."""
    facts = {name: json.dumps(value, ensure_ascii=False) for name, value in [{}, *exchanges][-1].items()}
    lines = [f"    {name:8}  {text[:SHOWN]}" for name, text in {"what": wrong, **facts}.items()]
    print(f"error: smoke test: {assertion} does not hold", *lines, sep="\n", file=sys.stderr, flush=True)


def assert_all(probe: Probe, transcript: Path) -> int:
    """Runs every assertion, until the server is down, and records each. Returns how many do not hold."""
    failed = 0
    with transcript.open("w", encoding="utf-8") as lines:
        for assertion in ASSERTIONS:
            probe.exchanges = []
            wrong = attempt(assertion, probe)
            result = {"assertion": assertion.__name__, "wrong": wrong, "exchanges": probe.exchanges}
            print(json.dumps(result, ensure_ascii=False), file=lines, flush=True)
            if wrong:
                failed += 1
                complain(assertion.__name__, wrong, probe.exchanges)
                if attempt(health_and_models_are_ready, probe):
                    break
    return failed


def start(server: Path, repository: Path, folder: Path) -> subprocess.Popen[str]:
    """Starts serve.py on free ports, to be stopped by the kernel when this process dies; shows its progress."""
    argv = [sys.executable, "-I", str(server), f"--repository=smoke={repository}", f"--log={folder / 'server.log'}"]
    argv += [f"--state={folder / 'state.json'}", "--http-port=0", "--grpc-port=0", "--metrics-port=0"]
    die_too = partial(ctypes.CDLL(None).prctl, PR_SET_PDEATHSIG, signal.SIGTERM)
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, preexec_fn=die_too)  # noqa: PLW1509
    for line in process.stdout or ():
        print(line, end="")
        if line == "tritonserver: ready\n":
            break
    return process


def main() -> int:
    """Exit 1 when the server does not start or an assertion does not hold; all are tried."""
    parser = argparse.ArgumentParser(description="Smoke test of a Triton model repository.")
    for name in ("--repository", "--source", "--server", "--out"):
        parser.add_argument(name, type=lambda text: Path(text).absolute(), required=True)
    args = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    folder = Path(tempfile.mkdtemp(prefix="doit_smoke_"))
    process = start(args.server, args.repository, folder)
    try:
        if not (folder / "state.json").is_file():
            return 1  # serve.py has said why, and where its log is
        probe = Probe(json.loads((folder / "state.json").read_text()), args.repository, args.source)
        failed = assert_all(probe, args.out / "transcript.jsonl")
        print(f"{len(ASSERTIONS)} assertions, {failed} failed")
        summary = "" if failed else f"Q: {probe.question}\nA: {probe.answer(probe.question).strip()}\n"
    finally:
        process.terminate()
        process.wait()
    if failed:
        tail = (folder / "server.log").read_text(errors="replace").splitlines()[-8:]
        print("    server log", folder / "server.log", *tail, sep="\n    ", file=sys.stderr)
        return 1
    (args.out / "summary.txt").write_text(summary, encoding="utf-8")
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
