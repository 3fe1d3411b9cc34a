"""A hub on loopback that speaks Hugging Face's protocol and ModelScope's, and fails as told.

Two servers: the hub, and the host that it sends clients to for large files, which must never see a token. Paths and
headers are those that huggingface_hub 1.21 and modelscope's own client use.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

__all__ = ["TOKEN", "Fault", "Hub", "Repository", "checkpoint", "running", "safetensors"]

TOKEN = "hf_SecretOfThisTest"
_SIGNATURE = "X-Amz-Signature=SecretSignature"
_LARGE = 4096  # from here on a file is in LFS


@dataclass(kw_only=True)
class Fault:
    """What goes wrong with the next `times` requests of a file's bytes: a status (with Retry-After), a body that is cut
    after some bytes, pauses between pieces, other bytes, another type, no ranges; `etag` is what the hub claims.
    """

    times: int = 1
    status: int = 0
    after: str = ""
    cut: int | None = None
    pause_s: float = 0.0
    pause_from: int = 0  # of ranges that start there or later
    instead: bytes | None = None
    kind: str = "application/octet-stream"
    ranges: bool = True
    etag: str = ""


@dataclass(kw_only=True)
class Repository:
    """Files at one commit. `gated` and `private` ones want a token that is in `readers`."""

    files: dict[str, bytes]
    commit: str = "c0ffee00" * 5
    gated: bool = False
    private: bool = False
    readers: tuple[str, ...] = (TOKEN,)

    def large(self, path: str) -> bool:
        return len(self.files[path]) >= _LARGE


@dataclass(kw_only=True)
class Seen:
    """One request: host ("hub" or "cdn"), method, path with query, headers in lower case."""

    host: str
    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Hub:
    """`repositories` by ORG/NAME, `faults` by the path of a file, `requests` as they came."""

    repositories: dict[str, Repository]
    url: str = ""
    cdn: str = ""
    faults: dict[str, Fault] = field(default_factory=dict)
    down: list[int] = field(default_factory=list)  # statuses of the next requests of the API
    requests: list[Seen] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def sent(self, path: str) -> list[Seen]:
        """The GET requests of a file's bytes from where they lie."""
        content = next(it.files[path] for it in self.repositories.values() if path in it.files)
        names = (f"/cdn/{hashlib.sha256(content).hexdigest()}", f"/{path}", f"FilePath={path}")
        return [it for it in self.requests if it.method == "GET" and any(name in it.path for name in names)]

    def env(self) -> dict[str, str]:
        """What points clients here."""
        return {"HF_ENDPOINT": self.url, "MODELSCOPE_ENDPOINT": self.url}


def safetensors(size: int, salt: bytes = b"") -> bytes:
    """A true safetensors file of about `size` bytes that do not repeat."""
    data = b"".join(
        hashlib.sha256(salt + struct.pack("<Q", block)).digest() * 512 for block in range(size // 16384 + 1)
    )
    header = json.dumps({"w": {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}}).encode()
    return struct.pack("<Q", len(header)) + header + data


def checkpoint(size: int = 40_000) -> dict[str, bytes]:
    """The files of a small repository."""
    config = {
        "model_type": "qwen2",
        **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "num_hidden_layers"), 4),
        "max_position_embeddings": 2048,
    }
    return {
        ".gitattributes": b"*.safetensors filter=lfs\n",
        "README.md": b"# a model\n",
        "config.json": json.dumps(config).encode(),
        "generation_config.json": b'{"eos_token_id": [1, 2]}',
        "model.safetensors": safetensors(size),
        "tokenizer.json": b"{}" + b" " * 5000,
        "tokenizer_config.json": b'{"chat_template": "{{ messages }}", "eos_token": {"content": "<end>"}}',
    }


@contextmanager
def running(hub: Hub) -> Iterator[Hub]:
    """The hub and its other host, on ports of their own."""
    servers = [_server(hub, _HubRequest), _server(hub, _Request)]
    hub.url, hub.cdn = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
    threads = [threading.Thread(target=server.serve_forever, args=(0.02,)) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
        for thread in threads:
            thread.join()


class _Server(ThreadingHTTPServer):
    """A client that goes away is no error."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def _server(hub: Hub, handler: type[_Request]) -> ThreadingHTTPServer:
    server = _Server(("127.0.0.1", 0), type("Bound", (handler,), {"hub": hub}))
    server.daemon_threads = True
    return server


class _Request(BaseHTTPRequestHandler):
    """The host of large files: /cdn/SHA256?signature."""

    hub: Hub
    host = "cdn"
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._begin()

    def do_GET(self) -> None:
        self._begin()

    def _begin(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        with self.hub.lock:
            self.hub.requests.append(Seen(host=self.host, method=self.command, path=self.path, headers=headers))
        try:
            self.answer()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def answer(self) -> None:
        sha256 = urlsplit(self.path).path.rpartition("/")[2]
        if "Signature=" not in self.path:
            self.say(403, b"no signature")
            return
        for repository in self.hub.repositories.values():
            for path, content in repository.files.items():
                if hashlib.sha256(content).hexdigest() == sha256:
                    self.file(path, content, {})
                    return
        self.say(404, b"")

    def say(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def table(self, data: object, **headers: str) -> None:
        self.say(200, json.dumps(data).encode(), Content_Type="application/json", **headers)

    def file(self, path: str, content: bytes, headers: dict[str, str]) -> None:
        """The bytes, as a range if asked for one, and as the fault of this path wants it."""
        fault = self._fault(path)
        if fault.status:
            self.say(fault.status, b"", **({"Retry_After": fault.after} if fault.after else {}))
            return
        content = content if fault.instead is None else fault.instead
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, end = 0, len(content)
        if wanted and fault.ranges:
            start, end = int(wanted[1]), min(len(content), int(wanted[2] or len(content)) + 1)
        self.send_response(206 if wanted and fault.ranges else 200)
        for name, value in {"Content-Type": fault.kind, **headers}.items():
            self.send_header(name, value)
        if wanted and fault.ranges:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if self.command == "GET":
            self._pour(content[start:end], fault, start)

    def _pour(self, body: bytes, fault: Fault, start: int) -> None:
        if fault.cut is not None:
            body, self.close_connection = body[: fault.cut], True
        pause_s = fault.pause_s if start >= fault.pause_from else 0.0
        step = 65536 if pause_s else len(body)
        for at in range(0, len(body), step or 1):
            self.wfile.write(body[at : at + step])
            time.sleep(pause_s)
        self.wfile.flush()
        if fault.cut is not None:
            self.connection.close()

    def _fault(self, path: str) -> Fault:
        with self.hub.lock:
            fault = self.hub.faults.get(path)
            if self.command != "GET" or fault is None or fault.times < 1:
                return Fault()
            fault.times -= 1
            return fault


class _HubRequest(_Request):
    """The hub itself."""

    host = "hub"

    def answer(self) -> None:
        url = urlsplit(self.path)
        if url.path.startswith("/api/") and self.hub.down:
            self.say(self.hub.down.pop(0), b"", Retry_After="0")
            return
        for name, repository in self.hub.repositories.items():
            rest = {
                f"/api/models/{name}": self._api,
                f"/api/v1/models/{name}/repo": self._modelscope,
                f"/{name}/resolve/": self._resolve,
            }
            for prefix, answer in rest.items():
                if url.path == prefix or url.path.startswith(prefix.rstrip("/") + "/"):
                    answer(repository, unquote(url.path[len(prefix) :]).strip("/"), parse_qs(url.query))
                    return
        self.say(404 if self._token() else 401, b"", X_Error_Code="RepoNotFound")

    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _refused(self, repository: Repository, *, reads: bool) -> bool:
        """Says so when this client may not read it; of a gated repository the listing is open."""
        known = self._token() in ("", TOKEN, *repository.readers)
        if not known:
            message = "Invalid credentials in Authorization header"
            self.say(401, b"", X_Error_Message=message)
        elif repository.private and self._token() not in repository.readers:
            self.say(404 if self._token() else 401, b"", X_Error_Code="RepoNotFound")
        elif repository.gated and reads and self._token() not in repository.readers:
            self.say(403 if self._token() else 401, b"", X_Error_Code="GatedRepo")
        else:
            return False
        return True

    def _api(self, repository: Repository, rest: str, query: dict[str, list[str]]) -> None:
        if self._refused(repository, reads=False):
            return
        verb, _, revision = rest.partition("/")
        if revision and revision not in ("main", "v1", repository.commit):
            self.say(404, b"", X_Error_Code="RevisionNotFound")
        elif verb == "tree":
            self.table([self._entry(repository, path) for path in sorted(repository.files)])
        else:
            self.table({"id": "o/n", "sha": repository.commit, "gated": "manual" if repository.gated else False})

    @staticmethod
    def _entry(repository: Repository, path: str) -> dict[str, object]:
        content = repository.files[path]
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        entry: dict[str, object] = {"type": "file", "path": path, "size": len(content), "oid": blob}
        if repository.large(path):
            sha256 = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
        return entry

    def _resolve(self, repository: Repository, rest: str, query: dict[str, list[str]]) -> None:
        revision, _, path = rest.partition("/")
        if self._refused(repository, reads=True):
            return
        if revision not in ("main", repository.commit):
            self.say(404, b"", X_Error_Code="RevisionNotFound")
        elif path not in repository.files:
            self.say(404, b"", X_Error_Code="EntryNotFound")
        else:
            self._give(repository, path, {"X-Repo-Commit": repository.commit})

    def _give(self, repository: Repository, path: str, headers: dict[str, str]) -> None:
        """A small file itself, of a large one where it lies."""
        content = repository.files[path]
        if not repository.large(path):
            self.file(path, content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', **headers})
            return
        fault = self.hub.faults.get(path)
        sha256 = hashlib.sha256(content).hexdigest()
        linked = {"X_Linked_Etag": f'"{(fault and fault.etag) or sha256}"', "X_Linked_Size": str(len(content))}
        known = {name.replace("-", "_"): value for name, value in headers.items()}
        self.say(302, b"", Location=f"{self.hub.cdn}/cdn/{sha256}?{_SIGNATURE}", **linked, **known)

    def _modelscope(self, repository: Repository, rest: str, query: dict[str, list[str]]) -> None:
        if self._refused(repository, reads=True):
            return
        revision = query["Revision"][0]
        if rest == "files":
            known = revision in ("master", repository.commit)
            rows = [self._row(repository, path) for path in sorted(repository.files)] if known else None
            latest = {"Id": "", "ShortId": repository.commit[:8]}
            self.table({"Code": 200, "Data": {"Files": rows, "LatestCommitter": latest}})
        elif query["FilePath"][0] not in repository.files or revision != repository.commit:
            self.say(404, b"")
        else:
            self._give(repository, query["FilePath"][0], {})

    @staticmethod
    def _row(repository: Repository, path: str) -> dict[str, object]:
        content = repository.files[path]
        return {
            "Path": path,
            "Name": path.rpartition("/")[2],
            "Type": "blob",
            "Size": len(content),
            "Sha256": hashlib.sha256(content).hexdigest(),
            "IsLFS": repository.large(path),
            "Revision": repository.commit,
        }
