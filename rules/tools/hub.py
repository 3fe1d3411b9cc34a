"""Bring files that are known by their SHA-256 from Hugging Face's hub, ModelScope or a bucket.

    hub.py --files FILES.json --places places.py --partial DIR --digests FILE --out DIR

FILES.json has `place` (hf:ORG/NAME@COMMIT, modelscope:ORG/NAME@COMMIT, s3://BUCKET/PREFIX), `files` (path, bytes,
SHA-256) and `here` (SHA-256 -> a file on this machine that has it, and its BLAKE3). A file travels in parts, several at
once, and is hashed while they are put together; what has arrived stays in DIR under its SHA-256, also when this ends
early, and the next run goes on from there. It counts once its SHA-256 is right. FILE gets the BLAKE3 of each file.

places.py is our other half, which knows how to read from each kind of place.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import runpy
import shutil
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from blake3 import blake3
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    wait_exponential_jitter,
)

PART = 16 << 20
CHUNK = 1 << 20
FILES = 4  # at once
AHEAD = 4  # parts of one file: FILES * AHEAD * PART is the memory this takes
LFS_MARK = b"version https://git-lfs.github.com/spec/"
HEADER_LIMIT = 100_000_000  # bytes, as the safetensors library limits it
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


class Refused(RuntimeError):
    """A failure whose text is meant for the user."""

    def __init__(self, what: str, hint: str = "", **facts: object) -> None:
        width = max(map(len, facts), default=0)
        rows = [f"    {name.ljust(width)}  {value}" for name, value in facts.items()]
        super().__init__("\n".join([what, *rows, *([f"    hint: {hint}"] if hint else [])]))


@dataclass(frozen=True)
class File:
    """A path below the source, its bytes, its SHA-256."""

    path: str
    size: int
    sha256: str


class Place(Protocol):
    """Where the files are. `name` is for messages."""

    name: str

    def read(self, file: File, start: int, end: int) -> Iterator[bytes]:
        """Yields bytes `start` to `end` of a file.

        Raises ConnectionError for what may pass, with `after_s` where the server asks to be left alone so long, and
        RuntimeError with a text for the user.
        """

    def close(self) -> None:
        """Closes every connection."""


def main() -> int:
    """Run the tool; the exit status, 1 when it refused."""
    parser = argparse.ArgumentParser(description="bring files that are known by their SHA-256")
    for name in ("--files", "--places", "--partial", "--digests", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--patience-s", type=float, default=300.0, help="of retrying without a byte")
    args = parser.parse_args()
    listing = json.loads(args.files.read_text())
    files = [File(*row) for row in listing["files"]]
    try:
        digests = bring(listing["place"], files, listing["here"], args)
        check(files, args.out)
    except (RuntimeError, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    args.digests.write_text(json.dumps({file.path: digests[file.sha256] for file in files}))
    return 0


def bring(name: str, files: list[File], here: dict[str, list[str]], args: argparse.Namespace) -> dict[str, str]:
    """Put every file below `args.out`; the BLAKE3 by SHA-256."""
    if any(file.path.endswith(PICKLES) for file in files):
        print("warning: pickled weights can run code when they are loaded", flush=True)
    first = {file.sha256: file for file in reversed(files)}
    wanted = [file for sha256, file in first.items() if sha256 not in here]
    digests = {sha256: content for sha256, (_, content) in here.items()}
    if wanted:
        args.partial.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(connect(args.places, name)) as place:
            digests |= Downloads(place, args.partial, args.out, args.patience_s).run(wanted)
    for file in files:
        if not (args.out / file.path).exists():
            there = here.get(file.sha256)
            lay(Path(there[0]) if there else args.out / first[file.sha256].path, args.out / file.path)
    if here:
        print(f"{len(here)} of {len(files)} files were here already")
    return digests


def lay(source: Path, target: Path) -> None:
    """The same content once more: a hard link, else a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def connect(program: Path, name: str) -> Place:
    """The place called `name`."""
    place: Place = runpy.run_path(str(program))["connect"](name)
    return place


class Downloads:
    """Several files at once, each in parts that are fetched ahead and put together in order."""

    def __init__(self, place: Place, folder: Path, out: Path, patience_s: float) -> None:
        self._place = place
        self._folder = folder
        self._out = out
        self._patience_s = patience_s
        self._stop = threading.Event()
        self._progress = Progress()

    def run(self, files: list[File]) -> dict[str, str]:
        """Every file below `out`; BLAKE3 by SHA-256."""
        there = {file.sha256: self._there(file) for file in files}
        self._progress.begin(sum(file.size for file in files), sum(there.values()))
        free, needed = shutil.disk_usage(self._folder).free, sum(file.size - there[file.sha256] for file in files)
        if needed > free:
            hint = "doit cache gc, or another dir in [cache]"
            raise Refused("the disk is too small", hint, needed=gib(needed), free=gib(free), folder=self._folder)
        largest = sorted(files, key=lambda file: -file.size)
        with ThreadPoolExecutor(FILES * AHEAD) as self._parts, ThreadPoolExecutor(FILES) as pool:
            running = {pool.submit(self._file, file): file for file in largest}
            ended, _ = wait(running, return_when=FIRST_EXCEPTION)
            self._stop.set()  # after the first failure the others keep what they have
            for future in running:
                future.cancel()
            for future in ended:
                future.result()
            found = {file.sha256: future.result() for future, file in running.items()}
        self._progress.tell()
        return found

    def _there(self, file: File) -> int:
        path = self._folder / file.sha256
        return min(path.stat().st_size, file.size) if path.exists() else 0

    def _file(self, file: File) -> str:
        """One whole file. What it is not is thrown away, and fetched once more when a part of it was old."""
        path, target = self._folder / file.sha256, self._out / file.path
        with self._alone(path) as part:
            old = self._there(file) > 0
            found, seen = self._arrive(file, part)
            if found is None and old:
                print(f"{file.path}: the part from the last time was damaged; from the start", flush=True)
                found, seen = self._arrive(file, part)
            if found is None:
                hint = "doit lock it anew if the change is meant, and look at what changed"
                raise Refused(f"{file.path} is not what models.lock says", hint, place=self._place.name, it=seen)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, target)
        return found

    def _arrive(self, file: File, part: BinaryIO) -> tuple[str | None, str]:
        """The BLAKE3 once its SHA-256 is right; else None, what came instead, and nothing is left of it."""
        sha256, ours, done = hashlib.sha256(), blake3(), 0
        part.seek(0)
        while done < file.size and (data := part.read(min(CHUNK, file.size - done))):
            done += len(data)
            sha256.update(data)
            ours.update(data)
        part.truncate(done)
        part.seek(done)
        for data in self._in_order(file, done):
            part.write(data)
            sha256.update(data)
            ours.update(data)
        part.flush()
        if sha256.hexdigest() == file.sha256:
            return str(ours.hexdigest()), ""
        seen = what_it_is(self._folder / file.sha256) or f"sha256 {sha256.hexdigest()}"
        part.truncate(0)
        self._progress.add(-file.size)
        return None, seen

    def _in_order(self, file: File, start: int) -> Iterator[bytes]:
        """The bytes from `start` on; a few parts are on their way while one is taken."""
        starts = deque(range(start, file.size, PART))
        pending: deque[Future[list[bytes]]] = deque()
        try:
            while starts or pending:
                while starts and len(pending) < AHEAD:
                    first = starts.popleft()
                    pending.append(self._parts.submit(self._part, file, first, min(first + PART, file.size)))
                yield from pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()

    def _part(self, file: File, start: int, end: int) -> list[bytes]:
        """Bytes `start` to `end`; after a cut it goes on where it was. Gives up after patience without a byte."""
        got: list[bytes] = []
        state = {"at": start, "since": time.monotonic()}

        def once() -> None:
            for data in self._place.read(file, int(state["at"]), end):
                if self._stop.is_set():
                    raise Refused(f"{file.path}: stopped, since another file failed")
                got.append(data)
                state.update(at=state["at"] + len(data), since=time.monotonic())
                self._progress.add(len(data))
            if state["at"] < end:
                raise ConnectionError(f"cut after {state['at'] - start:.0f} of {end - start} bytes")

        def spent(call: RetryCallState) -> bool:
            return self._stop.is_set() or time.monotonic() + call.upcoming_sleep - state["since"] > self._patience_s

        backoff = wait_exponential_jitter(multiplier=0.2, max=30, jitter=0.2)
        retrying = Retrying(
            retry=retry_if_exception_type(ConnectionError),
            wait=lambda call: max(backoff(call), getattr(call.outcome and call.outcome.exception(), "after_s", 0.0)),
            stop=spent,
            sleep=sleep_using_event(self._stop),
            before_sleep=lambda call: print(again(file, call), flush=True),
            reraise=True,
        )
        try:
            retrying(once)
        except ConnectionError as last:
            hint = "what has arrived is kept: the next run goes on from there"
            raise Refused(f"{file.path} could not be downloaded", hint, place=self._place.name, why=last) from None
        return got

    @contextlib.contextmanager
    def _alone(self, path: Path) -> Iterator[BinaryIO]:
        """The file of a part, ours alone: another process may want the same one. Nothing is left of an empty one."""
        while True:
            with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as part:
                fcntl.flock(part, fcntl.LOCK_EX)
                if not is_at(path, part):
                    continue  # who had it before us has finished it and taken it away
                try:
                    yield part
                finally:
                    if is_at(path, part) and not path.stat().st_size:
                        path.unlink()
                return


def is_at(path: Path, file: BinaryIO) -> bool:
    """Whether the open file is still what lies at the path."""
    try:
        return path.stat().st_ino == os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return False


def again(file: File, call: RetryCallState) -> str:
    """What a person is told before a part is asked for once more."""
    return f"{file.path}: {call.outcome and call.outcome.exception()}; again in {call.upcoming_sleep:.1f} s"


class Progress:
    """Bytes done of bytes wanted and the rate, printed at most every 2 s. Used by several threads."""

    def begin(self, total: int, there: int) -> None:
        """`there` bytes lie here from an earlier run."""
        self._lock = threading.Lock()
        self._total, self._done, self._arrived = total, there, 0
        self._began = self._spoken = time.monotonic()
        if there:
            print(f"going on after {there / 1e6:,.1f} of {total / 1e6:,.1f} MB", flush=True)

    def add(self, size: int) -> None:
        """Count `size` more bytes."""
        with self._lock:
            self._done += size
            self._arrived += max(0, size)
            if time.monotonic() - self._spoken > 2:
                self.tell()

    def tell(self) -> None:
        """Print where it stands."""
        self._spoken = time.monotonic()
        rate = self._arrived / 1e6 / max(self._spoken - self._began, 1e-3)
        print(f"{self._done / 1e6:,.1f} of {self._total / 1e6:,.1f} MB, {rate:,.1f} MB/s", flush=True)


def what_it_is(path: Path) -> str:
    """What a file that is not the wanted one looks like; "" when it looks like nothing known."""
    with path.open("rb") as file:
        start = file.read(512)
    if start.startswith(LFS_MARK):
        return "a Git LFS pointer, not the file itself"
    return "an HTML page" if start.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")) else ""


def check(files: list[File], out: Path) -> None:
    """Raise Refused with what is wrong with files that are what was published."""
    names = {file.path for file in files}
    wrong = []
    for file in files:
        path = out / file.path
        if what_it_is(path):
            wrong.append(f"{file.path}: is {what_it_is(path)}")
        elif file.path.endswith(".safetensors") and file.size != safetensors_size(path):
            wrong.append(f"{file.path}: has {file.size} bytes, its header says {safetensors_size(path) or 'nothing'}")
        elif file.path.endswith(".safetensors.index.json"):
            shards = set(json.loads(path.read_bytes()).get("weight_map", {}).values())
            wrong += [f"{file.path}: names {shard}, which is not taken" for shard in sorted(shards - names)]
    if wrong:
        raise Refused("\n  ".join(["the source is not a whole checkpoint", *wrong]), "see include, or another revision")


def safetensors_size(path: Path) -> int:
    """Bytes that a file should have by its header: 8 bytes length, JSON, then the tensors; 0 when it has none.

    The format: https://huggingface.co/docs/safetensors (u64 little-endian length, `data_offsets`).
    """
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else HEADER_LIMIT + 1
        raw = file.read(length) if length <= HEADER_LIMIT else b""
    try:
        rows = [row for name, row in json.loads(raw).items() if name != "__metadata__"]
        return 8 + length + max((int(row["data_offsets"][1]) for row in rows), default=0)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError):
        return 0


def gib(size: int) -> str:
    """Bytes in words."""
    return f"{size / (1 << 30):,.1f} GiB"


if __name__ == "__main__":
    sys.exit(main())
