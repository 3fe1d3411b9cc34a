"""The two ways of asking: Triton's tensors, over gRPC or as JSON, and OpenAI's API. A body out, a text back."""

from __future__ import annotations

import json
import multiprocessing as mp
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

import wire
from grpc_stream import GrpcStream
from prompts import Prompt

Json = dict[str, Any]
TYPES = {"INT32": "<i4", "INT64": "<i8", "UINT32": "<u4", "UINT64": "<u8", "FP32": "<f4", "FP64": "<f8", "BOOL": "?"}
_MINIMUM = ("min_tokens", "min_length")  # newer and older releases of TensorRT-LLM's backend


class Unasked(Exception):
    """The server or the model is not one that can be asked so: the user's to mend."""


@dataclass(frozen=True)
class Heard:
    """What an answer's bytes say: texts[i] came at times[i]; tokens as the server counts them, if it does."""

    times: list[int]
    texts: list[str]
    output_tokens: int | None = None
    input_tokens: int | None = None
    finish: str | None = None
    error: str = ""


class Triton:
    """A model with the inputs `text_input` and `max_tokens` and the output `text_output`, as the ensemble has them."""

    def __init__(self, settings: Mapping[str, Any], inputs: Mapping[str, tuple[str, list[int]]]) -> None:
        self._model, self._stream, self._fixed = settings["model"], settings["stream"], settings["fixed"]
        self._counted = settings["counting"] == "server"
        self._inputs = inputs
        self.grpc = settings["endpoint"] == "grpc"
        self._host, self._url = settings["grpc"], settings["http"]

    def asked(self, prompt: Prompt) -> Json:
        """The inputs of a request, those that the model has."""
        values: Json = {"text_input": prompt.text, "max_tokens": prompt.max_tokens, "stream": self._stream}
        values["exclude_input_in_output"] = True
        if self._counted:
            values["return_num_output_tokens"] = True
        if self._fixed:
            name = next((one for one in _MINIMUM if one in self._inputs), None)
            values |= {name: prompt.max_tokens} if name else {}
        return {name: value for name, value in values.items() if name in self._inputs}

    def body(self, prompt: Prompt) -> bytes:
        """The request as it goes over the wire."""
        return self._tensors(prompt) if self.grpc else json.dumps(self.asked(prompt)).encode()

    def _tensors(self, prompt: Prompt) -> bytes:
        import numpy as np
        from tritonclient.grpc import service_pb2

        request = service_pb2.ModelInferRequest(model_name=self._model)
        request.parameters["triton_enable_empty_final_response"].bool_param = True
        for name, value in self.asked(prompt).items():
            datatype, shape = self._inputs[name]
            request.inputs.add(name=name, datatype=datatype, shape=[1 for _ in shape])
            if datatype == "BYTES":
                text = str(value).encode()
                request.raw_input_contents.append(len(text).to_bytes(4, "little") + text)
            else:
                request.raw_input_contents.append(np.array([value], TYPES[datatype]).tobytes())
        return bytes(request.SerializeToString())

    def connection(self) -> wire.Connection:
        """A new connection."""
        if self.grpc:
            return GrpcStream(self._host)
        method = "generate_stream" if self._stream else "generate"
        return wire.Http(f"{self._url}/v2/models/{self._model}/{method}")

    def hear(self, one: wire.Sent) -> Heard:
        """The texts of an answer. Empty ones before the first text are no first token; later ones count, as in
        GenAI-Perf: the answer has not ended before them.
        """
        found: list[tuple[int, str]] = []
        error, tokens = "", None
        for time, raw in zip(one.times, one.raw, strict=True):
            data = wire.outputs(raw) if self.grpc else wire.event(raw) or {}
            error = error or str(data.get("error", ""))
            tokens = data.get("num_output_tokens", tokens)  # of a stream, so far
            text = data.get("text_output")
            if text or (found and text is not None):
                found.append((time, str(text)))
        times, texts = [time for time, _ in found], [text for _, text in found]
        return Heard(times=times, texts=texts, output_tokens=tokens, error=error)


class OpenAi:
    """A server with OpenAI's completions or chat completions."""

    grpc = False

    def __init__(self, settings: Mapping[str, Any], key: str) -> None:
        self._settings, self._chat = settings, settings["endpoint"] == "chat"
        self._headers = (f"Authorization: Bearer {key}",) if key else ()

    def asked(self, prompt: Prompt) -> Json:
        """The request; `min_tokens` and `ignore_eos` are vLLM's, and TensorRT-LLM's."""
        said: Json = {"messages": [{"role": "user", "content": prompt.text}]} if self._chat else {"prompt": prompt.text}
        values = {"model": self._settings["model"], "max_tokens": prompt.max_tokens, "temperature": 0, **said}
        if self._settings["stream"]:
            values |= {"stream": True, "stream_options": {"include_usage": True}}
        return values | ({"ignore_eos": True, "min_tokens": prompt.max_tokens} if self._settings["fixed"] else {})

    def body(self, prompt: Prompt) -> bytes:
        """The request as it goes over the wire."""
        return json.dumps(self.asked(prompt)).encode()

    def connection(self) -> wire.Connection:
        """A new connection."""
        base = str(self._settings["http"]).removesuffix("/v1")
        return wire.Http(f"{base}/v1/{'chat/' if self._chat else ''}completions", self._headers)

    def hear(self, one: wire.Sent) -> Heard:
        """The texts, the server's own counts (`usage`) and why it ended."""
        found: list[tuple[int, str]] = []
        usage: Json = {}
        finish, error = None, ""
        for time, raw in zip(one.times, one.raw, strict=True):
            data = wire.event(raw) or {}
            usage = data.get("usage") or usage
            error = error or str(data.get("error", ""))
            for choice in data.get("choices") or ():
                said = choice.get("delta") or choice.get("message") or choice
                text = said.get("content") if self._chat else choice.get("text")
                finish = choice.get("finish_reason") or finish
                if text:
                    found.append((time, text))
        return Heard(
            times=[time for time, _ in found],
            texts=[text for _, text in found],
            output_tokens=usage.get("completion_tokens"),
            input_tokens=usage.get("prompt_tokens"),
            finish=finish,
            error=error,
        )


Protocol = Triton | OpenAi


def protocol(settings: Mapping[str, Any], key: str = "") -> Protocol:
    """How the server of these settings is asked. Raises Unasked when it is not there or has not the inputs."""
    if settings["endpoint"] in ("chat", "completions"):
        return OpenAi(settings, key)
    inputs = _http_inputs(settings) if settings["http"] else _apart(_grpc_inputs, settings)
    missing = {"text_input", "max_tokens"} - set(inputs)
    if missing:
        raise Unasked(f"the model {settings['model']} has no input {', '.join(sorted(missing))}")
    return Triton(settings, inputs)


def _apart(work: Any, settings: Mapping[str, Any]) -> dict[str, tuple[str, list[int]]]:
    """In a process of its own: workers are forked from this one, and gRPC does not survive that once it runs."""
    with ProcessPoolExecutor(1, mp_context=mp.get_context("fork")) as pool:
        found: dict[str, tuple[str, list[int]]] = pool.submit(work, settings).result()
        return found


def _grpc_inputs(settings: Mapping[str, Any]) -> dict[str, tuple[str, list[int]]]:
    import grpc
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    with grpc.insecure_channel(settings["grpc"]) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            found = stub.ModelMetadata(service_pb2.ModelMetadataRequest(name=settings["model"]), timeout=10)
        except grpc.RpcError as error:
            raise Unasked(f"{settings['grpc']} does not serve {settings['model']}: {error.details()}") from error
    return {one.name: (one.datatype, list(one.shape)) for one in found.inputs}


def _http_inputs(settings: Mapping[str, Any]) -> dict[str, tuple[str, list[int]]]:
    data = fetch(f"{settings['http']}/v2/models/{settings['model']}")
    try:
        return {one["name"]: (one["datatype"], one["shape"]) for one in json.loads(data)["inputs"]}
    except (ValueError, KeyError, TypeError) as error:
        raise Unasked(f"{settings['http']} does not serve the model {settings['model']}") from error


def fetch(url: str) -> str:
    """GET; "" when the answer is an error. Not with urllib, which would ask a proxy. Raises Unasked."""
    parts = urlsplit(url)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=10)
    try:
        connection.request("GET", parts.path)
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace")
        return text if answer.status == 200 else ""
    except (OSError, HTTPException) as error:
        raise Unasked(f"{url} cannot be had: {error}") from error
    finally:
        connection.close()
