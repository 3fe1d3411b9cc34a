"""What holds for each remote: a folder and a small HTTP cache always, nginx and an S3 server with -m server."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rules import digest
from rules.remotes import Remote, connect
from tests.fakes import PROJECT
from tests.servers import nginx, s3rver
from tests.shelf import Shelf

KINDS = ["file", "http", pytest.param("nginx", marks=pytest.mark.server), pytest.param("s3", marks=pytest.mark.server)]
ODD = ["a b", "100%", "x%20y", "a+b&c=d", "ünïcödé", "中文/𝄞", "results/ab/cd.json", "~t(1)!'*", "a:b@c;d,e", "q?#x"]
_serial = itertools.count()


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path, cache: Shelf, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty remote."""
    if request.param == "file":
        return f"file://{tmp_path}/remote"
    if request.param == "http":
        return f"{cache.url}/cache"
    if request.param == "nginx":
        return f"http://127.0.0.1:{request.getfixturevalue('nginx_port')}/{next(_serial)}"
    request.getfixturevalue("s3_login")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{request.getfixturevalue('s3_port')}")
    return f"s3://engines/{next(_serial)}"


@pytest.fixture
def remote(url: str) -> Remote:
    return connect(url)


@pytest.mark.parametrize("name", ODD)
def test_a_name_comes_back_whatever_it_holds(remote: Remote, tmp_path: Path, name: str) -> None:
    data = name.encode() * 3
    remote.write(name, data)
    assert remote.read(name) == data
    assert remote.size(name) == len(data)
    assert remote.fetch(name, tmp_path / "got", print) == digest.of_bytes(data)


@pytest.mark.parametrize("name", ["", "/a", "a//b", "a/", "../a", "a/./b", "a\nb", "a\0b"])
def test_a_name_that_leaves_the_remote_is_refused(remote: Remote, name: str) -> None:
    with pytest.raises(ValueError, match="not the name of an object"):
        remote.read(name)
    with pytest.raises(ValueError, match="not the name of an object"):
        remote.write(name, b"")


def test_what_is_missing_is_none(remote: Remote, tmp_path: Path) -> None:
    assert remote.size("blobs/ab/cd") is None
    assert remote.read("blobs/ab/cd") is None
    assert remote.fetch("blobs/ab/cd", tmp_path / "got", print) is None


@pytest.mark.parametrize("size", [0, 1, 8 << 20, (8 << 20) + 1])
def test_a_file_comes_back(remote: Remote, tmp_path: Path, size: int) -> None:
    path = tmp_path / "sent"
    path.write_bytes(b"x" * size)
    remote.send("blobs/x", path, lambda _: None)
    assert remote.size("blobs/x") == size
    assert remote.fetch("blobs/x", tmp_path / "got", lambda _: None) == digest.of_file(path)
    assert (tmp_path / "got").read_bytes() == path.read_bytes()


def test_a_big_file_travels_in_parts_and_every_byte_is_heard(remote: Remote, big: Path, tmp_path: Path) -> None:
    heard: list[int] = []
    remote.send("blobs/big", big, heard.append)
    assert sum(heard) == big.stat().st_size
    assert len(heard) > 10
    heard.clear()
    assert remote.fetch("blobs/big", tmp_path / "got", heard.append) == digest.of_file(big)
    assert sum(heard) == (tmp_path / "got").stat().st_size == big.stat().st_size
    assert len(heard) > 10


def test_what_is_written_again_is_replaced(remote: Remote) -> None:
    remote.write("results/a", b"old")
    remote.write("results/a", b"new")
    assert remote.read("results/a") == b"new"


def test_a_changed_object_has_another_digest(remote: Remote, big: Path, tmp_path: Path) -> None:
    data = bytearray(big.read_bytes())
    data[len(data) // 2] ^= 1
    for wrong in (bytes(data), bytes(data)[: 70 << 20]):
        (tmp_path / "wrong").write_bytes(wrong)
        remote.send("blobs/big", tmp_path / "wrong", lambda _: None)
        assert remote.fetch("blobs/big", tmp_path / "got", lambda _: None) == digest.of_bytes(wrong)


def test_many_threads_share_a_remote(remote: Remote, tmp_path: Path) -> None:
    def there_and_back(number: int) -> bool:
        path = tmp_path / f"{number}"
        path.write_bytes(bytes([number]) * ((number % 4) * (7 << 20) + number))
        remote.send(f"blobs/{number}", path, lambda _: None)
        return remote.fetch(f"blobs/{number}", tmp_path / f"{number}.got", lambda _: None) == digest.of_file(path)

    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(there_and_back, range(24)))


def test_a_remote_that_takes_writes_is_writable(remote: Remote) -> None:
    assert remote.writable()


def test_a_file_that_is_not_there_is_not_the_remotes_fault(remote: Remote, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        remote.send("blobs/x", tmp_path / "nothing", lambda _: None)


def test_whoever_hears_of_bytes_may_end_the_transfer(remote: Remote, big: Path, tmp_path: Path) -> None:
    def enough(_: int) -> None:
        raise TimeoutError("enough")

    with pytest.raises(TimeoutError, match="enough"):
        remote.send("blobs/big", big, enough)
    assert remote.size("blobs/big") is None
    remote.send("blobs/big", big, lambda _: None)
    with pytest.raises(TimeoutError, match="enough"):
        remote.fetch("blobs/big", tmp_path / "got", enough)
    assert remote.fetch("blobs/big", tmp_path / "got", lambda _: None) == digest.of_file(big)


_MEASURE = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from rules.remotes import connect
remote, folder = connect(sys.argv[1]), Path(sys.argv[2])
heard = lambda _: None
with ThreadPoolExecutor(4) as threads:
    list(threads.map(lambda name: remote.send(name, folder / "huge", heard), ("a", "b", "c", "d")))
    assert all(threads.map(lambda name: remote.fetch(name, folder / name, heard), ("a", "b", "c", "d")))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))  # kB
"""


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.parametrize("kind", ["file", "nginx", "s3"])
def test_memory_grows_neither_with_the_blob_nor_with_the_threads(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3_login: None
) -> None:
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 28)
    for target in _server(kind, tmp_path, monkeypatch):
        command = [sys.executable, "-c", _MEASURE, target, str(tmp_path)]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True, timeout=300)
        assert int(done.stdout) < 200_000, f"{done.stdout} kB"


def _server(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if kind == "file":
        yield f"file://{tmp_path}/remote"
    elif kind == "nginx":
        with nginx(tmp_path / "server") as port:
            yield f"http://127.0.0.1:{port}"
    else:
        with s3rver(tmp_path / "server") as port:
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
            yield "s3://engines/memory"
