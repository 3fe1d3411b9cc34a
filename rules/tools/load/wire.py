"""How a request goes over the wire and its answer comes back: Triton's gRPC stream, Triton's generate, OpenAI's API.

While a load runs nothing is decoded: a response is its bytes and the moment when they came; texts are read off them
afterwards. A connection carries one request at a time and is kept for the next; after a failure it is left.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

FINAL = b"triton_final_response\x12\x02\x08\x01"  # the entry of InferResponse.parameters, as protobuf writes it
LIMIT = 1 << 26  # bytes of a line or a message
_MOST = 1000  # characters of an error that are kept


@dataclass(slots=True)
class Sent:
    """One request and what came of it: `raw[i]` came at `times[i]`, in monotonic ns. `error` is (kind, message)."""

    prompt: int
    sent: int = 0
    due: int = 0
    times: list[int] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    error: tuple[str, str] | None = None
    code: int | None = None
    cancelled: bool = False
    worker: int = 0


class Refused(Exception):
    """The server answered with an error: its kind (`http: 500`, `grpc: UNAVAILABLE`), message and status code."""

    def __init__(self, kind: str, message: str, code: int | None = None) -> None:
        super().__init__(message[:_MOST])
        self.kind, self.code = kind, code


class Connection(Protocol):
    """One user's connection."""

    async def ask(self, body: bytes, one: Sent) -> None:
        """Sends `body` and fills in times and bytes. Raises Refused, OSError."""

    async def close(self) -> None:
        """Leaves."""


class Http:
    """HTTP/1.1 POSTs on one kept connection; an answer of server-sent events is one response per event.

    Own code, since a client library spends more on an event than the server does.
    """

    def __init__(self, url: str, headers: Sequence[str] = ()) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        self._secure = parts.scheme == "https"
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        lines = (f"POST {path} HTTP/1.1", f"Host: {parts.netloc.rpartition('@')[2]}", *headers)
        self._head = "\r\n".join((*lines, "Content-Type: application/json", "Accept: */*", "Content-Length: ")).encode()
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, body: bytes, one: Sent) -> None:
        """See Connection."""
        try:
            if self._writer is None:
                opened = asyncio.open_connection(self._host, self._port, ssl=self._secure or None, limit=LIMIT)
                self._reader, self._writer = await opened
            one.sent = time.monotonic_ns()
            self._writer.write(b"%s%d\r\n\r\n%s" % (self._head, len(body), body))
            if not await self._answer(self._reader, one):
                await self.close()
        except asyncio.IncompleteReadError as error:
            await self.close()
            raise Refused("connection: closed", "the server closed the connection within an answer") from error
        except BaseException:
            await self.close()
            raise

    async def _answer(self, reader: Any, one: Sent) -> bool:
        """Reads one answer; whether the connection may be used again."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        status = int(head.split(" ", 2)[1])
        body = _chunks(reader) if "transfer-encoding: chunked" in head else _rest(reader, head)
        events = "text/event-stream" in head and status == 200
        left = b""
        async for part in body:
            moment = time.monotonic_ns()
            left += part
            if events:
                *whole, left = re.split(rb"\r?\n\r?\n", left)
                one.raw += whole
                one.times += [moment] * len(whole)
        if status != 200:
            raise Refused(f"http: {status}", left.decode(errors="replace"), status)
        if left.strip():
            one.raw.append(left)
            one.times.append(moment)
        return "connection: close" not in head

    async def close(self) -> None:
        """See Connection."""
        if self._writer is not None:
            self._writer.close()
            self._reader = self._writer = None


async def _chunks(reader: asyncio.StreamReader) -> Any:
    """The parts of a chunked body (RFC 9112, 7.1)."""
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        yield (await reader.readexactly(size + 2))[:-2]
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass


async def _rest(reader: asyncio.StreamReader, head: str) -> Any:
    """A body of a known length, or until the connection closes."""
    if found := re.search(r"content-length: (\d+)", head):
        yield await reader.readexactly(int(found[1]))
        return
    while part := await reader.read(1 << 16):
        yield part


def grpc_error(message: bytes) -> str:
    """The error_message of a ModelStreamInferResponse."""
    from tritonclient.grpc import service_pb2

    return str(service_pb2.ModelStreamInferResponse.FromString(message).error_message)


def outputs(message: bytes) -> dict[str, Any]:
    """`text_output` and `num_output_tokens` of a ModelStreamInferResponse, those it has: the final one has none."""
    from tritonclient.grpc import service_pb2

    answer = service_pb2.ModelStreamInferResponse.FromString(message).infer_response
    found: dict[str, Any] = {}
    for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=False):
        if output.name == "text_output":
            found[output.name] = bytes(raw[4:]).decode(errors="replace")  # one element: 4 bytes of length, then it
        elif output.name == "num_output_tokens":
            found[output.name] = int.from_bytes(raw[:4], "little")
    return found


def event(raw: bytes) -> dict[str, Any] | None:
    """The JSON of a server-sent event, or of a whole answer; None for comments and [DONE]."""
    lines = [line[5:].strip() for line in raw.splitlines() if line.startswith(b"data:")]
    text = b"\n".join(lines) if lines else raw.strip()
    if not text.startswith(b"{"):
        return None
    data: dict[str, Any] = json.loads(text)
    return data
