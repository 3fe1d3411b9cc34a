"""Names, patience, arrival and scrubbing: what all remotes share."""

from __future__ import annotations

import io
import time

import pytest

from rules import digest
from rules.remotes import Patience, RemoteError
from rules.remotes.wire import Arrival, Headway, Passing, checked, failure, insist, scrub

SOON = Patience(connect_s=0.3, silence_s=1, retry_s=1)


def test_a_name_is_a_relative_path() -> None:
    assert checked("blobs/ab/cd ef.json") == "blobs/ab/cd ef.json"


@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", ".", "a/../b", "a\tb", "a\x7f"])
def test_a_name_that_is_none_is_a_mistake_of_ours(name: str) -> None:
    with pytest.raises(ValueError, match="not the name of an object"):
        checked(name)


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("PUT http://h/a?X-Amz-Signature=hush failed", "PUT http://h/a failed"),
        ("proxy http://me:hush@proxy:80 is down", "proxy http://proxy:80 is down"),
        ("the first line\n\nDebug: hush", "the first line"),
        ("no hush-1234 here", "no *** here"),
        ("", ""),
    ],
)
def test_a_message_keeps_no_secret(said: str, kept: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "hush-1234")
    monkeypatch.setenv("SHORT_KEY", "a")
    assert scrub(said) == kept


def test_what_passes_is_tried_again() -> None:
    left = [_passing(reached=True), _passing(reached=False)]

    def call() -> str:
        if left:
            raise left.pop()
        return "done"

    assert insist(call, Patience()) == "done"


def test_what_does_not_pass_is_not_tried_again() -> None:
    tries = []

    def call() -> None:
        tries.append(1)
        raise failure("s3://bucket", "no", "forbidden")

    with pytest.raises(RemoteError, match="s3://bucket: no\n    why  forbidden"):
        insist(call, SOON)
    assert len(tries) == 1


def _passing(*, reached: bool, after_s: float = 0.0, since: float | None = None) -> Passing:
    return Passing(failure("url", "busy", "503"), reached=reached, after_s=after_s, since=since)


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "monotonic", lambda: made.now)
    monkeypatch.setattr(time, "sleep", made.sleep)
    return made


def _seconds(clock: Clock, reached: bool, after_s: float = 0.0) -> float:
    def call() -> None:
        raise _passing(reached=reached, after_s=after_s)

    start = clock.now
    with pytest.raises(RemoteError, match="busy"):
        insist(call, SOON)
    return clock.now - start


def test_nobody_there_is_given_up_sooner_than_somebody_busy(clock: Clock) -> None:
    assert _seconds(clock, reached=False) <= SOON.connect_s
    assert SOON.connect_s < _seconds(clock, reached=True) <= SOON.retry_s


def test_a_wait_that_is_longer_than_patience_is_not_begun(clock: Clock) -> None:
    assert _seconds(clock, reached=True, after_s=3600) == 0


def test_progress_renews_patience(clock: Clock) -> None:
    start = clock.now

    def call() -> str:
        if clock.now - start > 60:
            return "done"
        raise _passing(reached=True, since=clock.now)

    assert insist(call, Patience(retry_s=20)) == "done"


def test_bytes_are_hashed_as_they_arrive_and_forgotten_on_a_restart() -> None:
    file, heard = io.BytesIO(), list[int]()
    arrival = Arrival(file, heard.append)
    arrival.add(b"wrong and longer")
    arrival.restart()
    arrival.add(b"right")
    arrival.add(memoryview(b"!"))
    assert file.getvalue() == b"right!"
    assert arrival.digest() == digest.of_bytes(b"right!")
    assert (arrival.count, sum(heard)) == (6, 6)


def test_only_coming_further_than_ever_is_headway() -> None:
    way = Headway()
    way.since = 0.0
    way.reached((1 << 20) - 1)
    assert way.since == 0.0  # not a MiB
    way.reached(3 << 20)
    assert way.since > 0.0
    way.since = 0.0
    for count in (1 << 20, 2 << 20, 3 << 20):  # once more from the start
        way.reached(count)
    assert way.since == 0.0
