"""When bytes are said to have come, and that all of them go and come, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import select
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Iterator

import link
import pytest
from link import SO_TIMESTAMPNS, STAMP

from tests.fakes import PROJECT

CERTIFICATE = PROJECT / "tests" / "golden" / "localhost.pem"  # of localhost, with its key: nobody else believes it


class _Heard:
    """What came over a connection, and how it ended."""

    def __init__(self) -> None:
        self.data, self.moments, self.ends = b"", list[int](), list[OSError | None]()
        self.some, self.ended = asyncio.Event(), asyncio.Event()

    def heard(self, data: bytes, moment: int) -> None:
        self.data += data
        self.moments.append(moment)
        self.some.set()

    def lost(self, error: OSError | None) -> None:
        self.ends.append(error)
        self.ended.set()


@contextlib.asynccontextmanager
async def _pair() -> AsyncIterator[tuple[_Heard, link.Link, socket.socket]]:
    """(what is heard, the connection, its other end)."""
    heard = _Heard()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        made = await link.connect("127.0.0.1", listener.getsockname()[1], heard.heard, heard.lost)
        peer, _ = listener.accept()
        with peer:
            yield heard, made, peer
        made.close()


@pytest.fixture(scope="module")
def stamping() -> Iterator[None]:
    """The kernel begins to stamp some time after the first socket asked for it; here one does all the while."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as one:
        one.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        peer, _ = listener.accept()
        end = time.monotonic() + 60
        with peer:
            peer.sendall(b"x")
            while not one.recvmsg(1, 64)[1]:
                assert time.monotonic() < end, "this kernel does not stamp what comes over TCP"
                time.sleep(0.001)
                peer.sendall(b"x")
            yield


@pytest.mark.usefixtures("stamping")
def test_what_waited_in_a_busy_client_has_the_moment_when_it_came() -> None:
    async def wait() -> None:
        async with _pair() as (heard, made, peer):
            began = time.monotonic_ns()
            peer.sendall(b"x")
            select.select([made._socket], [], [], 60)  # type: ignore[attr-defined]
            there = time.monotonic_ns()
            time.sleep(0.3)  # noqa: ASYNC251 - the loop is busy meanwhile
            await asyncio.wait_for(heard.some.wait(), 60)
            assert began - 1_000_000 <= heard.moments[0] <= there + 150_000_000

    asyncio.run(wait())


@pytest.mark.parametrize("late", [-1_000_000_000, 86_400_000_000_000], ids=["of the future", "of yesterday"])
def test_a_stamp_that_the_clock_belies_is_not_believed(late: int) -> None:
    before, stamp = time.monotonic_ns(), time.time_ns() - late
    data = STAMP.pack(stamp // 1_000_000_000, stamp % 1_000_000_000)
    assert before <= link.moment([(socket.SOL_SOCKET, SO_TIMESTAMPNS, data)]) <= time.monotonic_ns()


def test_without_a_stamp_the_moment_is_the_reads() -> None:
    before = time.monotonic_ns()
    assert before <= link.moment([]) <= time.monotonic_ns()


@pytest.mark.usefixtures("stamping")
def test_no_answer_is_earlier_than_the_question() -> None:
    async def ask() -> None:
        async with _pair() as (heard, made, peer):
            peer.sendall(b"what nobody asked for")
            select.select([made._socket], [], [], 60)  # type: ignore[attr-defined]
            asked = time.monotonic_ns()
            made.write(b"?")
            await asyncio.wait_for(heard.some.wait(), 60)
            assert heard.moments[0] >= asked

    asyncio.run(ask())


def test_more_than_the_kernel_takes_at_once_goes_whole() -> None:
    async def send() -> None:
        async with _pair() as (_, made, peer):
            sent = os.urandom(1 << 20) * 16
            for at in range(0, len(sent), 1 << 22):
                made.write(sent[at : at + (1 << 22)])
            got = await asyncio.get_running_loop().run_in_executor(None, _all, peer, len(sent))
            assert got == hashlib.sha256(sent).hexdigest()

    asyncio.run(asyncio.wait_for(send(), 60))


def _all(peer: socket.socket, size: int) -> str:
    found = hashlib.sha256()
    while size and (part := peer.recv(min(size, 1 << 16))):
        found.update(part)
        size -= len(part)
    return found.hexdigest()


@pytest.mark.parametrize("hard", [False, True], ids=["closed", "reset"])
def test_an_end_is_told_once(*, hard: bool) -> None:
    async def end() -> None:
        async with _pair() as (heard, made, peer):
            peer.sendall(b"last words")
            await asyncio.wait_for(heard.some.wait(), 60)
            if hard:
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
            await asyncio.wait_for(heard.ended.wait(), 60)
            made.write(b"to nobody")
            await asyncio.sleep(0.01)
            assert heard.data == b"last words"
            assert [type(error) for error in heard.ends] == [ConnectionResetError if hard else type(None)]

    asyncio.run(end())


def test_over_tls_all_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(5))
        writer.close()

    async def ask() -> None:
        heard = _Heard()
        server = await asyncio.start_server(echo, "localhost", 0, ssl=context, family=socket.AF_INET)
        port, before = server.sockets[0].getsockname()[1], time.monotonic_ns()
        made = await link.connect("localhost", port, heard.heard, heard.lost, secure=True)
        made.write(b"hello")
        await asyncio.wait_for(heard.ended.wait(), 60)
        made.close()
        server.close()
        assert (heard.data, heard.ends) == (b"hello", [None])
        assert before <= heard.moments[0] <= time.monotonic_ns()

    asyncio.run(ask())
