"""A small HTTP cache inside the test: GET with ranges, HEAD and PUT, as nginx with DAV answers them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

__all__ = ["Shelf", "shelf"]


class Shelf(ThreadingHTTPServer):
    """`objects` by path. `refuse` maps a method to the statuses of its next answers, `always` to that of all after."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, bytes] = {}
        self.refuse: dict[str, list[int]] = {}
        self.always: dict[str, int] = {}
        self.ranges = True
        self.asked: list[str] = []
        self.got: list[str] = []
        self.logins: list[str | None] = []

    @property
    def port(self) -> int:
        return self.server_address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def handle_error(self, *_: object) -> None:
        """A client that goes away is what the tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Shelf

    def do_GET(self) -> None:
        data = self._found()
        if data is None:
            return
        start = self._start() if self.server.ranges else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self._describe(len(data) - start)
        self.wfile.write(memoryview(data)[start:])

    def do_HEAD(self) -> None:
        data = self._found()
        if data is not None:
            self.send_response(200)
            self._describe(len(data))

    def do_PUT(self) -> None:
        size = int(self.headers["Content-Length"])
        data = self.rfile.read(size)
        if len(data) == size and not self._refused():
            self.server.objects[unquote(self.path)] = data
            self._answer(201)

    def _found(self) -> bytes | None:
        if self._refused():
            return None
        data = self.server.objects.get(unquote(self.path))
        if data is None:
            self._answer(404)
        return data

    def _start(self) -> int:
        return int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))

    def _refused(self) -> bool:
        self.server.asked.append(f"{self.command} {self.headers.get('Range', '')}".strip())
        if self.command == "GET":
            self.server.got.append(self.path)
        self.server.logins.append(self.headers.get("Authorization"))
        coming = self.server.refuse.get(self.command, [])
        status = coming.pop(0) if coming else self.server.always.get(self.command)
        if status is not None:
            self._answer(status)
        return status is not None

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self._describe(0)

    def _describe(self, size: int) -> None:
        self.send_header("Content-Length", str(size))
        self.send_header("ETag", '"1"')
        self.send_header("Last-Modified", "Thu, 05 Nov 2026 12:00:00 GMT")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@contextlib.contextmanager
def shelf() -> Iterator[Shelf]:
    """A running shelf."""
    running = Shelf()
    threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield running
    finally:
        running.shutdown()
        running.server_close()
