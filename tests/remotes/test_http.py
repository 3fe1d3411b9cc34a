"""What an HTTP server, or the line to it, can do wrong."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from rules import digest
from rules.remotes import Patience, Remote, RemoteError, connect
from rules.remotes.wire import PROBE
from tests.proxy import Fault, Kind, proxy
from tests.shelf import Shelf, shelf

SOON = Patience(retry_s=2)  # for what does not pass; what does is waited for as long as a user would
DEAF = Patience(silence_s=1, retry_s=2)
MIB = 1 << 20


def through(port: int, patience: Patience | None = None) -> Remote:
    return connect(f"http://127.0.0.1:{port}", patience)


def test_a_cut_download_goes_on_where_it_was(cache: Shelf, big: Path, tmp_path: Path) -> None:
    cache.objects["/big"] = big.read_bytes()
    heard: list[int] = []
    with proxy(cache.port, Fault("cut", "down", 20 * MIB, times=2), Fault("close", "down", 5 * MIB)) as line:
        assert through(line.port).fetch("big", tmp_path / "got", heard.append) == digest.of_file(big)
    assert sum(heard) == big.stat().st_size
    assert min(heard) > 0
    assert line.carried["down"] < 100 * MIB  # what was in the socket when the line broke is fetched again
    assert cache.asked[0] == "GET"
    assert all(asked.startswith("GET bytes=") for asked in cache.asked[1:])


def test_without_ranges_a_cut_download_starts_over(cache: Shelf, big: Path, tmp_path: Path) -> None:
    cache.objects["/big"] = big.read_bytes()
    cache.ranges = False
    heard: list[int] = []
    with proxy(cache.port, Fault("cut", "down", 20 * MIB)) as line:
        assert through(line.port).fetch("big", tmp_path / "got", heard.append) == digest.of_file(big)
    assert sum(heard) == big.stat().st_size
    assert min(heard) < 0


@pytest.mark.parametrize("kind", ["cut", "close"])
def test_a_download_that_is_always_cut_has_no_digest(cache: Shelf, big: Path, tmp_path: Path, kind: Kind) -> None:
    cache.objects["/big"] = big.read_bytes()
    with (
        proxy(cache.port, Fault(kind, "down", 30000, times=1000)) as line,
        pytest.raises(RemoteError, match="big was cut after"),
    ):
        through(line.port, SOON).fetch("big", tmp_path / "got", lambda _: None)


def test_a_flipped_bit_gives_another_digest(cache: Shelf, big: Path, tmp_path: Path) -> None:
    cache.objects["/big"] = big.read_bytes()
    with proxy(cache.port, Fault("corrupt", "down", 20 * MIB)) as line:
        got = through(line.port).fetch("big", tmp_path / "got", lambda _: None)
    assert got == digest.of_file(tmp_path / "got") != digest.of_file(big)


def test_an_object_that_vanishes_halfway_is_missing(cache: Shelf, big: Path, tmp_path: Path) -> None:
    cache.objects["/big"] = big.read_bytes()
    heard: list[int] = []

    def vanish(count: int) -> None:
        heard.append(count)
        cache.objects.clear()

    with proxy(cache.port, Fault("cut", "down", 20 * MIB)) as line:
        assert through(line.port).fetch("big", tmp_path / "got", vanish) is None
    assert sum(heard) == 0


def test_a_cut_upload_is_sent_again_and_never_shows_a_part(cache: Shelf, big: Path) -> None:
    heard: list[int] = []
    with proxy(cache.port, Fault("cut", "up", 20 * MIB)) as line:
        through(line.port).send("big", big, heard.append)
        assert list(cache.objects) == ["/big"]
        assert cache.objects["/big"] == big.read_bytes()
    assert sum(heard) == big.stat().st_size
    with proxy(cache.port, Fault("cut", "up", 20 * MIB, times=1000)) as line, pytest.raises(RemoteError, match="PUT"):
        through(line.port, SOON).send("other", big, heard.append)
    assert list(cache.objects) == ["/big"]


@pytest.mark.parametrize("at", [0, 200 * 1024])
def test_a_silent_server_is_an_error_in_time(cache: Shelf, big: Path, tmp_path: Path, at: int) -> None:
    cache.objects["/big"] = big.read_bytes()
    with (
        proxy(cache.port, Fault("stall", "down", at, times=1000)) as line,
        pytest.raises(RemoteError, match="nothing happened for 1 s"),
    ):
        through(line.port, DEAF).fetch("big", tmp_path / "got", lambda _: None)


def test_a_pause_while_sending_is_no_error(cache: Shelf, big: Path) -> None:
    with proxy(cache.port, Fault("stall", "up", 20 * MIB)) as line:
        patience = Patience(silence_s=1)
        through(line.port, patience).send("big", big, lambda _: None)  # the second connection gets through
    assert cache.objects["/big"] == big.read_bytes()


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(cache: Shelf, status: int) -> None:
    cache.refuse = {"GET": [status, status], "PUT": [status], "HEAD": [status]}
    remote = through(cache.port)
    remote.write("a", b"1")
    assert remote.read("a") == b"1"
    assert remote.size("a") == 1


def test_a_server_that_stays_busy_is_an_error(cache: Shelf) -> None:
    cache.always = {"GET": 503}
    with pytest.raises(RemoteError, match="GET a was refused\n    why  503"):
        through(cache.port, SOON).read("a")
    assert len(cache.asked) > 2


@pytest.mark.parametrize(("status", "words"), [(401, "~/.netrc"), (403, "must permit PUT"), (413, "limits uploads")])
def test_a_refusal_names_what_is_missing_and_is_not_asked_again(cache: Shelf, status: int, words: str) -> None:
    cache.always = {"PUT": status}
    with pytest.raises(RemoteError, match=words):
        through(cache.port).write("a", b"1")
    assert cache.asked == ["PUT"]


@pytest.mark.parametrize("status", [401, 403, 405, 501])
def test_a_server_that_refuses_put_is_read_only(cache: Shelf, status: int) -> None:
    cache.always = {"PUT": status}
    cache.objects["/a"] = b"1"
    remote = through(cache.port)
    assert not remote.writable()
    assert not remote.writable()
    assert remote.read("a") == b"1"
    assert cache.asked == ["PUT", "GET"]


def test_the_question_whether_it_is_writable_is_a_real_write(cache: Shelf) -> None:
    assert through(cache.port).writable()
    assert list(cache.objects) == [f"/{PROBE}"]


def test_an_unreachable_server_is_given_up_soon() -> None:
    with shelf() as gone:
        remote = connect(gone.url)
    start = time.monotonic()
    with pytest.raises(RemoteError, match=r"cannot connect: .*Connection refused"):
        remote.size("a")
    with pytest.raises(RemoteError, match=r"cannot connect: .*Connection refused"):
        remote.writable()
    assert time.monotonic() - start < Patience().retry_s, "which is for who answers"


def test_connections_are_kept_alive(cache: Shelf, tmp_path: Path) -> None:
    with proxy(cache.port) as line:
        remote = through(line.port)
        for number in range(20):
            remote.write(f"{number}", b"x" * 2 * MIB)
            assert remote.size(f"{number}") == 2 * MIB
            assert remote.size("nothing") is None
            assert remote.fetch(f"{number}", tmp_path / "got", lambda _: None)
    assert line.connections == 1


def test_the_login_comes_from_netrc_or_the_environment(
    cache: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password pass-word\n")
    through(cache.port).size("a")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    through(cache.port).size("a")
    monkeypatch.setenv("ENGINES_CACHE_AUTHORIZATION", "Bearer token-1")
    through(cache.port).size("a")
    assert cache.logins == [None, "Basic bWU6cGFzcy13b3Jk", "Bearer token-1"]


def test_no_message_holds_a_login(cache: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.always = {"GET": 403, "PUT": 503}
    said = []
    monkeypatch.setenv("ENGINES_CACHE_AUTHORIZATION", "Bearer hush-hush")
    with pytest.raises(RemoteError) as error:
        through(cache.port).read("a")
    said.append(str(error.value))
    with pytest.raises(RemoteError) as error:
        through(cache.port, SOON).write("a", b"")
    said.append(str(error.value))
    assert "hush" not in "".join(said)


@pytest.mark.server
def test_nginx_resumes_and_shows_no_part(nginx_port: int, nginx_root: Path, big: Path, tmp_path: Path) -> None:
    with proxy(nginx_port, Fault("cut", "up", 20 * MIB), Fault("cut", "down", 30 * MIB)) as line:
        remote = through(line.port)
        remote.send("deep/er/big", big, lambda _: None)
        assert remote.fetch("deep/er/big", tmp_path / "got", lambda _: None) == digest.of_file(big)
        assert line.carried["down"] < 80 * MIB
        line.faults.append(Fault("cut", "up", 20 * MIB, times=1000))
        with pytest.raises(RemoteError):
            through(line.port, SOON).send("deep/er/other", big, lambda _: None)
    assert [path.name for path in (nginx_root / "data" / "deep" / "er").iterdir()] == ["big"]


@pytest.mark.server
def test_nginx_that_limits_methods_is_read_only(nginx_port: int) -> None:
    assert not connect(f"http://127.0.0.1:{nginx_port}/read-only").writable()


def test_an_upload_that_took_long_before_it_was_cut_is_sent_again(
    cache: Shelf, big: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, later = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now() + later[0])

    def heard(_: int) -> None:
        later[0] = 3600.0

    with proxy(cache.port, Fault("cut", "up", 20 * MIB)) as line:
        connect(f"http://127.0.0.1:{line.port}").send("big", big, heard)
    assert cache.objects["/big"] == big.read_bytes()
