"""The protocols, read off real connections to a server without a model, and an HTTP server that is unkind."""

from __future__ import annotations

import asyncio
import time

import pytest
import wire


def _raw(*parts: bytes, moments: list[int] | None = None) -> wire.Sent:
    """One POST to a server that sends these bytes, with a pause after each; `moments` gets when it sent them."""
    one = wire.Sent(prompt=0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        for part in parts:
            (moments if moments is not None else []).append(time.monotonic_ns())
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.02)
        writer.close()

    async def ask() -> wire.Sent:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        connection = wire.Http(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/x")
        try:
            await connection.ask(b"{}", one)
        finally:
            await connection.close()
            server.close()
            await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})
        return one

    return asyncio.run(ask())


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def test_an_event_that_comes_in_pieces_is_one_response_at_its_last_piece() -> None:
    pieces = HEAD + b"9\r\ndata: {1}\r\n", b"4\r\n\n\nda\r\n", b"b\r\nta: {2}\r\n\r\n\r\n", b"0\r\n\r\n"
    moments: list[int] = []
    one = _raw(*pieces, moments=moments)
    assert one.raw == [b"data: {1}", b"data: {2}"]
    assert moments[1] < one.times[0] < moments[2] < one.times[1]


def test_events_that_come_together_have_one_moment() -> None:
    one = _raw(HEAD + b"16\r\ndata: {1}\n\ndata: {2}\n\n\r\n0\r\n\r\n")
    assert len(one.raw) == 2
    assert one.times[0] == one.times[1]


def test_an_error_status_carries_its_body() -> None:
    with pytest.raises(wire.Refused, match="no such model") as told:
        _raw(b"HTTP/1.1 404 Not Found\r\nContent-Length: 13\r\n\r\nno such model")
    assert (told.value.kind, told.value.code) == ("http: 404", 404)


def test_an_answer_that_breaks_off_is_no_answer() -> None:
    with pytest.raises(wire.Refused) as told:
        _raw(HEAD + b"9\r\ndata: {1}\r\n")
    assert told.value.kind == "connection: closed"


def test_events_without_a_length_end_with_the_connection() -> None:
    one = _raw(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n", b"data: {1}\n\nda", b"ta: {2}\n\n")
    assert one.raw == [b"data: {1}", b"data: {2}"]
    assert one.times == sorted(one.times)


@pytest.mark.parametrize("said", [b"what?\r\n\r\n", b"HTTP/1.1 fine\r\n\r\n", HEAD + b"ten\r\n"])
def test_what_is_no_http_is_told(said: bytes) -> None:
    with pytest.raises(wire.Refused) as told:
        _raw(said)
    assert told.value.kind == "http: malformed"


def test_a_connection_that_the_server_closed_while_nobody_asked_is_made_anew() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()

    async def ask() -> list[wire.Sent]:
        server, found = await asyncio.start_server(serve, "127.0.0.1", 0), [wire.Sent(0), wire.Sent(1)]
        connection = wire.Http(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/x")
        for one in found:
            await connection.ask(b"{}", one)
            while connection._link is not None:  # noqa: ASYNC110 - until its end has been heard
                await asyncio.sleep(0)
        server.close()
        return found

    assert [one.raw for one in asyncio.run(asyncio.wait_for(ask(), 60))] == [[b"{}"], [b"{}"]]


def test_a_whole_answer_is_one_response() -> None:
    one = _raw(b'HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n{"a": 1}')
    assert [wire.event(raw) for raw in one.raw] == [{"a": 1}]


@pytest.mark.parametrize(("raw", "data"), [(b"data: [DONE]", None), (b": ping", None), (b'data:{"a": 1}', {"a": 1})])
def test_what_is_no_json_is_no_response(raw: bytes, data: object) -> None:
    assert wire.event(raw) == data


def test_tritons_response_is_read_from_its_bytes() -> None:
    from tritonclient.grpc import service_pb2

    message = service_pb2.ModelStreamInferResponse()
    message.infer_response.outputs.add(name="num_output_tokens", datatype="INT32", shape=[1])
    message.infer_response.outputs.add(name="text_output", datatype="BYTES", shape=[1])
    message.infer_response.raw_output_contents.extend([b"\x07\0\0\0", b"\x04\0\0\0\xf0\x9f\x90\x9d"])
    message.infer_response.parameters["triton_final_response"].bool_param = True
    raw = message.SerializeToString()
    assert wire.outputs(raw) == {"num_output_tokens": 7, "text_output": "🐝"}
    assert wire.FINAL in raw
    message.infer_response.parameters["triton_final_response"].bool_param = False
    assert wire.FINAL not in message.SerializeToString()
