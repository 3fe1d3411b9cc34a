"""Results from here and from the team: the store, and a remote behind it that may fail without failing the build.

A remote hit needs only the result and the knowledge that every blob it names can be had; the blobs come when a command
or the user needs them. A download is hashed as it arrives and thrown away when it is not what its name says; when we
may write, the blob that we make instead takes its place. The first error of the remote is one warning; then it is off
for this process.

    ac/<key>      a receipt       sig/<key>   its signatures
    cas/<digest>  a blob          rec/<key>   its record, for people
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from rules import sign, tree
from rules.action import Entry, Receipt
from rules.remotes import Remote, RemoteError
from rules.store import Store

__all__ = ["Cache", "Hit", "Mode"]

Mode = Literal["off", "read", "write"]
_STREAMS = 8  # transfers at once: enough to fill a link with the latency of an object store
_MB = 1e6
_UNASKED = "{}\n"  # the signatures of a remote result that was taken when nobody had to have signed it
_Answer = TypeVar("_Answer")


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A result that can be used. `where` says whether its blobs are all in the local store."""

    receipt: Receipt
    where: Literal["local", "remote"]


@dataclass(kw_only=True)
class Cache:
    """The local `store` with a `remote` behind it.

    `mode` is what may be done with the remote; `trusted` are the public keys of which one must have signed a remote
    result; `seed` is the private key that signs ours; `warn` is told what a person should know, once each.
    """

    store: Store
    remote: Remote | None = None
    mode: Mode = "off"
    trusted: frozenset[str] = frozenset()
    seed: str = field(default="", repr=False)
    warn: Callable[[str], None] = print
    _told: set[str] = field(default_factory=set)
    _wrong: set[str] = field(default_factory=set)  # blobs that the remote has and that are not what their name says
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def find(self, key: str) -> Hit | None:
        """The result of `key`, or None for a miss."""
        receipt = self.store.get(key)
        if receipt and not (self.trusted and self.store.note("signatures", key) == _UNASKED):
            return Hit(receipt=receipt, where="local")
        receipt = self._find_remote(key)
        if receipt is None:
            return None
        with contextlib.suppress(OSError):  # a store that cannot be written: asked again the next time
            self.store.keep(key, receipt)
        return Hit(receipt=receipt, where="local" if not self.store.missing(receipt) else "remote")

    def fetch(self, receipt: Receipt, heard: Callable[[str], None]) -> bool:
        """Brings the blobs of `receipt` into the store. False when one of them cannot be had: then it is a miss.

        Raises OSError when the disk has no room for them.
        """
        wanted = {entry.digest: entry for entry in self.store.missing(receipt)}.values()
        return not wanted or self._ask(lambda remote: self._fetch(remote, wanted, heard), otherwise=False)

    def push(self, key: str, receipt: Receipt, heard: Callable[[str], None]) -> bool:
        """Sends a result whose blobs are here: only what the remote lacks, blobs first. False when it was not sent."""
        if self.mode != "write":
            return False
        return self._ask(lambda remote: self._push(remote, key, receipt, heard), otherwise=False)

    def sign(self, key: str, receipt: Receipt) -> None:
        """Signs a result that was made here, if there is a private key; else it is unsigned, whatever it was."""
        if self.seed:
            self.store.write_note("signatures", key, sign.sign(self.seed, key, receipt))
        elif self.store.note("signatures", key):
            self.store.write_note("signatures", key, "")

    def _find_remote(self, key: str) -> Receipt | None:
        return self._ask(lambda remote: self._read(remote, key), otherwise=None)

    def _read(self, remote: Remote, key: str) -> Receipt | None:
        data = remote.read(f"ac/{key}")
        if data is None:
            return None
        try:
            receipt = Receipt.parse(data.decode())
        except (ValueError, TypeError):
            self.tell(f"{remote.url}: the result {key[:16]} is unreadable, and taken as a miss")
            return None
        signature = remote.read(f"sig/{key}") if self.trusted else None
        text = signature.decode(errors="replace") if signature else None
        if not sign.believed(text, key, receipt, self.trusted):
            self.tell(f"{remote.url}: the result {key[:16]} is not signed by a trusted key, and taken as a miss")
            return None
        if not self._complete(remote, self.store.missing(receipt)):
            return None
        with contextlib.suppress(OSError):
            self.store.write_note("signatures", key, text or _UNASKED)
        return receipt

    def _complete(self, remote: Remote, entries: Iterable[Entry]) -> bool:
        return all(self._each(lambda entry: remote.size(_blob(entry)) == entry.size, entries))

    def _fetch(self, remote: Remote, wanted: Collection[Entry], heard: Callable[[str], None]) -> bool:
        size = sum(entry.size for entry in wanted)
        told = _Bytes("downloading", size, heard)
        with tree.room(self.store.root, size):
            return all(self._each(lambda entry: self._fetch_one(remote, entry, told), wanted, told))

    def _fetch_one(self, remote: Remote, entry: Entry, told: _Bytes) -> bool:
        path = tree.aside(self.store.blob(entry.digest), "get")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            arrived = remote.fetch(_blob(entry), path, told.of(entry))
            if arrived == entry.digest:
                self.store.adopt(path, entry)
                return True
        except _TooLongError:
            arrived = ""
        finally:
            path.unlink(missing_ok=True)
        if arrived is not None:
            self._wrong.add(entry.digest)
        reason = "is not there" if arrived is None else "is not what its name says"
        self.tell(f"{remote.url}: the blob {entry.digest[:16]} of {entry.path} {reason}, and taken as a miss")
        return False

    def _push(self, remote: Remote, key: str, receipt: Receipt, heard: Callable[[str], None]) -> bool:
        if not remote.writable():
            self.mode = "read"
            self.tell(f"{remote.url} is read-only for us: results stay here")
            return False
        present = self._each(lambda entry: self._has(remote, entry), receipt.entries)
        lacking = {e.digest: e for e, there in zip(receipt.entries, present, strict=True) if not there}.values()
        told = _Bytes("uploading", sum(entry.size for entry in lacking), heard)
        self._each(lambda entry: remote.send(_blob(entry), self.store.blob(entry.digest), told.add), lacking, told)
        self._wrong.difference_update(entry.digest for entry in lacking)
        for kind, folder in (("records", "rec"), ("signatures", "sig")):
            text = self.store.note(kind, key)  # type: ignore[arg-type]
            if text and text != _UNASKED:
                remote.write(f"{folder}/{key}", text.encode())
        remote.write(f"ac/{key}", receipt.text().encode())
        return True

    def _has(self, remote: Remote, entry: Entry) -> bool:
        return entry.digest not in self._wrong and remote.size(_blob(entry)) == entry.size

    def _each(
        self, do: Callable[[Entry], _Answer], entries: Iterable[Entry], told: _Bytes | None = None
    ) -> list[_Answer]:
        """An answer for each, several at once. When one fails, or a person interrupts, the transfers of `told` end."""
        with ThreadPoolExecutor(_STREAMS) as pool:
            answers = [pool.submit(do, entry) for entry in entries]
            try:
                for answer in as_completed(answers):
                    answer.result()
            except BaseException:
                if told:
                    told.stopped = True
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            return [answer.result() for answer in answers]

    def _ask(self, question: Callable[[Remote], _Answer], *, otherwise: _Answer) -> _Answer:
        """What the remote answers; `otherwise` when there is none, or it fails, after which it is off."""
        if self.remote is None or self.mode == "off":
            return otherwise
        try:
            return question(self.remote)
        except RemoteError as error:
            self.mode = "off"
            self.tell(f"the remote cache is off for this run: {error}")
            return otherwise

    def tell(self, text: str) -> None:
        """Warns, once of each thing."""
        with self._lock:
            new = text not in self._told
            self._told.add(text)
        if new:
            self.warn(text)


class _TooLongError(Exception):
    """More bytes came than the blob has."""


class _StoppedError(Exception):
    """Another transfer failed, or a person interrupted: nobody waits for this one any more."""


class _Bytes:
    """Sums the bytes of several transfers and tells of them; once `stopped`, each ends with its next bytes."""

    def __init__(self, verb: str, total: int, heard: Callable[[str], None]) -> None:
        self._verb, self._total, self._heard = verb, total, heard
        self._done = 0
        self._lock = threading.Lock()
        self.stopped = False

    def of(self, entry: Entry) -> Callable[[int], None]:
        """What one blob's transfer tells; one that does not end must not fill the disk."""
        come = 0

        def add(count: int) -> None:
            nonlocal come
            come += count
            self.add(count)
            if come > entry.size:
                raise _TooLongError

        return add

    def add(self, count: int) -> None:
        if self.stopped:
            raise _StoppedError
        with self._lock:
            self._done += count
            self._heard(f"{self._verb} {self._done / _MB:.1f} of {self._total / _MB:.1f} MB")


def _blob(entry: Entry) -> str:
    return f"cas/{entry.digest}"
