"""A ModelStreamInfer stream over HTTP/2 of our own: a message costs a tenth of what grpcio's Python takes for it.

Only what one bidirectional stream on one connection needs (RFC 9113; gRPC over HTTP/2): the windows are opened wide,
pings and settings are answered, and of header blocks only gRPC's status is looked for, as servers of gRPC's C core
write it: literally. No TLS.
"""

from __future__ import annotations

import asyncio
import struct
import time
from urllib.parse import urlsplit

from link import Link, connect
from wire import FINAL, Refused, Sent, grpc_error

DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW = 0, 1, 3, 4, 6, 7, 8
ACK = END_STREAM = 1
END_HEADERS = 4
INITIAL_WINDOW = 4  # the setting
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PATH = b"/inference.GRPCInferenceService/ModelStreamInfer"
WIDE = (1 << 31) - 1
REFILL = 1 << 26  # bytes after which our windows are opened again
FRAME = 16384  # the largest that every peer takes
STATUS = {
    0: "OK",
    4: "DEADLINE_EXCEEDED",
    8: "RESOURCE_EXHAUSTED",
    12: "UNIMPLEMENTED",
    13: "INTERNAL",
    14: "UNAVAILABLE",
}


class GrpcStream:
    """See wire.Connection; `host` is host:port."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._link: Link | None = None
        self._reset()

    def _reset(self) -> None:
        self._buffer = self._message = b""
        self._connection_window = self._stream_window = 65535  # RFC 9113, 6.9.2: until the peer says otherwise
        self._initial = 65535
        self._taken = 0
        self._one: Sent | None = None
        self._done: asyncio.Future[None] | None = None
        self._ready, self._room = asyncio.Event(), asyncio.Event()

    async def ask(self, body: bytes, one: Sent) -> None:
        """See wire.Connection."""
        try:
            if self._link is None:
                await self._connect()
            self._one, self._done = one, asyncio.get_running_loop().create_future()
            one.sent = time.monotonic_ns()
            await self._send(b"\0" + struct.pack(">I", len(body)) + body)
            await self._done
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """See wire.Connection."""
        if self._link is not None:
            self._link.close()
            self._link = None

    async def _connect(self) -> None:
        self._reset()
        parts = urlsplit(f"//{self._host}")
        loop = asyncio.get_running_loop()
        self._done = loop.create_future()
        link = await connect(parts.hostname or "", parts.port or 8001, self._heard, self._lost)
        self._link = link
        wide = struct.pack(">HI", INITIAL_WINDOW, WIDE)
        opened = struct.pack(">I", WIDE - 65535)
        head = frame(HEADERS, END_HEADERS, 1, request_head(self._host))
        link.write(PREFACE + frame(SETTINGS, 0, 0, wide) + frame(WINDOW, 0, 0, opened) + head)
        ready = asyncio.ensure_future(self._ready.wait())
        await asyncio.wait((ready, self._done), return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if self._done.done():
            self._done.result()

    async def _send(self, data: bytes) -> None:
        """As the peer's windows allow."""
        while data and self._link is not None and self._done is not None and not self._done.done():
            size = min(len(data), FRAME, self._connection_window, self._stream_window)
            if size <= 0:
                self._room.clear()
                await self._room.wait()
                continue
            self._connection_window -= size
            self._stream_window -= size
            self._link.write(frame(DATA, 0, 1, data[:size]))
            data = data[size:]

    def _heard(self, data: bytes, now: int) -> None:
        """What came is taken apart at once: all of it has this moment."""
        buffer, at = self._buffer + data if self._buffer else data, 0
        while len(buffer) - at >= 9:
            size = int.from_bytes(buffer[at : at + 3], "big")
            if len(buffer) - at < 9 + size:
                break
            payload = buffer[at + 9 : at + 9 + size]
            self._frame(buffer[at + 3], buffer[at + 4], buffer[at + 8], payload, now)
            at += 9 + size
        self._buffer = buffer[at:]

    def _lost(self, error: OSError | None) -> None:
        self._link = None
        self._end(error or Refused("connection: closed", "the server closed the connection"))

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes, now: int) -> None:
        if kind == DATA:
            self._data(payload, now)
        elif kind == HEADERS and flags & END_STREAM:
            self._end(ended(payload))
        elif kind in (RESET, GOAWAY):
            self._end(Refused("grpc: UNAVAILABLE", "the server ended the stream"))
        elif kind == WINDOW:
            self._opened(stream, int.from_bytes(payload, "big") & WIDE)
        elif kind == SETTINGS and not flags & ACK:
            self._settings(payload)
        elif kind == PING and not flags & ACK and self._link is not None:
            self._link.write(frame(PING, ACK, 0, payload))

    def _data(self, payload: bytes, now: int) -> None:
        self._taken += len(payload)
        if self._taken > REFILL and self._link is not None:
            more = struct.pack(">I", self._taken)
            self._link.write(frame(WINDOW, 0, 0, more) + frame(WINDOW, 0, 1, more))
            self._taken = 0
        buffer, at = self._message + payload if self._message else payload, 0
        while len(buffer) - at >= 5:
            size = int.from_bytes(buffer[at + 1 : at + 5], "big")
            if len(buffer) - at < 5 + size:
                break
            self._response(buffer[at + 5 : at + 5 + size], now)
            at += 5 + size
        self._message = buffer[at:]

    def _response(self, message: bytes, now: int) -> None:
        if self._one is None:
            return
        self._one.times.append(now)
        self._one.raw.append(message)
        if message[:1] == b"\x0a":  # error_message is the first field of ModelStreamInferResponse
            self._end(Refused("grpc: error", grpc_error(message)))
        elif FINAL in message:
            self._end(None)

    def _end(self, error: Exception | None) -> None:
        self._room.set()
        if self._done is not None and not self._done.done():
            self._one = None
            if error is None:
                self._done.set_result(None)
            else:
                self._done.set_exception(error)

    def _opened(self, stream: int, more: int) -> None:
        if stream:
            self._stream_window += more
        else:
            self._connection_window += more
        self._room.set()

    def _settings(self, payload: bytes) -> None:
        for name, value in struct.iter_unpack(">HI", payload):
            if name == INITIAL_WINDOW:
                self._stream_window += value - self._initial
                self._initial = value
        if self._link is not None:
            self._link.write(frame(SETTINGS, ACK, 0, b""))
        self._ready.set()
        self._room.set()


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """RFC 9113, 4.1."""
    return struct.pack(">I", len(payload) << 8 | kind) + struct.pack(">BI", flags, stream) + payload


def request_head(host: str) -> bytes:
    """HPACK (RFC 7541) without compression: POST and http by their number, the rest literally."""
    fields = ((b"\x04", PATH), (b"\x01", host.encode()), (b"\x0f\x10", b"application/grpc"))
    named = b"".join(index + bytes([len(value)]) + value for index, value in fields)
    return b"\x83\x86" + named + b"\x00\x02te\x08trailers"


def ended(block: bytes) -> Refused:
    """Why a server ended the stream, from the trailers."""
    status, text = _field(block, b"grpc-status"), _field(block, b"grpc-message")
    number = int(status) if status.isdigit() else None
    name = STATUS.get(number, status) if number is not None else "ended"
    return Refused(f"grpc: {name}", text or "the stream ended", number)


def _field(block: bytes, name: bytes) -> str:
    """The value of a literal field; "" where there is none."""
    _, found, rest = block.partition(name)
    return rest[1 : 1 + rest[0]].decode(errors="replace") if found and rest else ""
