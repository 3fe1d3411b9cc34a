"""How to read a range of a file from Hugging Face's hub, ModelScope or a bucket: hub.py's other half, no program.

`connect` gives a place with `read`, which raises Passing (a ConnectionError) for what may pass and Refused with a text
for the user. Who we are comes from the environment alone (HF_TOKEN or its file, MODELSCOPE_API_TOKEN, AWS_*) and goes
to nobody but the hub: not to the host that it sends us to for the bytes, and into no message.
"""

from __future__ import annotations

import os
import re
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import closing
from typing import Any, Protocol
from urllib.parse import quote, unquote, urljoin, urlsplit

import urllib3

CHUNK = 1 << 20
CONNECTIONS = 16  # that are kept alive
REDIRECTS = 5
BUSY = (408, 425, 429, 500, 502, 503, 504)
OFFLINE = ("1", "on", "yes", "true")


class Refused(RuntimeError):
    """A failure whose text is meant for the user."""

    def __init__(self, what: str, hint: str = "", **facts: object) -> None:
        width = max(map(len, facts), default=0)
        rows = [f"    {name.ljust(width)}  {value}" for name, value in facts.items()]
        super().__init__("\n".join([what, *rows, *([f"    hint: {hint}"] if hint else [])]))


class Passing(ConnectionError):
    """A failure that may pass; `after_s` is how long the server asks to be left alone."""

    def __init__(self, why: str, after_s: float = 0.0) -> None:
        super().__init__(why)
        self.after_s = after_s


class File(Protocol):
    """A path below the source, its bytes, its SHA-256."""

    path: str
    size: int
    sha256: str


def connect(name: str) -> Hub | Bucket:
    """The place called `name`."""
    scheme, _, where = name.partition(":")
    if scheme == "s3":
        return Bucket(name, where.removeprefix("//"))
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in OFFLINE
    if offline:
        hint = "unset it, or `doit cache pull` from a cache that has it"
        raise Refused(f"HF_HUB_OFFLINE is set, and the store does not have {name}", hint)
    repository, _, revision = where.rpartition("@")
    return (HuggingFace if scheme == "hf" else ModelScope)(name, repository, revision)


class Hub(ABC):
    """A server that gives ranges of files, from itself or by sending us elsewhere."""

    login = ""  # the variable that says who we are

    def __init__(self, name: str, repository: str, revision: str) -> None:
        self.name = name
        self.repository = repository
        self.revision = revision
        self._found: dict[str, str] = {}  # where a file's bytes are: asked once, since hubs count what they are asked
        self._pools: dict[str, urllib3.PoolManager] = {}

    @abstractmethod
    def url(self, path: str) -> str:
        """Where the hub has the file."""

    @abstractmethod
    def who(self) -> dict[str, str]:
        """Headers that say who we are."""

    def read(self, file: File, start: int, end: int) -> Iterator[bytes]:
        """Yields bytes `start` to `end` of a file."""
        try:
            with closing(self._open(file, start, end)) as response:
                skip = start if response.status == 200 else 0  # a server without ranges
                left = end - start
                for chunk in response.stream(CHUNK):
                    data = chunk[skip : skip + left]
                    skip = max(0, skip - len(chunk))
                    left -= len(data)
                    if data:
                        yield data
                    if not left:
                        break
        except Passing:
            raise
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Passing(scrub(error)) from None

    def close(self) -> None:
        """Closes every connection."""
        for pool in self._pools.values():
            pool.clear()

    def _open(self, file: File, start: int, end: int) -> urllib3.BaseHTTPResponse:
        home = self.url(file.path)
        url = self._found.get(file.path, home)
        headers = {"Accept-Encoding": "identity", "Range": f"bytes={start}-{end - 1}"}
        for _ in range(REDIRECTS):
            who = self.who() if urlsplit(url)[:2] == urlsplit(home)[:2] else {}
            response = self._pool(url).request(
                "GET", url, headers={**headers, **who}, preload_content=False, redirect=False, retries=False
            )
            try:
                self._drift(file, response)
                if response.status not in (301, 302, 303, 307, 308):
                    self._judge(file, response, url != home)
                    self._found[file.path] = url
                    return response
            except (Passing, Refused):
                response.close()
                raise
            response.drain_conn()
            url = urljoin(url, response.headers.get("Location", ""))
        raise Refused(f"{file.path}: is sent from place to place without an end", place=self.name)

    def _judge(self, file: File, response: urllib3.BaseHTTPResponse, elsewhere: bool) -> None:  # noqa: FBT001
        """Raise unless the answer is the file's bytes."""
        status = response.status
        if status in (200, 206):
            whole = response.headers.get("Content-Range", "").rpartition("/")[2] if status == 206 else ""
            size = whole or response.headers.get("Content-Length", "")
            kind = response.headers.get("Content-Type", "")
            if kind.startswith("text/html") and not file.path.endswith((".html", ".htm")):
                hint = "a proxy's or a login page? see HTTPS_PROXY and HF_ENDPOINT"
                raise Refused(f"{file.path}: an HTML page came instead of the file", hint, place=self.name)
            if size.isdecimal() and int(size) != file.size:
                raise self._changed(file, f"{int(size)} bytes", f"{file.size} bytes")
            return
        after = response.headers.get("Retry-After", "")
        if status in BUSY:
            raise Passing(f"the server said {status}", float(after) if after.isdecimal() else 0.0)
        if elsewhere:  # the hub itself has let us in
            self._found.pop(file.path, "")
            raise Passing(f"the link that the hub gave has expired, or is not for us ({status})")
        raise self._refusal(file, response)

    def _refusal(self, file: File, response: urllib3.BaseHTTPResponse) -> Refused:
        status, code = response.status, response.headers.get("X-Error-Code", "")
        said = f"{status} {code or response.reason or ''}".strip()
        whom = f"{self.login} is not set" if not self.who() else f"as the owner of {self.login}"
        if code == "GatedRepo":
            hint = f"ask for access on the model's page, then set {self.login} to a token of that account"
            return Refused(f"{self.name} is gated, and we may not read it", hint, said=said, we=whom)
        hints = {
            401: f"the hub does not know who we are: set {self.login} to a valid token",
            403: "ask for access on the model's page; a fine-grained token must be allowed to read gated repositories",
            404: f"it was removed or renamed, or is private: see `doit lock`, and {self.login}",
        }
        return Refused(f"{self.name}: {file.path} was refused", hints.get(status, ""), said=said, we=whom)

    def _drift(self, file: File, response: urllib3.BaseHTTPResponse) -> None:
        """Raise when the hub says that it has another file than the one that is pinned, before any bytes of it."""
        etag = response.headers.get("X-Linked-Etag", "").strip('W/"').lower()
        if re.fullmatch(r"[0-9a-f]{64}", etag) and etag != file.sha256:
            raise self._changed(file, f"sha256 {etag}", f"sha256 {file.sha256}")

    def _changed(self, file: File, found: str, locked: str) -> Refused:
        hint = "doit lock it anew if the change is meant, and look at what changed"
        return Refused(f"{file.path} is not what models.lock says", hint, place=self.name, locked=locked, found=found)

    def _pool(self, url: str) -> urllib3.PoolManager:
        """Connections as the environment's proxy variables say."""
        parts = urlsplit(url)
        through = urllib.request.getproxies().get(parts.scheme, "")
        if not through or urllib.request.proxy_bypass(parts.hostname or ""):
            through = ""
        if through not in self._pools:
            options: dict[str, Any] = {"maxsize": CONNECTIONS, "timeout": urllib3.Timeout(connect=10, read=60)}
            login = unquote(urlsplit(through).netloc.rpartition("@")[0])
            headers = urllib3.make_headers(proxy_basic_auth=login) if login else None
            self._pools[through] = (
                urllib3.ProxyManager(through, proxy_headers=headers, **options)
                if through
                else urllib3.PoolManager(**options)
            )
        return self._pools[through]


class HuggingFace(Hub):
    """https://huggingface.co or HF_ENDPOINT; a repository's files are at /ORG/NAME/resolve/COMMIT/PATH."""

    login = "HF_TOKEN"

    def url(self, path: str) -> str:
        """Where the hub has the file."""
        from huggingface_hub import hf_hub_url

        endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
        return str(hf_hub_url(self.repository, path, revision=self.revision, endpoint=endpoint))

    def who(self) -> dict[str, str]:
        """The token of HF_TOKEN or of the file that `hf auth login` writes."""
        from huggingface_hub import get_token

        token = get_token()
        return {"Authorization": f"Bearer {token}"} if token else {}


class ModelScope(Hub):
    """https://modelscope.cn or MODELSCOPE_ENDPOINT; the API that its own client uses."""

    login = "MODELSCOPE_API_TOKEN"

    def url(self, path: str) -> str:
        """Where the hub has the file."""
        endpoint = os.environ.get("MODELSCOPE_ENDPOINT", "https://modelscope.cn").rstrip("/")
        query = f"Revision={quote(self.revision, safe='')}&FilePath={quote(path, safe='')}"
        return f"{endpoint}/api/v1/models/{self.repository}/repo?{query}"

    def who(self) -> dict[str, str]:
        """The token of MODELSCOPE_API_TOKEN, as a cookie as the hub's own client sends it."""
        token = os.environ.get(self.login, "")
        return {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"} if token else {}


class Bucket:
    """A folder of an S3 bucket; credentials and endpoint from AWS_*."""

    def __init__(self, name: str, where: str) -> None:
        from obstore.store import S3Store

        self.name = name
        bucket, _, prefix = where.partition("/")
        endpoint = urlsplit(os.environ.get("AWS_ENDPOINT_URL", ""))
        plain = endpoint.hostname in ("127.0.0.1", "localhost") or bool(os.environ.get("AWS_ALLOW_HTTP"))
        self._store = S3Store(bucket, prefix=prefix or None, client_options={"allow_http": plain, "timeout": "10m"})

    def close(self) -> None:
        """Nothing: obstore keeps its connections to itself."""

    def read(self, file: File, start: int, end: int) -> Iterator[bytes]:
        """Yields bytes `start` to `end` of an object."""
        import obstore
        from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

        try:
            yield bytes(obstore.get_range(self._store, file.path, start=start, end=end))
        except FileNotFoundError:
            raise Refused(f"{file.path} is not there any more", "doit lock it anew", place=self.name) from None
        except (PermissionDeniedError, UnauthenticatedError):
            hint = "this needs s3:GetObject; see AWS_ACCESS_KEY_ID and the like"
            raise Refused(f"{file.path}: access was refused", hint, place=self.name) from None
        except (BaseError, OSError) as error:
            raise Passing(scrub(error)) from None


def scrub(error: BaseException) -> str:
    """The first line of a library's message, without queries, which carry signatures, and objects' addresses."""
    line = str(error).strip().partition("\n")[0]
    line = re.sub(r"\?[^\s)\"']*", "", line)
    return re.sub(r"<[\w.]+ object at 0x[0-9a-f]+>:? ?", "", line) or type(error).__name__
