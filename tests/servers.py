"""Real servers on loopback for the tests marked `server`: nginx with DAV and s3rver.

`python -m tests.servers` installs them where they are missing: nginx from the distribution (needs root and apt), s3rver
from npm into artifacts/servers.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes import PROJECT
from tests.serving import free

__all__ = ["install", "nginx", "s3rver"]

_NPM = PROJECT / "artifacts" / "servers"
_S3RVER = "s3rver@3.7.1"
_CONF = """
daemon off; worker_processes 1; pid {root}/nginx.pid; error_log {root}/error.log;{user}
events {{ worker_connections 256; }}
http {{
  access_log off; client_max_body_size 0; sendfile on;
  client_body_temp_path {root}/body; proxy_temp_path {root}/t1; fastcgi_temp_path {root}/t2;
  uwsgi_temp_path {root}/t3; scgi_temp_path {root}/t4;
  server {{
    listen 127.0.0.1:{port}; root {root}/data;
    location / {{ dav_methods PUT DELETE; create_full_put_path on; }}
    location /read-only/ {{ limit_except GET {{ deny all; }} }}
  }}
}}
"""


def install() -> None:
    """Installs what is missing."""
    if _nginx() is None:
        _apt("nginx")
    if _s3rver() is None:
        if shutil.which("npm") is None:
            _apt("npm")
        subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--prefix", str(_NPM), _S3RVER], check=True)


def _apt(package: str) -> None:
    subprocess.run(["apt-get", "update", "-q"], check=True)
    subprocess.run(["apt-get", "install", "-qy", "--no-install-recommends", package], check=True)


@contextlib.contextmanager
def nginx(root: Path) -> Iterator[int]:
    """nginx that keeps its files below `root`/data; yields its port. /read-only/ takes no PUT."""
    port = free()[0]
    (root / "data").mkdir(parents=True)
    user = " user root;" if os.getuid() == 0 else ""
    (root / "nginx.conf").write_text(_CONF.format(root=root, port=port, user=user))
    with _running([_found("nginx", _nginx()), "-p", str(root), "-c", str(root / "nginx.conf")], port, root):
        yield port


@contextlib.contextmanager
def s3rver(root: Path) -> Iterator[int]:
    """An S3 server with the bucket `engines` and the login S3RVER / S3RVER; yields its port."""
    port = free()[0]
    (root / "data").mkdir(parents=True)
    where = ["-d", str(root / "data"), "-a", "127.0.0.1", "-p", str(port)]
    with _running([_found("s3rver", _s3rver()), *where, "--configure-bucket", "engines"], port, root):
        yield port


def _nginx() -> str | None:
    return shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")


def _s3rver() -> str | None:
    return shutil.which("s3rver", path=f"{os.environ['PATH']}:{_NPM / 'node_modules' / '.bin'}")


def _found(name: str, path: str | None) -> str:
    """.ci/run installs them; a machine that has only Python tests the same promises on the other remotes."""
    return path or pytest.skip(f"{name} is not installed: python -m tests.servers")


@contextlib.contextmanager
def _running(command: list[str], port: int, root: Path) -> Iterator[None]:
    with (root / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        _wait(process, port, root / "server.log")
        yield
    finally:
        process.terminate()
        process.wait(60)


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise AssertionError(f"no answer on port {port}: {log.read_text()}")


if __name__ == "__main__":
    install()
