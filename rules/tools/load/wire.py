"""How a request goes over the wire and its answer comes back: Triton's gRPC stream, Triton's generate, OpenAI's API.

While a load runs nothing is decoded: a response is its bytes and the moment when they came; texts are read off them
afterwards. A connection carries one request at a time and is kept for the next; after a failure it is left.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

from link import Link, connect

FINAL = b"triton_final_response\x12\x02\x08\x01"  # the entry of InferResponse.parameters, as protobuf writes it
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
        self._link: Link | None = None
        self._answer: Answer | None = None

    async def ask(self, body: bytes, one: Sent) -> None:
        """See Connection."""
        try:
            if self._link is None:
                self._link = await connect(self._host, self._port, self._heard, self._lost, secure=self._secure)
            self._answer = Answer(one)
            one.sent = time.monotonic_ns()
            self._link.write(b"%s%d\r\n\r\n%s" % (self._head, len(body), body))
            if not await self._answer.kept:
                await self.close()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """See Connection."""
        if self._link is not None:
            self._link.close()
            self._link = None

    def _heard(self, data: bytes, moment: int) -> None:
        if self._answer is not None:
            self._answer.feed(data, moment)

    def _lost(self, error: OSError | None) -> None:
        self._link = None
        if self._answer is not None:
            self._answer.end(error)


class Answer:
    """An answer of HTTP/1.1 as it comes, read into `one`; `kept`: whether the connection may be used again."""

    def __init__(self, one: Sent) -> None:
        self.kept: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._one, self._moment, self._ended = one, 0, False
        self._buffer, self._at, self._left = b"", 0, b""
        self._reading = self._read()

    def feed(self, data: bytes, moment: int) -> None:
        """Reads on, as far as it goes."""
        self._buffer, self._at, self._moment = self._buffer[self._at :] + data, 0, moment
        self._go()

    def end(self, error: OSError | None) -> None:
        """No more will come."""
        self._ended = True
        if error is None:
            self._go()
        elif not self.kept.done():
            self.kept.set_exception(error)

    def _go(self) -> None:
        if self.kept.done():
            return
        try:
            next(self._reading)
        except StopIteration as last:
            self.kept.set_result(last.value)
        except Refused as error:
            self.kept.set_exception(error)
        except (ValueError, IndexError) as error:
            self.kept.set_exception(Refused("http: malformed", f"no answer of HTTP/1.1: {error}"))

    def _read(self) -> Generator[None, None, bool]:
        """The whole answer; yields where bytes are lacking."""
        head = (yield from self._until(b"\r\n\r\n")).decode("latin-1").lower()
        status = int(head.split(" ", 2)[1])
        events = "text/event-stream" in head and status == 200
        if "transfer-encoding: chunked" in head:
            yield from self._chunks(events=events)
        else:
            yield from self._rest(head, events=events)
        if status != 200:
            raise Refused(f"http: {status}", self._left.decode(errors="replace"), status)
        if self._left.strip():
            self._one.raw.append(self._left)
            self._one.times.append(self._moment)
        return "connection: close" not in head

    def _chunks(self, *, events: bool) -> Generator[None, None, None]:
        """A chunked body (RFC 9112, 7.1)."""
        while size := int((yield from self._until(b"\r\n")).split(b";")[0], 16):
            self._part((yield from self._exactly(size + 2))[:-2], events=events)
        while (yield from self._until(b"\r\n")):
            pass

    def _rest(self, head: str, *, events: bool) -> Generator[None, None, None]:
        """A body of a known length, or until the connection closes."""
        if found := re.search(r"content-length: (\d+)", head):
            self._part((yield from self._exactly(int(found[1]))), events=events)
            return
        while not self._ended:
            self._part((yield from self._exactly(len(self._buffer) - self._at)), events=events)
            yield

    def _part(self, part: bytes, *, events: bool) -> None:
        self._left += part
        if events:
            *whole, self._left = re.split(rb"\r?\n\r?\n", self._left)
            self._one.raw += whole
            self._one.times += [self._moment] * len(whole)

    def _until(self, mark: bytes) -> Generator[None, None, bytes]:
        while (end := self._buffer.find(mark, self._at)) < 0:
            yield from self._more()
        found = self._buffer[self._at : end]
        self._at = end + len(mark)
        return found

    def _exactly(self, size: int) -> Generator[None, None, bytes]:
        while len(self._buffer) - self._at < size:
            yield from self._more()
        found = self._buffer[self._at : self._at + size]
        self._at += size
        return found

    def _more(self) -> Generator[None, None, None]:
        if self._ended:
            raise Refused("connection: closed", "the server closed the connection within an answer")
        yield


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
