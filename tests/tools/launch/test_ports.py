"""Ports are had, or found."""

from __future__ import annotations

import socket
from typing import Any

import ports
import pytest
from logs import Refused


def _server(name: str, *numbers: int) -> dict[str, Any]:
    given = dict(zip(("http", "grpc", "metrics"), numbers, strict=True))
    return {"name": name, "host": "127.0.0.1", "ports": given}


def test_those_that_nobody_chose_differ_and_are_below_what_the_kernel_gives_out() -> None:
    servers = [_server("a", 0, 0, 0), _server("b", 0, 0, 0)]
    ports.settle(servers)
    found = [port for server in servers for port in server["ports"].values()]
    assert len(set(found)) == 6
    assert all(port in ports.QUIET for port in found)


def test_every_port_that_is_taken_is_named_with_who_has_it() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        with pytest.raises(Refused, match=rf"a, http +{taken}: pid \d+(.|\n)*b, grpc +{taken}: pid"):
            ports.settle([_server("a", taken, 0, 0), _server("b", 0, taken, 0)])


def test_a_number_that_is_no_port_is_refused() -> None:
    with pytest.raises(Refused, match="99999"):
        ports.settle([_server("a", 99999, 0, 0)])


def test_who_does_not_listen_does_not_answer() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        assert not ports.answers("127.0.0.1", other.getsockname()[1], "/v2/health/ready")
