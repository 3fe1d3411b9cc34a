"""The ports of servers: those that were asked for can be had, and the others are free and stay so."""

from __future__ import annotations

import contextlib
import http.client
import secrets
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logs import Refused

if TYPE_CHECKING:
    from collections.abc import Sequence

Server = dict[str, Any]

# A server binds its ports only when its engine is loaded, minutes from now. What the kernel gives to a connection or to
# who asks for any port is above these (ip(7), ip_local_port_range), so that nobody gets one of them by chance.
QUIET = range(10_000, 32_768)


def settle(servers: Sequence[Server]) -> None:
    """Every port of every server can be had, and each is named once; one that is 0 becomes a free one."""
    facts: list[tuple[str, object]] = []
    with contextlib.ExitStack() as held:
        for server in servers:
            for purpose, port in server["ports"].items():
                try:
                    server["ports"][purpose] = bind(held, server["host"], port) if port else free(held, server["host"])
                except (OSError, OverflowError) as reason:
                    owner = port_owner(port)
                    facts.append((f"{server['name']}, {purpose}", f"{port}: {owner or reason}"))
    if facts:
        raise Refused("a port cannot be used", facts, "doit stop ends our servers; --http-port N chooses others")


def free(held: contextlib.ExitStack, host: str) -> int:
    """A port that nobody listens on."""
    for port in secrets.SystemRandom().sample(QUIET, 1000):
        with contextlib.suppress(OSError):
            return bind(held, host, port)
    raise OSError("none is free")


def bind(held: contextlib.ExitStack, host: str, port: int) -> int:
    """Listens on host:port as long as `held` is open."""
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    bound = held.enter_context(socket.socket(family, kind))
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((address[0], port))
    bound.listen()
    return port


def port_owner(port: int) -> str:
    """`pid N: command` of the process that listens on `port`; empty when /proc does not tell (proc(5), net/tcp)."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            rows = [row.split() for row in Path(table).read_text().splitlines()[1:]]
            inodes |= {f"socket:[{row[9]}]" for row in rows if row[3] == "0A" and row[1].endswith(f":{port:04X}")}
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if str(link.readlink()) in inodes:
                command = (link.parents[1] / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                return f"pid {link.parents[1].name}: {command[:100].strip()}"
    return ""


def answers(host: str, port: int, path: str) -> bool:
    """Whether GET `path` gives 200. Not with urllib, which would ask a proxy."""
    with contextlib.closing(http.client.HTTPConnection(host, port, timeout=2)) as connection:
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
