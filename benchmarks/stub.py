"""A server without a model: it answers at once, or at a given pace, over Triton's and OpenAI's protocols.

    python benchmarks/stub.py --tokens 64 --first 20 --gap 10

The text of each streamed response is two Unix times in nanoseconds, of the request's arrival and of the sending, so
that what a client adds can be told. Prompts that begin with `fail`, `cut` or `mute` get an error, half an answer, or
none. Prints its ports as JSON; ends with its standard input. Its metrics are at its HTTP port and at one of their own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from typing import Any

INPUTS = [
    {"name": "text_input", "datatype": "BYTES", "shape": [-1, 1]},
    {"name": "max_tokens", "datatype": "INT32", "shape": [-1, 1]},
    {"name": "stream", "datatype": "BOOL", "shape": [-1, 1]},
    {"name": "min_tokens", "datatype": "INT32", "shape": [-1, 1]},
]
METRICS = """# TYPE nv_inference_request_success counter
nv_inference_request_success{{model="ensemble",version="1"}} {requests}
nv_inference_queue_duration_us{{model="ensemble",version="1"}} {busy}
nv_cpu_utilization 0.25
"""
CHUNK = b"%x\r\n%s\r\n"


class Stub:
    """`pace` is (ms to the first response, ms from one to the next, responses unless the request has max_tokens)."""

    def __init__(self, first: float, gap: float, tokens: int) -> None:
        self.first, self.gap, self.tokens = first / 1000, gap / 1000, tokens
        self.requests = 0

    async def texts(self, prompt: str, count: int) -> Any:
        """The texts of one answer, each at its moment."""
        self.requests += 1
        arrived, due = time.time_ns(), time.monotonic() + self.first
        for number in range(count):
            if (left := due - time.monotonic()) > 0:
                await asyncio.sleep(left)
            due += self.gap
            if prompt.startswith("cut") and number == count // 2:
                return
            yield f"{arrived} {time.time_ns()} "


class Http:
    """Its HTTP side."""

    def __init__(self, stub: Stub) -> None:
        self.stub = stub

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, request after request."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                method, path = head.split(" ", 2)[:2]
                size = next((int(line[15:]) for line in head.split("\r\n") if line.startswith("content-length:")), 0)
                body = json.loads(await reader.readexactly(size)) if size else {}
                if not await self.answer(method, path, body, writer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def answer(self, method: str, path: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> bool:
        """One request; whether the connection stays."""
        if method == "get":
            numbers = {"requests": self.stub.requests, "busy": 1000 * self.stub.requests}
            text = (
                METRICS.format(**numbers) if path == "/metrics" else json.dumps({"name": "ensemble", "inputs": INPUTS})
            )
            return plain(writer, 200, text)
        said = body.get("messages")
        prompt = said[0]["content"] if said else body.get("text_input") or body.get("prompt") or ""
        if prompt.startswith("fail"):
            return plain(writer, 500, '{"error": "asked to fail"}')
        count = 0 if prompt.startswith("mute") else body.get("max_tokens", self.stub.tokens)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        sent = 0
        async for text in self.stub.texts(prompt, count):
            sent += 1
            event(writer, shaped(path, text))
            if not sent % 64:
                await writer.drain()
        if prompt.startswith("cut"):
            return False
        if path.startswith("/v1"):
            event(writer, {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": sent}})
            writer.write(CHUNK % (14, b"data: [DONE]\n\n"))
        writer.write(b"0\r\n\r\n")
        return True


def shaped(path: str, text: str) -> dict[str, Any]:
    """A response as the protocol of `path` has it."""
    if path.endswith("chat/completions"):
        return {"object": "chat.completion.chunk", "choices": [{"delta": {"content": text}, "finish_reason": None}]}
    return {"choices": [{"text": text, "finish_reason": None}]} if path.startswith("/v1") else {"text_output": text}


def event(writer: asyncio.StreamWriter, data: dict[str, Any]) -> None:
    """One server-sent event in a chunk of its own."""
    raw = b"data: " + json.dumps(data).encode() + b"\n\n"
    writer.write(CHUNK % (len(raw), raw))


def plain(writer: asyncio.StreamWriter, status: int, text: str) -> bool:
    """A whole answer."""
    writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode())
    return True


class Grpc:
    """Its gRPC side: ModelMetadata and ModelStreamInfer."""

    def __init__(self, stub: Stub) -> None:
        self.stub = stub

    async def stream(self, requests: Any, _context: Any) -> Any:
        """Request after request of one stream."""
        from tritonclient.grpc import service_pb2 as pb

        async for asked in requests:
            given = pb.ModelInferRequest.FromString(asked)
            values = {one.name: raw for one, raw in zip(given.inputs, given.raw_input_contents, strict=True)}
            prompt = values["text_input"][4:].decode()
            if prompt.startswith("fail"):
                yield response(None, "asked to fail")
                continue
            count = 0 if prompt.startswith("mute") else int.from_bytes(values["max_tokens"], "little")
            async for text in self.stub.texts(prompt, count):
                yield response(text)
            if prompt.startswith("cut"):
                return
            yield response(None)

    async def metadata(self, _request: bytes, _context: Any) -> bytes:
        """The inputs of the only model."""
        from tritonclient.grpc import service_pb2 as pb

        return bytes(pb.ModelMetadataResponse(name="ensemble", inputs=INPUTS).SerializeToString())

    def start(self, port: int) -> tuple[Any, int]:
        """(the server, its port); 0 is a free one."""
        import grpc

        handlers = {
            "ModelMetadata": grpc.unary_unary_rpc_method_handler(self.metadata),
            "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(self.stream),
        }
        server = grpc.aio.server()
        service = grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers)
        server.add_generic_rpc_handlers((service,))
        return server, server.add_insecure_port(f"127.0.0.1:{port}")


def response(text: str | None, error: str = "") -> bytes:
    """A ModelStreamInferResponse; without a text the final one."""
    from tritonclient.grpc import service_pb2 as pb

    message = pb.ModelStreamInferResponse(error_message=error)
    message.infer_response.model_name = "ensemble"
    message.infer_response.parameters["triton_final_response"].bool_param = text is None
    if text is not None:
        message.infer_response.outputs.add(name="text_output", datatype="BYTES", shape=[1])
        raw = text.encode()
        message.infer_response.raw_output_contents.append(len(raw).to_bytes(4, "little") + raw)
    return bytes(message.SerializeToString())


async def main() -> None:
    """Serves until standard input ends."""
    parser = argparse.ArgumentParser(description="a server without a model")
    parser.add_argument("--first", type=float, default=0.0, help="ms to the first response")
    parser.add_argument("--gap", type=float, default=0.0, help="ms between responses")
    parser.add_argument("--tokens", type=int, default=64)
    for name in ("--http-port", "--grpc-port", "--metrics-port"):
        parser.add_argument(name, type=int, default=0)
    args = parser.parse_args()
    stub = Stub(args.first, args.gap, args.tokens)
    listening = [
        await asyncio.start_server(Http(stub).serve, "127.0.0.1", at) for at in (args.http_port, args.metrics_port)
    ]
    server, port = Grpc(stub).start(args.grpc_port)
    await server.start()
    http, metrics = (one.sockets[0].getsockname()[1] for one in listening)
    print(json.dumps({"http": http, "grpc": port, "metrics": metrics}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop(None)


if __name__ == "__main__":
    asyncio.run(main())
