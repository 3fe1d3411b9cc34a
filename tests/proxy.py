"""A TCP proxy on loopback that cuts, closes, corrupts and stalls what passes through it."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

__all__ = ["Fault", "Kind", "Proxy", "proxy"]

Way = Literal["up", "down"]
Kind = Literal["cut", "close", "corrupt", "stall"]


@dataclass
class Fault:
    """What happens to the byte number `at` that a connection carries `way`, on the next `times` connections.

    cut: the connection is reset; close: it ends as if all were sent; corrupt: the byte is flipped; stall: nothing more
    comes, and the connection stays open.
    """

    kind: Kind
    way: Way
    at: int
    times: int = 1


class Proxy:
    """Forwards connections on `port` to `upstream`. `carried` counts bytes each way, `connections` the clients."""

    def __init__(self, upstream: int) -> None:
        self._upstream = upstream
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.faults: list[Fault] = []
        self.carried: dict[Way, int] = {"up": 0, "down": 0}
        self.connections = 0
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def close(self) -> None:
        _shut(self._listener)  # shut down first: close alone would let a waiting accept take one more
        self._accepting.join()
        for end in self._open:
            _shut(end)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._open.append(client)
                server = socket.create_connection(("127.0.0.1", self._upstream))
                self._open.append(server)
                self.connections += 1
                self._start("up", client, server)
                self._start("down", server, client)

    def _start(self, way: Way, source: socket.socket, target: socket.socket) -> None:
        threading.Thread(target=self._pump, args=(way, source, target), daemon=True).start()

    def _pump(self, way: Way, source: socket.socket, target: socket.socket) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while chunk := source.recv(1 << 16):
                fault = self._due(way, passed, passed + len(chunk))
                if fault is not None and not self._apply(fault, chunk, fault.at - passed, source, target):
                    return
                if fault is None:
                    target.sendall(chunk)
                passed += len(chunk)
                self._count(way, len(chunk))
        _shut(source)
        _shut(target)

    def _due(self, way: Way, start: int, end: int) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if fault.way == way and fault.times > 0 and start <= fault.at < end:
                    fault.times -= 1
                    return fault
        return None

    def _apply(self, fault: Fault, chunk: bytes, index: int, source: socket.socket, target: socket.socket) -> bool:
        """Sends what still goes through; returns whether the connection goes on."""
        if fault.kind == "corrupt":
            target.sendall(chunk[:index] + bytes([chunk[index] ^ 1]) + chunk[index + 1 :])
            return True
        target.sendall(chunk[:index])
        self._count(fault.way, index)
        if fault.kind == "cut":
            for end in (source, target):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if fault.kind != "stall":
            _shut(source)
            _shut(target)
        return False

    def _count(self, way: Way, count: int) -> None:
        with self._lock:
            self.carried[way] += count


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()


@contextlib.contextmanager
def proxy(upstream: int, *faults: Fault) -> Iterator[Proxy]:
    """A running proxy before the port `upstream` of this machine."""
    running = Proxy(upstream)
    running.faults += faults
    try:
        yield running
    finally:
        running.close()
