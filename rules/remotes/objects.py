"""S3, Google Cloud Storage, Azure Blob Storage and a folder, through obstore.

Objects travel in parts of 8 MiB, several at once. obstore retries each request and resumes a part that was cut; a
multipart upload appears when it is complete, and a folder's file is renamed into place.
"""

from __future__ import annotations

import os
import re
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from datetime import timedelta
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

import obstore
from obstore.exceptions import BaseError, GenericError, PermissionDeniedError, UnauthenticatedError
from obstore.store import AzureStore, GCSStore, LocalStore, ObjectStore, S3Store

from rules.remotes import Heard, Patience, Remote
from rules.remotes.credentials import aws_profile
from rules.remotes.wire import PROBE, PROBE_TEXT, Arrival, Departure, checked, failure

__all__ = ["Objects", "bucket", "open_remote", "why"]

_MIB = 1 << 20
_PART = 8 * _MIB
_MOST_PARTS = 10_000  # https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
_DOWN = 6  # parts on their way to us, of all downloads together: 6 x 8 MiB of memory
_UP = 4  # parts on their way out, of one upload
_UPLOADS = 2  # uploads at once: 2 x 4 x 8 MiB
_CLOUDS = ("AWS", "AZURE", "GOOGLE")  # how the names of their variables begin
_PERMISSIONS = {
    "s3": ("s3:GetObject and s3:ListBucket (without it S3 says forbidden for what is missing)", "s3:PutObject"),
    "gs": ("storage.objects.get and storage.objects.list", "storage.objects.create and storage.objects.delete"),
    "az": ("the role Storage Blob Data Reader", "the role Storage Blob Data Contributor"),
    "file": ("leave to read the folder", "leave to write in the folder"),
}


def open_remote(parts: SplitResult, patience: Patience) -> Remote:
    """The bucket or folder at an s3, gs, az or file URL."""
    url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
    profile = aws_profile() if parts.scheme == "s3" else {}
    return Objects(url, parts.scheme, partial(_store, parts, profile, patience), patience)


def bucket(name: str, prefix: str, patience: Patience) -> ObjectStore:
    """The folder `prefix` of an S3 bucket; credentials and endpoint as for a remote cache. Raises Misconfigured."""
    return _store(urlsplit(f"s3://{name}/{prefix}"), aws_profile(), patience, patience.retry_s)


def _store(parts: SplitResult, profile: Any, patience: Patience, retry_s: float) -> ObjectStore:
    if parts.scheme == "file":
        return LocalStore(prefix=Path(unquote(parts.path)), mkdir=True)
    options: dict[str, Any] = {
        "prefix": parts.path.strip("/") or None,
        "client_options": _client(patience),
        "retry_config": {"retry_timeout": timedelta(seconds=retry_s)},
    }
    if parts.scheme == "gs":
        return GCSStore(parts.netloc, **options)
    if parts.scheme == "az":
        return AzureStore(parts.netloc, **options)
    options["client_options"]["allow_http"] |= _loopback(profile.get("endpoint", ""))
    return S3Store(parts.netloc, config=profile, **options)


def _client(patience: Patience) -> dict[str, Any]:
    """Without these obstore ends any request after 30 s, however well it goes. They hide AWS_ALLOW_HTTP from it."""
    allowed = any(os.environ.get(f"{cloud}_ALLOW_HTTP", "").lower() in ("1", "true") for cloud in _CLOUDS)
    endpoints = (value for name, value in os.environ.items() if name.startswith(_CLOUDS) and "ENDPOINT" in name)
    return {
        "allow_http": allowed or any(map(_loopback, endpoints)),
        "connect_timeout": timedelta(seconds=patience.connect_s),
        "read_timeout": timedelta(seconds=patience.silence_s),
        "timeout": timedelta(days=7),
    }


def _loopback(endpoint: str) -> bool:
    return urlsplit(endpoint).hostname in ("127.0.0.1", "localhost", "::1")


class Objects:
    """One bucket or folder, with a prefix. `opened` gives a store that retries for so many seconds."""

    def __init__(self, url: str, scheme: str, opened: Callable[[float], ObjectStore], patience: Patience) -> None:
        self.url = url
        self._scheme = scheme
        self._open = opened
        self._patience = patience
        self._stores: dict[float, ObjectStore] = {}
        self._answered = False
        self._lock = threading.Lock()
        self._parts = ThreadPoolExecutor(_DOWN, thread_name_prefix="remote")
        self._arriving = threading.Semaphore(_DOWN)
        self._uploads = ThreadPoolExecutor(_UPLOADS, thread_name_prefix="remote-up")
        self._probing = threading.Lock()
        self._writable: bool | None = None

    def size(self, name: str) -> int | None:
        """Bytes of an object, None when it is not there."""
        with self._reading(name):
            try:
                return obstore.head(self._store, checked(name))["size"]
            except FileNotFoundError:
                return None

    def read(self, name: str) -> bytes | None:
        """A small object, None when it is not there."""
        with self._reading(name):
            try:
                return bytes(obstore.get(self._store, checked(name)).bytes())
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes) -> None:
        """Puts a small object."""
        with self._writing(name):
            obstore.put(self._store, checked(name), data, use_multipart=False)

    def fetch(self, name: str, target: Path, heard: Heard) -> str | None:
        """Streams an object into `target`, several parts at once."""
        size = self.size(name)
        if size is None:
            return None
        with target.open("wb") as file, closing(self._in_order(name, size)) as parts:
            arrival = Arrival(file, heard)
            for chunk in chain.from_iterable(parts):
                arrival.add(chunk)
        if arrival.count != size:
            raise failure(self.url, f"could not read {name}", f"{arrival.count} bytes came instead of {size}")
        return arrival.digest()

    def send(self, name: str, path: Path, heard: Heard) -> None:
        """Puts a file, several parts at once; `heard` is told when a part is handed over."""
        size = path.stat().st_size
        if size <= _PART:
            self.write(name, path.read_bytes())
            heard(size)
            return
        self._uploads.submit(self._send, name, path, heard, max(_PART, -(-size // _MOST_PARTS))).result()

    def _send(self, name: str, path: Path, heard: Heard, part: int) -> None:
        """In threads of our own: over eight callers' threads glibc's arenas grew to 230 MB, over these to 92."""
        with path.open("rb") as file, self._writing(name):
            pieces = Departure(file, heard)
            try:
                obstore.put(self._store, checked(name), pieces, chunk_size=part, max_concurrency=_UP)
            except BaseError:
                if pieces.stopped is None:
                    raise
                raise pieces.stopped from None

    def writable(self) -> bool:
        """Whether the probe could be written."""
        with self._probing:
            if self._writable is None:
                self._writable = self._probe()
            return self._writable

    @property
    def _store(self) -> ObjectStore:
        """Opened at its first use, whose error it is when it cannot be. Until somebody answered, it gives up soon."""
        retry_s = self._patience.retry_s if self._answered else self._patience.connect_s
        with self._lock:
            if retry_s not in self._stores:
                try:
                    self._stores[retry_s] = self._open(retry_s)
                except (BaseError, OSError) as error:
                    raise failure(self.url, "cannot be used", why(error)) from None
            return self._stores[retry_s]

    def _probe(self) -> bool:
        with self._writing(PROBE):
            try:
                obstore.put(self._store, PROBE, PROBE_TEXT, use_multipart=False)
            except (PermissionDeniedError, UnauthenticatedError):
                return False
            except GenericError as error:
                if not re.search(r"\(os error (1|13|30)\)", str(error)):  # EPERM, EACCES, EROFS
                    raise
                return False
            return True

    def _in_order(self, name: str, size: int) -> Generator[list[memoryview], None, None]:
        """The parts of an object, each as its chunks. Waits for leave to hold another part only when it holds none."""
        starts = deque(range(0, size, _PART))
        pending: deque[Future[list[memoryview]]] = deque()
        try:
            while starts or pending:
                while starts and self._arriving.acquire(blocking=not pending):
                    start = starts.popleft()
                    pending.append(self._parts.submit(self._part, name, start, min(start + _PART, size)))
                yield pending[0].result()
                pending.popleft()
                self._arriving.release()
        finally:
            for part in pending:
                part.cancel()
                self._arriving.release()

    def _part(self, name: str, start: int, end: int) -> list[memoryview]:
        """Bytes `start` to `end` in chunks, which `bytes()` would hold twice to join them."""
        with self._reading(name):
            found = obstore.get(self._store, name, options={"range": (start, end)})
            return [memoryview(chunk) for chunk in found.stream(min_chunk_size=_MIB)]

    def _reading(self, name: str) -> AbstractContextManager[None]:
        return self._guard(f"could not read {name}", _PERMISSIONS[self._scheme][0])

    def _writing(self, name: str) -> AbstractContextManager[None]:
        return self._guard(f"could not write {name}", _PERMISSIONS[self._scheme][1])

    @contextmanager
    def _guard(self, what: str, permission: str) -> Iterator[None]:
        """Turns obstore's errors into RemoteError."""
        try:
            yield
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise failure(self.url, what, why(error), f"this needs {permission}") from None
        except (BaseError, FileNotFoundError) as error:
            raise failure(self.url, what, why(error)) from None
        self._answered = True


def why(error: Exception) -> str:
    """The cause of an error. obstore's first line says only what was sent; the answer and a dump come after it."""
    text = str(error)
    causes = re.findall(r'(?:message|error): "([^"]+)"', text)
    if "kind: Connect," in text and causes:
        return f"cannot connect: {causes[-1]}"
    status = re.search(r"status code: (\d+[\w ]*)", text)
    if status:
        code = re.search(r"<Code>(\w+)</Code>", text)
        return f"{status[1]} ({code[1]})" if code else status[1]
    line = text.partition("\n")[0]
    return f"nothing happened for too long: {line}" if "TimedOut" in text else line
