"""An engine's pace without an engine: all requests in flight get a response at every step, over gRPC or HTTP.

    python benchmarks/bare.py --first 20 --gap 10 --tokens 64

The text of a response is two Unix times in nanoseconds: when the kernel had got the request, and when the response was
given to the kernel. What lies between is the server's, the rest the client's. Nothing of a server is in between: one
socket per connection, requests counted instead of read (Triton's gRPC stream and generate_stream).
Prints its port as JSON; ends with its standard input.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "rules" / "tools" / "load"))

from grpc_stream import DATA, END_HEADERS, HEADERS, PREFACE, SETTINGS, WINDOW, frame
from link import Tcp
from stub import CHUNK, INPUTS, response

WALL = time.time_ns() - time.monotonic_ns()
ACCEPTED = b"\x88\x0f\x10\x10application/grpc"  # HPACK: status 200, and content-type by its number
EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class Engine:
    """Steps every `gap` ms; a request takes part from the first step that is `first` ms after its arrival."""

    def __init__(self, first: float, gap: float, tokens: int) -> None:
        self._first, self._gap, self._tokens = round(first * 1e6), gap / 1000, tokens
        self._flying: list[list[Any]] = []  # connection, arrival in monotonic ns, responses so far

    def add(self, connection: Connection, arrived: int) -> None:
        """A request."""
        self._flying.append([connection, arrived, 0])

    async def run(self) -> None:
        """Steps until cancelled."""
        due = time.monotonic()
        while True:
            due = max(due + self._gap, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            ready = time.monotonic_ns() - self._first
            for one in self._flying:
                connection, arrived, _ = one
                if arrived <= ready:
                    one[2] += 1
                    connection.say(f"{arrived + WALL} {time.monotonic_ns() + WALL} ", last=one[2] == self._tokens)
            self._flying = [one for one in self._flying if one[2] < self._tokens]


class Connection:
    """One client's socket, one request at a time."""

    def __init__(self, one: socket.socket, engine: Engine) -> None:
        self._engine, self._buffer = engine, b""
        self._grpc = self._begun = False
        self._link = Tcp(one, self._heard, lambda _: None)

    def say(self, text: str, *, last: bool) -> None:
        """One response, and with the last one what ends an answer."""
        self._link.write(self._message(text, last=last) if self._grpc else self._events(text, last=last))

    def _message(self, text: str, *, last: bool) -> bytes:
        messages = [response(text), *([response(None)] if last else [])]
        return b"".join(frame(DATA, 0, 1, b"\0" + len(one).to_bytes(4, "big") + one) for one in messages)

    def _events(self, text: str, *, last: bool) -> bytes:
        event = b"data: %s\n\n" % json.dumps({"text_output": text}).encode()
        head, self._begun = b"" if self._begun else EVENTS, not last
        return head + CHUNK % (len(event), event) + (b"0\r\n\r\n" if last else b"")

    def _heard(self, data: bytes, moment: int) -> None:
        self._buffer += data
        if not self._grpc and self._buffer.startswith(PREFACE[:16]):
            self._grpc, self._buffer = True, self._buffer[len(PREFACE) :]
            self._link.write(frame(SETTINGS, 0, 0, b"") + frame(HEADERS, END_HEADERS, 1, ACCEPTED))
        self._frames(moment) if self._grpc else self._request(moment)

    def _frames(self, moment: int) -> None:
        """A client's DATA frame is a request here: they are small."""
        while len(self._buffer) >= 9 and len(self._buffer) >= (end := 9 + int.from_bytes(self._buffer[:3], "big")):
            if self._buffer[3] == DATA:
                more = (end - 9).to_bytes(4, "big")
                self._link.write(frame(WINDOW, 0, 0, more) + frame(WINDOW, 0, 1, more))
                self._engine.add(self, moment)
            self._buffer = self._buffer[end:]

    def _request(self, moment: int) -> None:
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        lines = head.decode().lower().split("\r\n")
        size = next((int(line[15:]) for line in lines if line.startswith("content-length:")), 0)
        if not found or len(body) < size:
            return
        self._buffer = b""
        if lines[0].startswith("post"):
            self._engine.add(self, moment)
            return
        said = json.dumps({"name": "ensemble", "inputs": INPUTS})
        self._link.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(said)}\r\n\r\n{said}".encode())


async def main() -> None:
    """Serves until standard input ends."""
    parser = argparse.ArgumentParser(description="an engine's pace without an engine")
    parser.add_argument("--first", type=float, default=20.0, help="ms to the first response")
    parser.add_argument("--gap", type=float, default=10.0, help="ms between steps")
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()
    engine, loop = Engine(args.first, args.gap, args.tokens), asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        loop.add_reader(listener, lambda: Connection(accepted(listener), engine))
        steps = asyncio.create_task(engine.run())
        port = listener.getsockname()[1]
        print(json.dumps({"http": port, "grpc": port}), flush=True)
        await loop.run_in_executor(None, sys.stdin.read)
        steps.cancel()


def accepted(listener: socket.socket) -> socket.socket:
    """The next connection."""
    one, _ = listener.accept()
    one.settimeout(0)
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return one


if __name__ == "__main__":
    asyncio.run(main())
