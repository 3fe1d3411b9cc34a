"""Our own HTTP/2 against gRPC's C core: many requests, large ones, and how streams end."""

from __future__ import annotations

import asyncio

import asking
import grpc_stream
import pytest
import wire
from prompts import Prompt

from tests.tools.load.conftest import SETTINGS


def _asked(ports: dict[str, int], *prompts: Prompt) -> list[wire.Sent]:
    """These prompts, one after the other on one connection."""
    place = {"grpc": f"127.0.0.1:{ports['grpc']}", "http": f"http://127.0.0.1:{ports['http']}"}
    protocol = asking.protocol(SETTINGS | place)

    async def ask() -> list[wire.Sent]:
        connection, found = protocol.connection(), []
        for prompt in prompts:
            found.append(wire.Sent(prompt=0))
            await connection.ask(protocol.body(prompt), found[-1])
        await connection.close()
        return found

    return asyncio.run(asyncio.wait_for(ask(), 60))


def test_a_request_beyond_every_window_gets_through(quick: dict[str, int]) -> None:
    """65,535 bytes may be sent before the server opens its windows again."""
    found = _asked(quick, *(Prompt("x" * size, 2) for size in (10, 70_000, 900_000, 70_000)))
    assert [len(one.raw) for one in found] == [3, 3, 3, 3]


def test_more_than_our_own_window_comes_back(quick: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_stream, "WIDE", 70_000)
    monkeypatch.setattr(grpc_stream, "REFILL", 10_000)
    (one,) = _asked(quick, Prompt("many", 3000))
    assert len(one.raw) == 3001
    assert one.times == sorted(one.times)


@pytest.mark.parametrize(("prompt", "kind"), [("fail", "grpc: error"), ("cut", "grpc: OK")])
def test_a_stream_says_how_it_ended(quick: dict[str, int], prompt: str, kind: str) -> None:
    with pytest.raises(wire.Refused) as told:
        _asked(quick, Prompt(prompt, 4))
    assert told.value.kind == kind


def test_a_status_of_the_server_has_its_name_and_message() -> None:
    block = b"\x40\x0bgrpc-status\x0214@\x0cgrpc-message\x04busy"
    refused = grpc_stream.ended(block)
    assert (refused.kind, str(refused), refused.code) == ("grpc: UNAVAILABLE", "busy", 14)
    assert grpc_stream.ended(b"\xbe\xbf").kind == "grpc: ended"


def test_a_server_that_is_not_there_is_an_os_error() -> None:
    async def ask() -> None:
        await grpc_stream.GrpcStream("127.0.0.1:9").ask(b"", wire.Sent(prompt=0))

    with pytest.raises(OSError, match="Connect call failed"):
        asyncio.run(ask())


def test_a_server_that_goes_away_ends_the_request() -> None:
    async def ask() -> None:
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            await grpc_stream.GrpcStream(f"127.0.0.1:{port}").ask(b"", wire.Sent(prompt=0))
        finally:
            server.close()

    with pytest.raises((wire.Refused, ConnectionError)):
        asyncio.run(asyncio.wait_for(ask(), 60))
