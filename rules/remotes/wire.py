"""What every remote does the same way: names, patience with a bad line, bytes as they arrive, errors."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO, TypeVar

from blake3 import blake3
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_exponential_jitter

from rules.errors import Problem
from rules.remotes import Heard, Patience, RemoteError

__all__ = ["PROBE", "PROBE_TEXT", "Arrival", "Departure", "Headway", "Passing", "checked", "failure", "insist", "scrub"]

PROBE = "probe"
PROBE_TEXT = b"written by whoever asks whether this remote takes writes\n"

_T = TypeVar("_T")
_MIB = 1 << 20
_SECRET_NAME = re.compile(r"KEY|SECRET|TOKEN|PASS|SAS|AUTH|CREDENTIAL", re.IGNORECASE)


def checked(name: str) -> str:
    """`name` itself. Raises ValueError when it is not one that every remote can hold."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or not name.isprintable():
        raise ValueError(f"not the name of an object: {name!r}")
    return name


def failure(url: str, what: str, why: object, hint: str = "") -> RemoteError:
    """`what` could not be done at `url`, because of `why`."""
    return RemoteError(Problem(what=f"{url}: {what}", facts=(("why", scrub(str(why))),), hint=hint))


def scrub(text: str) -> str:
    """The first line of a library's message, without queries, user names or anything secret of the environment."""
    line = text.strip().partition("\n")[0]
    line = re.sub(r"(?<=://)[^/\s@]*@", "", line)
    line = re.sub(r"\?[^\s)\"']*", "", line)
    for name, value in os.environ.items():
        if len(value) > 5 and _SECRET_NAME.search(name):
            line = line.replace(value, "***")
    return line.strip()


class Passing(Exception):
    """A failure that may pass. `reached` is whether anyone answered, `since` when (monotonic) things last went well,
    `after_s` how long the server asks to be left alone.
    """

    def __init__(self, error: RemoteError, *, reached: bool, since: float | None = None, after_s: float = 0.0) -> None:
        super().__init__(str(error))
        self.error = error
        self.reached = reached
        self.since = since
        self.after_s = after_s


def insist(call: Callable[[], _T], patience: Patience) -> _T:
    """What `call` returns, called again while it raises Passing and patience lasts. Then raises its RemoteError.

    Somebody who does not answer at all is given up sooner than somebody who is busy.
    """
    backoff = wait_exponential_jitter(multiplier=0.2, max=10, jitter=0.2)

    def wait(state: RetryCallState) -> float:
        return max(backoff(state), _passing(state).after_s)

    def spent(state: RetryCallState) -> bool:
        last = _passing(state)
        since = max(state.start_time, last.since or 0.0)
        limit = patience.retry_s if last.reached else min(patience.retry_s, patience.connect_s)
        return time.monotonic() + state.upcoming_sleep - since > limit

    retrying = Retrying(retry=retry_if_exception_type(Passing), wait=wait, stop=spent, reraise=True)
    try:
        return retrying(call)
    except Passing as last:
        raise last.error from None


def _passing(state: RetryCallState) -> Passing:
    last = state.outcome.exception() if state.outcome else None
    assert isinstance(last, Passing)
    return last


class Headway:
    """How far a transfer came, over all its attempts. `since` is when (monotonic) it last came further.

    A byte now and then is no progress, only a whole MiB is; and to come again to where it was is none either, or a line
    that always breaks at the same place would be tried for ever.
    """

    def __init__(self) -> None:
        self._furthest = 0
        self.since = time.monotonic()

    def reached(self, count: int) -> None:
        """So many bytes were carried by this attempt and those that it goes on from."""
        if count // _MIB > self._furthest:
            self._furthest = count // _MIB
            self.since = time.monotonic()


class Arrival:
    """A file that is hashed while it is written.

    In one thread: to write or to hash in another was tried, and on two cores, shared with the server, cost more than
    it saved (benchmarks/results/store-remote-threads.txt); several files arrive at once anyway.
    """

    def __init__(self, file: BinaryIO, heard: Heard) -> None:
        self._file = file
        self._heard = heard
        self._hash = blake3()
        self.way = Headway()
        self.count = 0

    def add(self, data: bytes | memoryview) -> None:
        """The next bytes."""
        self._hash.update(data)
        self._file.write(data)
        self.count += len(data)
        self.way.reached(self.count)
        self._heard(len(data))

    def restart(self) -> None:
        """Forgets all bytes."""
        self._file.seek(0)
        self._file.truncate()
        self._hash = blake3()
        self._heard(-self.count)
        self.count = 0

    def digest(self) -> str:
        """BLAKE3 of all bytes, 64 hexadecimal digits."""
        return self._hash.hexdigest()


class Departure:
    """A file in pieces. `stopped` is what `heard` raised: a server that cannot end an upload would hide it."""

    def __init__(self, file: BinaryIO, heard: Heard) -> None:
        self._file = file
        self._heard = heard
        self.stopped: BaseException | None = None

    def __iter__(self) -> Iterator[bytes]:
        while piece := self._file.read(_MIB):
            yield piece
            try:
                self._heard(len(piece))
            except BaseException as error:
                self.stopped = error
                raise
