"""An HTTP server that takes GET, HEAD and PUT of files: nginx with DAV, or any other of Bazel's HTTP caches.

urllib3, because it streams both ways at 25 MB of memory: over loopback 290 MiB/s up and 530 down, where httpx managed
150 and 130, and obstore's HTTP store holds the whole upload in memory.
"""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import SplitResult, quote, unquote, urlsplit

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    MaxRetryError,
    NameResolutionError,
    NewConnectionError,
    ReadTimeoutError,
    SSLError,
)

from rules.remotes import Heard, Patience, Remote
from rules.remotes.credentials import AUTHORIZATION, authorization
from rules.remotes.wire import PROBE, PROBE_TEXT, Arrival, Headway, Passing, checked, failure, insist

__all__ = ["Http", "open_remote"]

_SENT = 1 << 20
_RECEIVED = 1 << 18  # with 1 MiB the kernel took up to five times as long, on and off: store-remote-threads.txt
_THREADS = 16  # connections that are kept alive
_REDIRECTS = 5
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_READ_ONLY = (401, 403, 405, 501)
_HINTS = {
    401: f"the server wants to know who you are: put a login in ~/.netrc, or a header in {AUTHORIZATION}",
    403: "the server must permit {method} at this path to you",
    405: "the server takes no {method} here; with nginx: dav_methods PUT",
    409: "the folder is not there; with nginx: create_full_put_path on",
    413: "the server limits uploads; with nginx: client_max_body_size 0",
    507: "the server's disk is full",
}


def open_remote(parts: SplitResult, patience: Patience) -> Remote:
    """The server at an http or https URL."""
    return Http(f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}", parts.hostname or "", patience)


class Http:
    """One server; connections are kept alive and shared by threads."""

    def __init__(self, url: str, host: str, patience: Patience) -> None:
        self.url = url
        self._patience = patience
        self._headers = {"Accept-Encoding": "identity", **authorization(host)}
        self._pool = _pool(url, host, patience)
        self._probing = threading.Lock()
        self._writable: bool | None = None

    def size(self, name: str) -> int | None:
        """Bytes of an object, None when it is not there."""
        response = self._ask("HEAD", name)
        if response is None:
            return None
        length = response.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise failure(self.url, f"no size of {name}", "the answer to HEAD has no Content-Length")
        return int(length)

    def read(self, name: str) -> bytes | None:
        """A small object, None when it is not there."""
        response = self._ask("GET", name)
        return None if response is None else response.data

    def write(self, name: str, data: bytes) -> None:
        """Puts a small object."""
        self._ask("PUT", name, data)

    def fetch(self, name: str, target: Path, heard: Heard) -> str | None:
        """Streams an object into `target`; after a cut it goes on where it was, if the server gives ranges."""
        with target.open("wb") as file:
            arrival = Arrival(file, heard)
            return arrival.digest() if insist(lambda: self._arrive(name, arrival), self._patience) else None

    def send(self, name: str, path: Path, heard: Heard) -> None:
        """Puts a file in one request; nginx shows it when it is whole. After a cut it starts over."""
        way = Headway()

        def once() -> None:
            with path.open("rb") as file:
                body = _Body(file, heard, way)
                try:
                    self._once("PUT", name, body, {"Content-Length": str(path.stat().st_size)})
                except Passing as error:
                    heard(-body.count)
                    error.since = way.since
                    raise

        insist(once, self._patience)

    def writable(self) -> bool:
        """Whether PUT is answered by anything but a refusal."""
        with self._probing:
            if self._writable is None:
                refused = insist(lambda: self._once("PUT", PROBE, PROBE_TEXT, {}, _READ_ONLY), self._patience)
                self._writable = refused is not None
            return self._writable

    def _ask(self, method: str, name: str, body: bytes | None = None) -> urllib3.BaseHTTPResponse | None:
        return insist(lambda: self._once(method, name, body, {}), self._patience)

    def _once(
        self, method: str, name: str, body: Any, headers: Mapping[str, str], refusals: tuple[int, ...] = ()
    ) -> urllib3.BaseHTTPResponse | None:
        """One whole exchange."""
        response = self._open(method, name, body, headers, refusals)
        if response is not None:
            try:
                _ = response.data
            except HTTPError as error:
                raise self._failed(f"{method} {name} was cut", error) from None
        return response

    def _open(
        self, method: str, name: str, body: Any, headers: Mapping[str, str], refusals: tuple[int, ...] = ()
    ) -> urllib3.BaseHTTPResponse | None:
        """A response whose body is still to be read; None when it is not there, or the status is one of
        `refusals`.
        """
        try:
            response = self._pool.request(
                method,
                f"{self.url}/{quote(checked(name))}",
                body=body,
                headers={**self._headers, **headers},
                preload_content=False,
                decode_content=False,
                redirect=method != "PUT",
                retries=urllib3.Retry(None, connect=0, read=0, status=0, other=0, redirect=_REDIRECTS),
            )
        except (HTTPError, OSError) as error:
            raise self._failed(f"no answer to {method} {name}", error) from None
        status = response.status
        if status in (200, 201, 204, 206):
            return response
        response.drain_conn()
        if status in refusals or (method != "PUT" and status in (404, 410)):
            return None
        raise self._refused(method, name, response)

    def _refused(self, method: str, name: str, response: urllib3.BaseHTTPResponse) -> Exception:
        status = response.status
        hint = _HINTS.get(status, "").format(method=method)
        error = failure(self.url, f"{method} {name} was refused", f"{status} {response.reason or ''}", hint)
        if status not in _BUSY:
            return error
        after = response.headers.get("Retry-After", "")
        return Passing(error, reached=True, after_s=float(after) if after.isdecimal() else 0.0)

    def _failed(self, what: str, error: Exception, since: float | None = None) -> Exception:
        reason = error.reason if isinstance(error, MaxRetryError) and error.reason else error
        if isinstance(reason, SSLError):
            return failure(self.url, what, reason, "SSL_CERT_FILE names the certificates to trust")
        if isinstance(reason, (ConnectTimeoutError, NewConnectionError, NameResolutionError)):
            why = f"cannot connect: {str(reason).rpartition(': ')[2]}"
            return Passing(failure(self.url, what, why), reached=False, since=since)
        silent = isinstance(reason, (ReadTimeoutError, TimeoutError)) or "timed out" in str(reason)
        why = f"nothing happened for {self._patience.silence_s:g} s" if silent else str(reason)
        return Passing(failure(self.url, what, why), reached=True, since=since)

    def _arrive(self, name: str, arrival: Arrival) -> bool:
        """One connection's worth of an object, from where the last one ended. False when it is not there."""
        start = arrival.count
        response = self._open("GET", name, None, {"Range": f"bytes={start}-"} if start else {}, (416,))
        if start and (response is None or not _goes_on(response, start)):
            arrival.restart()
            if response is None:
                return self._arrive(name, arrival)
        if response is None:
            return False
        try:
            for chunk in response.stream(_RECEIVED):
                arrival.add(chunk)
        except HTTPError as error:
            raise self._failed(f"GET {name} was cut after {arrival.count} bytes", error, arrival.way.since) from None
        finally:
            response.close()  # of one that was read to its end, the connection lives on
        return True


def _goes_on(response: urllib3.BaseHTTPResponse, start: int) -> bool:
    return response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {start}-")


class _Body:
    """A file that is counted while a request reads it."""

    def __init__(self, file: BinaryIO, heard: Heard, way: Headway) -> None:
        self._file = file
        self._heard = heard
        self._way = way
        self.count = 0

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.count += len(data)
        self._way.reached(self.count)
        self._heard(len(data))
        return data


def _pool(url: str, host: str, patience: Patience) -> urllib3.PoolManager:
    """Connections as the environment's proxy variables say."""
    options: dict[str, Any] = {
        "maxsize": _THREADS,
        "blocksize": _SENT,
        "timeout": urllib3.Timeout(connect=patience.connect_s, read=patience.silence_s),
    }
    through = urllib.request.getproxies().get(url.partition(":")[0])
    if through and not urllib.request.proxy_bypass(host):
        login = unquote(urlsplit(through).netloc.rpartition("@")[0])
        headers = urllib3.make_headers(proxy_basic_auth=login) if login else None
        pool: urllib3.PoolManager = urllib3.ProxyManager(through, proxy_headers=headers, **options)
    else:
        pool = urllib3.PoolManager(**options)
    pool.pool_classes_by_scheme = {
        "http": _patient(urllib3.HTTPConnectionPool, patience.silence_s),
        "https": _patient(urllib3.HTTPSConnectionPool, patience.silence_s),
    }
    return pool


def _patient(pool: type[Any], silence_s: float) -> type[Any]:
    """`pool` with connections that may wait while they send. urllib3 would send under the timeout of connecting, and
    a server that flushes its disk for three seconds would be a broken one.
    """

    class Connection(pool.ConnectionCls):  # type: ignore[misc, name-defined]
        def connect(self) -> None:
            super().connect()
            self.sock.settimeout(silence_s)

    return type(pool.__name__, (pool,), {"ConnectionCls": Connection})
