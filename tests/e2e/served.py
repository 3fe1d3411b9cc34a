"""Untrained tiny models behind a real Triton server, and clients for it. Slow to make: one server per test session."""

from __future__ import annotations

import json
import queue
import shutil
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient import grpc

from tests.serving import Server, until
from tests.tools.test_harness import tool as harness
from tests.tools.test_render import SETTINGS

PROJECT = Path(__file__).parents[2]
LIMITS = {"batch_size": 8, "input_len": 120, "num_tokens": 256}
OUTPUT_LEN = {"gpt2": 880, "llama": 20_000}


def tool(name: str, *arguments: str) -> None:
    """Run one of our tools; its own words are the failure."""
    argv = [sys.executable, "-I", str(PROJECT / "rules/tools" / f"{name}.py"), *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def without_end(checkpoint: Path, out: Path) -> Path:
    """An IR whose positions do not end, as rotary ones can be: a request of it can outlast every test."""
    shutil.copytree(checkpoint, out)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 1 << 20}))
    return out


def tokenizer(source: Path, out: Path) -> Path:
    """The tokenizer files of a checkpoint, alone."""
    out.mkdir(parents=True)
    for file in source.glob("token*"):
        shutil.copy(file, out)
    return out


def repository(engine: Path, tokenizer: Path, out: Path, **settings: str) -> Path:
    """A model repository with the golden settings, but one of each process."""
    counts = dict.fromkeys(("preprocessing_instance_count", "postprocessing_instance_count"), "1")
    values = {**SETTINGS, **counts, "max_queue_size": "0", "max_beam_width": "4", **settings}
    out.mkdir(parents=True)
    templates = [f"--templates={PROJECT / 'templates' / name}" for name in ("triton", "openvino")]
    places = [f"--engine={engine}", f"--tokenizer={tokenizer}", f"--out={out}"]
    contract = f"--contract={PROJECT / 'rules/releases/main.json'}"
    tool("render", *templates, contract, *places, *(f"--set={name}={value}" for name, value in values.items()))
    return out


class Client:
    """Requests to one running server."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.state = server.ready()

    def generate(self, model: str, **fields: Any) -> dict[str, Any]:
        """The JSON of /generate; an error is {"error": ...}."""
        answer: dict[str, Any] = json.loads(self._post(f"/v2/models/{model}/generate", fields))
        return answer

    def stream(self, model: str, **fields: Any) -> list[dict[str, Any]]:
        """The events of /generate_stream."""
        text = self._post(f"/v2/models/{model}/generate_stream", {"stream": True, **fields})
        return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line]

    def _post(self, path: str, body: dict[str, Any]) -> str:
        url = f"http://{self.state['host']}:{self.state['http_port']}{path}"
        try:
            with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()), timeout=300) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                return error.read().decode()

    def at(self, purpose: str) -> str:
        """HOST:PORT of `http` or `grpc`."""
        return f"{self.state['host']}:{self.state[f'{purpose}_port']}"

    def scores(self, variant: str) -> Any:
        """harness.py's own, of one variant."""
        tokens = harness.Tokens(self.at("http"), f"preprocessing__{variant}", None)
        return harness.Scores(tokens, harness.Engine(self.at("grpc"), f"tensorrt_llm__{variant}"), 120, 4)

    def grpc(self) -> Any:
        """A gRPC client, to be closed."""
        return closing(grpc.InferenceServerClient(self.at("grpc")))

    def over_grpc(self, model: str, **arrays: Any) -> Iterator[Any]:
        """Responses of one request, until the final one; an error is the last item."""
        found: queue.Queue[Any] = queue.Queue()
        with self.grpc() as client:
            client.start_stream(lambda result, error: found.put(error or result))
            client.async_stream_infer(
                model, [tensor(*item) for item in arrays.items()], enable_empty_final_response=True
            )
            while True:
                item = found.get(timeout=300)
                if isinstance(item, Exception):
                    yield item
                    return
                if item.get_response().outputs:
                    yield item
                if item.get_response().parameters["triton_final_response"].bool_param:
                    return

    @contextmanager
    def busy(self, model: str, **arrays: Any) -> Iterator[None]:
        """Always has one such request in flight, until its cancellation at the end."""
        inputs, over = [tensor(*item) for item in arrays.items()], threading.Event()

        def ask(result: Any = None, error: Any = None) -> None:
            if not over.is_set():
                connection.async_stream_infer(model, inputs)

        with self.grpc() as connection:
            connection.start_stream(ask)
            ask()
            yield
            over.set()
            connection.stop_stream(cancel_requests=True)

    def abandon_http(self, path: str, events: int = 1, **fields: Any) -> None:
        """Send a request, read so many events, and hang up."""
        body = json.dumps(fields).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        with socket.create_connection((self.state["host"], self.state["http_port"]), timeout=60) as connection:
            connection.sendall(head + body)
            for _ in range(events):
                connection.recv(4096)

    def gauge(self, model: str, request_type: str) -> float:
        """One sample of nv_trt_llm_request_metrics."""
        url = f"http://{self.state['host']}:{self.state['metrics_port']}/metrics"
        with urllib.request.urlopen(url, timeout=60) as answer:
            lines = [line for line in answer.read().decode().splitlines() if line.startswith("nv_trt_llm_request")]
        wanted = [line for line in lines if f'"{request_type}"' in line and f'model="{model}"' in line]
        return float(wanted[0].split()[-1])

    def idle(self, model: str, seconds: float) -> bool:
        """Whether the engine becomes idle in time."""
        until(lambda: self.gauge(model, "active") == 0, seconds)
        return self.gauge(model, "active") == 0


KINDS = {bool: ("BOOL", np.bool_), int: ("INT32", np.int32), float: ("FP32", np.float32), bytes: ("BYTES", np.object_)}


def tensor(name: str, value: Any) -> Any:
    """An input of one row (of several for a nested list); its type from the first value."""
    rows = value if isinstance(value, list) else [value]
    rows = rows if isinstance(rows[0], list) else [rows]
    first = rows[0][0] if rows[0] else 0
    kind, dtype = ("UINT64", np.uint64) if name == "seed" else KINDS[type(first)]
    array = np.array(rows, dtype)
    found = grpc.InferInput(name, array.shape, kind)
    found.set_data_from_numpy(array)
    return found
