"""A TCP connection whose bytes come with the moment when the kernel got them.

A server that steps a batch answers all of it at once, and a client that reads 64 sockets one after the other would
call its own queue the server's latency. So the kernel is asked (SO_TIMESTAMPNS, socket(7); on TCP it is the moment of
the last segment that a read takes, since Linux 4.18), and what it costs to get to a socket is in no figure. Where it
does not answer, and under TLS, the moment is that of the read.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import Callable
from typing import Protocol, cast

SO_TIMESTAMPNS = 35  # asm-generic/socket.h; the type of the control message, too
STAMP = struct.Struct("@ll")  # struct timespec, of CLOCK_REALTIME
LATE_NS = 5_000_000_000  # a stamp that is older says that the clock was set meanwhile
_SIZE = 1 << 18

Heard = Callable[[bytes, int], None]
Lost = Callable[[OSError | None], None]


class Link(Protocol):
    """An open connection."""

    def write(self, data: bytes) -> None:
        """Sends, now as far as the kernel takes it."""

    def close(self) -> None:
        """Leaves; nothing is heard after it."""


async def connect(host: str, port: int, heard: Heard, lost: Lost, *, secure: bool = False) -> Link:
    """`heard` gets bytes and their moment in monotonic ns, `lost` the end, once. Raises OSError."""
    if secure:
        _, made = await asyncio.get_running_loop().create_connection(lambda: Tls(heard, lost), host, port, ssl=True)
        return made
    return Tcp(await _opened(host, port), heard, lost)


async def _opened(host: str, port: int) -> socket.socket:
    """A socket that is connected to the first address that answers."""
    loop, failure = asyncio.get_running_loop(), OSError(f"{host} has no address")
    for family, kind, protocol, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        one = socket.socket(family, kind, protocol)
        try:
            one.settimeout(0)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(one, address)
        except OSError as error:
            failure = error
        except BaseException:
            one.close()
            raise
        else:
            return one
        one.close()
    raise failure


class Tcp:
    """See Link."""

    def __init__(self, one: socket.socket, heard: Heard, lost: Lost) -> None:
        self._socket, self._heard, self._lost = one, heard, lost
        self._loop, self._unsent, self._moment = asyncio.get_running_loop(), b"", 0
        with contextlib.suppress(OSError):
            one.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._loop.add_reader(one, self._read)

    def write(self, data: bytes) -> None:
        """See Link. What the kernel does not take waits."""
        self._moment = time.monotonic_ns()
        if self._unsent:
            self._unsent += data
            return
        self._unsent = data
        self._send()
        if self._unsent:
            self._loop.add_writer(self._socket, self._flush)

    def close(self) -> None:
        """See Link."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()

    def _send(self) -> None:
        try:
            self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:  # the read that follows says why
            self._unsent = b""

    def _flush(self) -> None:
        self._send()
        if not self._unsent:
            self._loop.remove_writer(self._socket)

    def _read(self) -> None:
        try:
            data, stamps, _, _ = self._socket.recvmsg(_SIZE, 64)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._end(error)
            return
        if not data:
            self._end(None)
            return
        self._moment = max(self._moment, moment(stamps))  # no answer before its question, whatever the clock does
        self._heard(data, self._moment)

    def _end(self, error: OSError | None) -> None:
        self.close()
        self._lost(error)


def moment(stamps: list[tuple[int, int, bytes]]) -> int:
    """The moment of a read in monotonic ns, from its control messages."""
    wall = time.time_ns()
    now = time.monotonic_ns()  # after it: who is interrupted here is told late, not early
    for level, kind, data in stamps:
        if (level, kind) == (socket.SOL_SOCKET, SO_TIMESTAMPNS) and len(data) == STAMP.size:
            seconds, nanoseconds = STAMP.unpack(data)
            late = wall - 1_000_000_000 * seconds - nanoseconds
            return now - late if 0 <= late < LATE_NS else now
    return now


class Tls(asyncio.Protocol):
    """See Link; asyncio's own."""

    def __init__(self, heard: Heard, lost: Lost) -> None:
        self._heard, self._lost = heard, lost
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self._transport is not None:
            self._heard(data, time.monotonic_ns())

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio.Protocol."""
        if self._transport is not None:
            self._lost(error if isinstance(error, OSError) else None)

    def write(self, data: bytes) -> None:
        """See Link."""
        if self._transport is not None:
            self._transport.write(data)

    def close(self) -> None:
        """See Link."""
        if self._transport is not None:
            transport, self._transport = self._transport, None
            transport.abort()
