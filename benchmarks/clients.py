"""The contestants of serving.py: the engine in this process, and a running server with its gRPC client."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient import grpc

__all__ = ["SILENCE_S", "Direct", "Served", "Server"]

SERVE = Path(__file__).parents[1] / "rules/tools/serve.py"
SILENCE_S = 60  # of a server, before it is given up
TICK = os.sysconf("SC_CLK_TCK")


class Direct:
    """OpenVINO GenAI with the template's own settings, stepped here."""

    def __init__(self, repository: Path) -> None:
        model = repository / "tensorrt_llm/1"
        sys.path.insert(0, str(model))
        from engine import Engine  # type: ignore[import-not-found]
        from sampling import Sampling, generation_config  # type: ignore[import-not-found]
        from settings import load_settings  # type: ignore[import-not-found]
        from tokenizers import Tokenizer

        engine = Engine(model / "engine", load_settings(model / "engine", triton_config(model.parent)))
        self._openvino, self._pipeline = engine.openvino, engine.load()
        self._tokenizer = Tokenizer.from_file(str(model / "tokenizer/tokenizer.json"))
        shape = json.loads((model / "engine/engine.json").read_text())
        self._config = lambda osl: generation_config(
            engine.genai, Sampling(max_tokens=osl, min_tokens=osl, end_ids=tuple(shape["eos_token_ids"][:1]))
        )
        self._number = 0

    def cpu(self) -> dict[str, float]:
        """CPU seconds of this process so far."""
        return {"tensorrt_llm": time.process_time()}

    def generate(self, texts: list[str], osl: int) -> int:
        """Generates for all at once; returns the tokens that came."""
        handles = [self._add(text, osl) for text in texts]
        count = 0
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            for handle in handles:
                if handle.can_read():
                    count += sum(len(one.generated_ids) for one in handle.read().values())
        return count

    def first_token(self, text: str) -> float:
        """Seconds until the first token of one request can be read."""
        began = time.perf_counter()
        handle = self._add(text, 4)
        self._pipeline.step()
        while not handle.can_read():
            self._pipeline.step()
        took = time.perf_counter() - began
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        return took

    def _add(self, text: str, osl: int) -> Any:
        ids = np.array([self._tokenizer.encode(text).ids], np.int64)
        self._number += 1
        return self._pipeline.add_request(self._number, self._openvino.Tensor(ids), self._config(osl))


def triton_config(model: Path) -> dict[str, Any]:
    """A config.pbtxt as the dict that Triton hands a Python model."""
    from google.protobuf import json_format, text_format
    from tritonclient.grpc import model_config_pb2

    config = text_format.Parse((model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    plain: dict[str, Any] = json_format.MessageToDict(config, preserving_proto_field_name=True)
    for parameter in plain["parameters"].values():
        parameter.setdefault("string_value", "")
    return plain


class Server:
    """serve.py with one repository, and the CPU time of its processes."""

    def __init__(self, repository: Path, folder: Path) -> None:
        state = folder / "state.json"
        argv = [sys.executable, "-I", str(SERVE), f"--repository=bench={repository}", f"--log={folder / 'server.log'}"]
        argv += ["--http-port=0", "--grpc-port=0", "--metrics-port=0", f"--state={state}"]
        self._process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
        while not state.exists():
            if self._process.poll() is not None:
                sys.exit((folder / "server.log").read_text()[-3000:])
            time.sleep(0.2)
        told = json.loads(state.read_text())
        self.grpc = f"{told['host']}:{told['grpc_port']}"

    def cpu(self) -> dict[str, float]:
        """CPU seconds so far by process: tritonserver, and the stub of each model."""
        found: dict[str, float] = {}
        for pid in descendants(self._process.pid):
            name = role(pid)
            found[name] = found.get(name, 0.0) + seconds(pid)
        return found

    def stop(self) -> None:
        """Ends it."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)


def descendants(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for child in found:
        for children in Path(f"/proc/{child}/task").glob("*/children"):
            found += map(int, children.read_text().split())
    return found


def role(pid: int) -> str:
    """The model that a stub runs, else the program's name."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    program = Path(words[0]).name
    return Path(words[1]).parents[1].name if program.startswith("triton_python") else program


def seconds(pid: int) -> float:
    """User and system time, to the kernel's tick of 10 ms (proc(5), stat fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


class Served:
    """A model behind the server, asked over gRPC; a stream and a thread per request in flight."""

    def __init__(self, server: Server, model: str, *, stream: bool) -> None:
        self._server, self._model, self._stream = server, model, stream
        self._threads = ThreadPoolExecutor(64)
        self._callers: list[Caller] = []

    def cpu(self) -> dict[str, float]:
        """CPU seconds of the server's processes so far."""
        return self._server.cpu()

    def generate(self, texts: list[str], osl: int) -> int:
        """Generates for all at once; returns the tokens that came."""
        while len(self._callers) < len(texts):
            self._callers.append(Caller(self._server.grpc, self._model))
        calls = zip(self._callers, texts, strict=False)
        done = [self._threads.submit(caller.ask, text, osl, stream=self._stream) for caller, text in calls]
        return sum(one.result()[0] for one in done)

    def first_token(self, text: str) -> float:
        """Seconds until the first text of one request."""
        self._callers = self._callers or [Caller(self._server.grpc, self._model)]
        return self._callers[0].ask(text, 4, stream=self._stream)[1]


class Caller:
    """One gRPC stream, one request at a time."""

    def __init__(self, url: str, model: str) -> None:
        self._model = model
        self._responses: queue.Queue[tuple[Any, Any]] = queue.Queue()
        self._client = grpc.InferenceServerClient(url)
        self._client.start_stream(lambda result, error: self._responses.put((result, error)))

    def ask(self, text: str, osl: int, *, stream: bool) -> tuple[int, float]:
        """(output tokens as the server counts them, seconds until the first text)."""
        inputs = [
            tensor("text_input", "BYTES", text.encode()),
            tensor("max_tokens", "INT32", osl),
            tensor("min_tokens", "INT32", osl),
            tensor("stream", "BOOL", stream),
            tensor("return_num_output_tokens", "BOOL", True),  # noqa: FBT003
        ]
        began = time.perf_counter()
        self._client.async_stream_infer(self._model, inputs, enable_empty_final_response=True)
        count, first = 0, 0.0
        while True:
            result, error = self._responses.get(timeout=SILENCE_S)
            if error:
                raise RuntimeError(str(error))
            number = result.as_numpy("num_output_tokens")
            if number is not None:
                count, first = int(number.ravel()[0]), first or time.perf_counter() - began
            if result.get_response().parameters["triton_final_response"].bool_param:
                return count, first


def tensor(name: str, kind: str, value: object) -> Any:
    """An input of one element, shape [1, 1]."""
    made = grpc.InferInput(name, [1, 1], kind)
    made.set_data_from_numpy(np.array([[value]], {"BYTES": object, "INT32": np.int32, "BOOL": np.bool_}[kind]))
    return made
