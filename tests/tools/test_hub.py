"""Downloads that are cut, throttled and lied to: what counts is verified, what has arrived is not asked for again."""

from __future__ import annotations

import hashlib
import io
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from tests.fakes import PROJECT
from tests.hub import TOKEN, Fault, Hub, Repository, checkpoint, running, safetensors

TOOLS = PROJECT / "rules" / "tools"
BIG = "model.safetensors"


@dataclass
class Download:
    """A download of `files` (all of the repository) from `place` into `root`."""

    hub: Hub
    root: Path
    place: str = "hf:o/n@" + "c0ffee00" * 5
    patience_s: float = 20.0
    env: dict[str, str] = field(default_factory=dict)
    here: dict[str, list[str]] = field(default_factory=dict)

    @property
    def files(self) -> dict[str, bytes]:
        return self.hub.repositories["o/n"].files

    def listing(self) -> list[list[object]]:
        return [[path, len(it), hashlib.sha256(it).hexdigest()] for path, it in sorted(self.files.items())]

    def words(self) -> list[str]:
        for name in ("out", "partial"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        listing = {"place": self.place, "files": self.listing(), "here": self.here}
        (self.root / "files.json").write_text(json.dumps(listing))
        words = {name: str(self.root / path) for name, path in (("partial", "partial"), ("out", "out"))}
        words |= {"files": str(self.root / "files.json"), "digests": str(self.root / "digests.json")}
        words |= {"places": str(TOOLS / "places.py"), "patience-s": str(self.patience_s)}
        return [str(TOOLS / "hub.py"), *(f"--{name}={value}" for name, value in words.items())]

    def start(self) -> subprocess.Popen[str]:
        """As the executor runs it."""
        return subprocess.Popen(
            [sys.executable, "-I", *self.words()],
            env={"PATH": os.environ["PATH"], "HOME": str(self.root), **self.hub.env(), **self.env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self) -> tuple[int, str]:
        """In this process, which saves the second that it takes to start."""
        said = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(said):
            for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "MODELSCOPE_API_TOKEN", *self.env):
                patch.delenv(name, raising=False)
            for name, value in {**self.hub.env(), **self.env}.items():
                patch.setenv(name, value)
            patch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(self.root / "token"))
            patch.setattr(sys, "argv", self.words())
            code = runpy.run_path(str(TOOLS / "hub.py"))["main"]()
        return code, said.getvalue()

    def succeed(self, process: subprocess.Popen[str] | None = None) -> str:
        said = process.communicate(timeout=120)[0] if process else ""
        code, said = (process.returncode, said) if process else self.run()
        assert code == 0, said
        out = self.root / "out"
        assert {it.relative_to(out).as_posix(): it.read_bytes() for it in out.rglob("*") if it.is_file()} == self.files
        assert not list((self.root / "partial").iterdir())
        digests = json.loads((self.root / "digests.json").read_text())
        assert digests == {path: blake3(content).hexdigest() for path, content in self.files.items()}
        return said

    def refusal(self) -> str:
        code, said = self.run()
        assert code == 1, said
        assert "error: " in said
        assert "Traceback" not in said
        assert TOKEN not in said
        assert "Signature" not in said
        assert not (self.root / "digests.json").exists()
        return said


@pytest.fixture
def download(tmp_path: Path) -> Iterator[Download]:
    """A repository of one shard of 40 MB, in three parts, and small files."""
    with running(Hub({"o/n": Repository(files=checkpoint(40_000_000))})) as hub:
        yield Download(hub, tmp_path)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Download]:
    """A repository of 50 kB."""
    with running(Hub({"o/n": Repository(files=checkpoint())})) as hub:
        yield Download(hub, tmp_path)


def test_every_file_arrives_verified_and_with_its_blake3(download: Download) -> None:
    said = download.succeed(download.start())
    total = sum(map(len, download.files.values())) / 1e6
    assert f"{total:,.1f} of {total:,.1f} MB, " in said
    assert "MB/s" in said
    ranges = sorted(it.headers["range"] for it in download.hub.sent(BIG) if it.host == "cdn")
    assert len(ranges) == len(set(ranges)) == 3


def test_modelscope_gives_the_same_files(small: Download) -> None:
    small.place = "modelscope:o/n@" + "c0ffee00" * 5
    small.env["MODELSCOPE_API_TOKEN"] = TOKEN
    small.succeed()
    assert all("cookie" not in it.headers for it in small.hub.requests if it.host == "cdn")
    assert any(it.headers.get("cookie") == f"m_session_id={TOKEN}" for it in small.hub.requests if it.host == "hub")


def test_the_token_goes_to_the_hub_and_not_to_where_it_sends_us(small: Download) -> None:
    small.hub.repositories["o/n"].gated = True
    small.env["HF_TOKEN"] = TOKEN
    assert TOKEN not in small.succeed()
    sent = {(it.host, it.headers.get("authorization")) for it in small.hub.requests}
    assert sent == {("hub", f"Bearer {TOKEN}"), ("cdn", None)}


def test_the_token_of_the_file_that_the_login_writes_is_used(small: Download) -> None:
    small.hub.repositories["o/n"].gated = True
    (small.root / ".cache" / "huggingface").mkdir(parents=True)
    (small.root / ".cache" / "huggingface" / "token").write_text(TOKEN)
    assert TOKEN not in small.succeed(small.start())


def test_a_cut_connection_goes_on_where_it_was(download: Download) -> None:
    download.hub.faults[BIG] = Fault(times=4, cut=5_000_000)
    said = download.succeed()
    assert f"{BIG}: " in said, "a person sees that something went wrong"
    starts = [int(it.headers["range"][6:].partition("-")[0]) for it in download.hub.sent(BIG) if it.host == "cdn"]
    assert len(starts) > 3
    assert len(set(starts)) == len(starts), "nothing that had arrived was asked for again"


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_busy_server_is_asked_again(small: Download, status: int) -> None:
    small.hub.faults[BIG] = Fault(times=2, status=status, after="0")
    small.hub.faults["config.json"] = Fault(times=1, status=status, after="1")
    assert f"the server said {status}" in small.succeed()


def test_a_server_that_asks_to_be_left_alone_is(small: Download) -> None:
    small.hub.faults["config.json"] = Fault(status=429, after="2")
    assert "config.json: the server said 429; again in 2.0 s" in small.succeed()


def test_a_link_that_expired_is_asked_for_again(download: Download) -> None:
    download.hub.faults[BIG] = Fault(times=2, status=403)
    assert "the link that the hub gave has expired" in download.succeed()


def test_what_arrived_before_a_kill_is_not_asked_for_again(download: Download) -> None:
    download.hub.faults[BIG] = Fault(times=99, pause_s=0.2, pause_from=1)
    process = download.start()
    partial = download.root / "partial" / hashlib.sha256(download.files[BIG]).hexdigest()
    until = time.monotonic() + 60
    while not (partial.exists() and partial.stat().st_size) and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = partial.stat().st_size
    assert 0 < kept < len(download.files[BIG])
    download.hub.faults.clear()
    download.hub.requests.clear()
    assert "going on after" in download.succeed()
    starts = [int(it.headers["range"][6:].partition("-")[0]) for it in download.hub.sent(BIG) if it.host == "cdn"]
    assert min(starts) == kept


def test_a_damaged_part_of_an_earlier_run_is_found_and_fetched_anew(small: Download) -> None:
    name = hashlib.sha256(small.files[BIG]).hexdigest()
    (small.root / "partial").mkdir()
    (small.root / "partial" / name).write_bytes(b"\0" * 30_000)
    assert "was damaged; from the start" in small.succeed()


def test_a_part_that_is_longer_than_the_file_is_cut_to_it(small: Download) -> None:
    name = hashlib.sha256(small.files[BIG]).hexdigest()
    (small.root / "partial").mkdir()
    (small.root / "partial" / name).write_bytes(small.files[BIG] + b"more")
    small.succeed()
    assert not [it for it in small.hub.requests if it.host == "cdn" and name in it.path]


def test_a_server_without_ranges_is_good_enough(download: Download) -> None:
    download.hub.faults[BIG] = Fault(times=99, ranges=False)
    download.succeed()


WRONG = {
    "other bytes of the same size": (Fault(times=9, instead=b"x"), "is not what models.lock says"),
    "a pointer": (Fault(times=9, instead=b"version https://git-lfs.github.com/spec/v1\n"), "models.lock says"),
    "a page": (Fault(times=9, instead=b"<html>log in</html>", kind="text/html; charset=utf-8"), "an HTML page came"),
    "another size": (Fault(times=9, instead=b"short"), "found   5 bytes"),
    "another file by the hub's own word": (Fault(times=0, etag="ab" * 32), f"found   sha256 {'ab' * 32}"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_the_locked_file_is_refused_and_not_kept(small: Download, name: str) -> None:
    fault, said = WRONG[name]
    size = len(small.files[BIG])
    pad = fault.instead is not None and name != "another size"
    instead = fault.instead.ljust(size, b"x") if fault.instead and pad else fault.instead
    small.hub.faults[BIG] = Fault(times=fault.times, instead=instead, kind=fault.kind, etag=fault.etag)
    told = small.refusal()
    assert said in told
    assert BIG in told
    assert "hint: " in told
    assert not (small.root / "partial" / hashlib.sha256(small.files[BIG]).hexdigest()).exists()


def test_a_pointer_in_the_place_of_a_file_is_called_one(small: Download) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\n".ljust(len(small.files[BIG]))
    small.hub.faults[BIG] = Fault(times=9, instead=pointer)
    assert "a Git LFS pointer" in small.refusal()


def test_a_cut_safetensors_that_the_hub_itself_has_is_refused(small: Download) -> None:
    small.files[BIG] = safetensors(40_000)[:-1]
    told = small.refusal()
    assert f"{BIG}: has {len(small.files[BIG])} bytes, its header says {len(small.files[BIG]) + 1}" in told


def test_shards_that_are_not_taken_are_named(small: Download) -> None:
    index = {"weight_map": {"a": BIG, "b": "model-00002-of-00002.safetensors"}}
    small.files["model.safetensors.index.json"] = json.dumps(index).encode()
    assert "names model-00002-of-00002.safetensors, which is not taken" in small.refusal()


REFUSALS: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "gated, no token": ({"gated": True}, "", ("hf:o/n@c0ffee00", "HF_TOKEN is not set")),
    "gated, no access": ({"gated": True, "readers": ()}, TOKEN, ("is gated", "as the owner of HF_TOKEN")),
    "bad token": ({}, "hf_old", ("401", "set HF_TOKEN to a valid token")),
    "private": ({"private": True, "readers": ()}, TOKEN, ("404", "is private")),
    "moved": ({"commit": "1" * 40}, "", ("404", "removed or renamed")),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_says_which_and_what_to_do(small: Download, name: str) -> None:
    change, token, words = REFUSALS[name]
    vars(small.hub.repositories["o/n"]).update(change)
    small.env |= {"HF_TOKEN": token} if token else {}
    told = small.refusal()
    assert all(word in told for word in words), told
    assert "hf_old" not in told


def test_the_first_failure_ends_the_others_and_what_they_have_is_kept(download: Download) -> None:
    download.hub.faults[BIG] = Fault(times=99, pause_s=0.2, pause_from=1)
    download.hub.faults["tokenizer_config.json"] = Fault(times=99, status=404)
    assert "tokenizer_config.json was refused" in download.refusal()
    assert not (download.root / "out" / BIG).exists()


def test_an_empty_file_is_one(small: Download) -> None:
    small.files["empty.json"] = b""
    small.succeed()


def test_patience_without_a_byte_ends(small: Download) -> None:
    small.hub.faults[BIG] = Fault(times=999, status=503)
    small.patience_s = 0.5
    told = small.refusal()
    assert "could not be downloaded" in told
    assert "the next run goes on from there" in told


def test_a_hub_that_is_not_there_is_an_error_without_a_traceback(small: Download) -> None:
    small.env["HF_ENDPOINT"] = "http://127.0.0.1:9"
    small.patience_s = 0.1
    assert "could not be downloaded" in small.refusal()


def test_offline_asks_nobody(small: Download) -> None:
    small.env["HF_HUB_OFFLINE"] = "1"
    assert "HF_HUB_OFFLINE is set, and the store does not have hf:o/n@" in small.refusal()
    assert not small.hub.requests


def test_what_is_here_is_not_downloaded(small: Download) -> None:
    stored = small.root / "stored"
    stored.write_bytes(small.files[BIG])
    content = blake3(small.files[BIG]).hexdigest()
    small.here[hashlib.sha256(small.files[BIG]).hexdigest()] = [str(stored), content]
    assert f"1 of {len(small.files)} files were here already" in small.succeed()
    assert not [it for it in small.hub.requests if it.host == "cdn" and BIG in it.path]
    assert (small.root / "out" / BIG).stat().st_ino == stored.stat().st_ino


def test_all_here_and_offline_is_enough(small: Download) -> None:
    for path, content in small.files.items():
        stored = small.root / "stored" / path
        stored.parent.mkdir(exist_ok=True)
        stored.write_bytes(content)
        small.here[hashlib.sha256(content).hexdigest()] = [str(stored), blake3(content).hexdigest()]
    small.env["HF_HUB_OFFLINE"] = "1"
    small.succeed()


def test_equal_files_are_downloaded_once(small: Download) -> None:
    small.files["copy/of.safetensors"] = small.files[BIG]
    small.succeed()
    assert len([it for it in small.hub.sent(BIG) if it.host == "cdn"]) == 1


def test_pickles_are_warned_of(small: Download) -> None:
    small.files["pytorch_model.bin"] = b"pickled"
    assert "warning: pickled weights can run code" in small.succeed()
