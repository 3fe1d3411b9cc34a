"""What an object store, or the line to it, can do wrong; and where its credentials come from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rules import digest
from rules.remotes import Patience, Remote, RemoteError, connect
from tests.fakes import PROJECT
from tests.proxy import Fault, proxy
from tests.shelf import Shelf

SOON = Patience(retry_s=2)  # for what does not pass
DEAF = Patience(silence_s=2, retry_s=2)
MIB = 1 << 20
SECRET = "hush-hush-hush"


def through(port: int, monkeypatch: pytest.MonkeyPatch, patience: Patience | None = None) -> Remote:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    return connect("s3://engines/faults", patience)


@pytest.mark.server
def test_a_cut_line_is_mended_both_ways(
    s3_port: int, s3_login: None, big: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[int] = []
    with proxy(s3_port, Fault("cut", "up", 3 * MIB, times=2), Fault("cut", "down", 3 * MIB, times=2)) as line:
        remote = through(line.port, monkeypatch)
        remote.send("big", big, lambda _: None)
        assert remote.fetch("big", tmp_path / "got", heard.append) == digest.of_file(big)
        assert not any(fault.times for fault in line.faults)
    assert sum(heard) == big.stat().st_size


@pytest.mark.server
def test_a_line_that_is_always_cut_has_no_digest_and_leaves_no_object(
    s3_port: int, s3_login: None, big: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    through(s3_port, monkeypatch).send("whole", big, lambda _: None)
    with proxy(s3_port, Fault("cut", "down", 9000, times=9999), Fault("cut", "up", 2 * MIB, times=9999)) as line:
        remote = through(line.port, monkeypatch, SOON)
        with pytest.raises(RemoteError, match="could not read whole"):
            remote.fetch("whole", tmp_path / "got", lambda _: None)
        with pytest.raises(RemoteError, match="could not write part"):
            remote.send("part", big, lambda _: None)
    assert through(s3_port, monkeypatch).size("part") is None


@pytest.mark.server
def test_a_flipped_bit_gives_another_digest(
    s3_port: int, s3_login: None, big: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    through(s3_port, monkeypatch).send("big", big, lambda _: None)
    with proxy(s3_port, Fault("corrupt", "down", 5 * MIB)) as line:
        got = through(line.port, monkeypatch).fetch("big", tmp_path / "got", lambda _: None)
    assert got == digest.of_file(tmp_path / "got") != digest.of_file(big)


@pytest.mark.server
def test_a_wrong_key_names_the_permission(s3_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    remote = through(s3_port, monkeypatch)
    with pytest.raises(
        RemoteError, match=r"403 Forbidden \(InvalidAccessKeyId\)\n    hint: this needs s3:GetObject"
    ) as read:
        remote.read("a")
    with pytest.raises(RemoteError, match="s3:PutObject") as written:
        remote.write("a", b"")
    assert not remote.writable()
    assert SECRET not in str(read.value) + str(written.value)


@pytest.mark.server
def test_a_bucket_that_is_not_there_is_named(s3_port: int, s3_login: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{s3_port}")
    with pytest.raises(RemoteError, match="s3://nothing: could not write a"):
        connect("s3://nothing").write("a", b"")


@pytest.mark.server
def test_a_profile_is_as_good_as_the_environment(
    s3_port: int, profiles: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    profiles(endpoint=f"http://127.0.0.1:{s3_port}", key="S3RVER")
    monkeypatch.setenv("AWS_PROFILE", "team")
    remote = connect("s3://engines/profile")
    remote.write("a", b"1")
    assert remote.read("a") == b"1"


@pytest.mark.parametrize("status", [403, 503])
def test_no_message_holds_a_credential(cache: Shelf, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, f"{SECRET}-{name}")
    cache.always = dict.fromkeys(("GET", "HEAD", "PUT"), status)
    remote = through(cache.port, monkeypatch, SOON)
    for call in (lambda: remote.read("a"), lambda: remote.size("a"), lambda: remote.write("a", b"")):
        with pytest.raises(RemoteError, match=str(status)) as error:
            call()
        assert "hush" not in f"{error.value!r}{error.value}"
        assert error.value.__cause__ is None
        assert error.value.__suppress_context__
    assert all(login and SECRET in login for login in cache.logins)  # and yet they were sent


def test_an_azure_signature_is_in_no_message(cache: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "team")
    monkeypatch.setenv("AZURE_STORAGE_SAS_KEY", f"sv=2024&sig={SECRET}")
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", cache.url)
    cache.always = dict.fromkeys(("GET", "HEAD", "PUT"), 403)
    remote = connect("az://engines/prefix", SOON)
    with pytest.raises(RemoteError, match="Storage Blob Data Reader") as error:
        remote.read("a")
    assert "hush" not in str(error.value)
    assert not remote.writable()


def test_an_unreachable_bucket_is_given_up_soon(monkeypatch: pytest.MonkeyPatch, s3_login: None) -> None:
    remote = through(9, monkeypatch)
    start = time.monotonic()
    with pytest.raises(RemoteError, match="cannot connect: Connection refused"):
        remote.size("a")
    with pytest.raises(RemoteError, match="cannot connect: Connection refused"):
        remote.writable()
    assert time.monotonic() - start < Patience().retry_s, "which is for who answers"


def test_a_silent_bucket_is_an_error_in_time(cache: Shelf, monkeypatch: pytest.MonkeyPatch, s3_login: None) -> None:
    with proxy(cache.port, Fault("stall", "down", 0, times=99)) as line:
        remote = through(line.port, monkeypatch, DEAF)
        with pytest.raises(RemoteError, match="nothing happened for too long"):
            remote.read("a")


def test_a_folder_that_takes_no_writes_is_read_only(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:3]:
        parent.chmod(0o755)
    folder = tmp_path / "cache"
    connect(f"file://{folder}").write("a", b"1")
    folder.chmod(0o555)
    nobody = "os.setuid(65534)" if os.getuid() == 0 else ""
    program = (
        f"import os, rules.remotes.objects; from rules.remotes import connect; {nobody}\n"
        f"r = connect('file://{folder}'); print(r.writable(), r.read('a'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout == "False b'1'\n", done.stderr


def test_a_killed_upload_to_a_folder_shows_no_part(tmp_path: Path, big: Path) -> None:
    program = (
        "import os; from pathlib import Path; from rules.remotes import connect; heard = []\n"
        f"connect('file://{tmp_path}/cache').send('a', Path('{big}'),"
        " lambda n: heard.append(n) or (len(heard) > 40 and os.kill(os.getpid(), 9)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, timeout=300, check=False)
    assert done.returncode == -9
    remote = connect(f"file://{tmp_path}/cache")
    assert remote.size("a") is None
    remote.send("a", big, lambda _: None)
    assert remote.fetch("a", tmp_path / "got", lambda _: None) == digest.of_file(big)


def test_a_google_bucket_reads_its_service_account_from_the_environment(
    cache: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = {"gcs_base_url": cache.url, "disable_oauth": True, "client_email": "", "private_key": ""}
    (tmp_path / "account.json").write_text(json.dumps({**account, "private_key_id": ""}))
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "account.json"))
    monkeypatch.setenv("GOOGLE_ALLOW_HTTP", "true")
    remote = connect("gs://engines/prefix", SOON)
    remote.write("a", b"1")
    assert remote.read("a") == b"1"
    assert remote.size("b") is None
    cache.always = {"PUT": 403}
    with pytest.raises(RemoteError, match=r"storage\.objects\.create"):
        remote.write("a", b"1")
