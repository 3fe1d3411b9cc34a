"""Folders of files as receipts: reading them, placing them, and telling whether they are still what they were.

Every file that the store owns or lays out carries a *seal*: a modification time derived from its own digest. A file
whose size and seal are right needs no reading; a touched, edited or swapped one has another time and is read again.
So an unchanged 140 GB checkpoint costs one `stat` per file, and there is no database of digests that could be wrong.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from rules import digest
from rules.action import Entry, Receipt

__all__ = [
    "Memo",
    "State",
    "aside",
    "intact",
    "names",
    "place",
    "protect",
    "read",
    "replace",
    "room",
    "runnable",
    "seal",
    "state",
    "states",
    "text",
    "whole",
    "writable",
    "write",
]

State = tuple[int, int, int, int, int]  # device, inode, bytes, modified and changed in ns since 1970

_SEAL_EPOCH = 946_684_800  # 2000-01-01: no tool writes a file with a time near it by chance
_LINK_FROM = 1 << 20  # smaller files are copied: a copy is as quick and cannot reach back into the store
_SETTLED_SECONDS = 2.0  # a file changed just now may change again within one tick of the file system's clock
_US = os.urandom(4).hex()  # two containers that share a folder may each have a process of our number
_FICLONE = 0x40049409  # linux/fs.h: share the blocks of another file, copy on write


def seal(content: str) -> int:
    """The modification time, in whole seconds, that a file with this digest carries."""
    return _SEAL_EPOCH + int(content[:6], 16)


def intact(path: Path, entry: Entry) -> bool:
    """Whether the file at `path` is `entry`; reads it only when size is right and the seal is not, then seals it."""
    try:
        found = path.stat()
    except OSError:
        return False
    if _sealed(found, entry):
        return True
    if not stat.S_ISREG(found.st_mode) or found.st_size != entry.size:
        return False
    if digest.of_file(path) != entry.digest:
        return False
    with contextlib.suppress(OSError):
        os.utime(path, (seal(entry.digest),) * 2)
    return True


def whole(root: str, receipt: Receipt) -> bool:
    """Whether the folder `root` has exactly the files of `receipt`. One `stat` per file if so."""
    try:
        found = {path: entry.stat() for path, entry in _walk(root)}
    except OSError:
        return False
    if len(found) != len(receipt.entries):
        return False
    for entry in receipt.entries:
        state = found.get(entry.path)
        if state is None or _executable(state) != entry.executable:
            return False
        if not (_sealed(state, entry) or intact(Path(root, entry.path), entry)):
            return False
    return True


def state(found: os.stat_result) -> State:
    """What tells a file from itself before any change of its bytes, mode, times or links."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def states(root: str) -> list[tuple[str, State]]:
    """The state of every file below the folder `root`, sorted. One `stat` per file; raises OSError without a folder."""
    return sorted((path, state(entry.stat())) for path, entry in _walk(root))


def runnable(path: Path) -> bool:
    """Whether the file at `path` has its owner's run bit."""
    return _executable(path.stat())


def names(root: Path) -> Iterator[str]:
    """All that is not a folder below `root`, with `/`, in no order: links and hidden files too."""
    return (path for path, _ in _walk(str(root)))


def read(root: Path, known: Mapping[tuple[int, int], str]) -> Receipt:
    """Hashes the files below `root`; those whose (device, inode) is in `known` are taken to have that digest.

    A link to a file counts as the file. Raises OSError where there is something else, such as a link to nothing.
    """
    return Receipt(tuple(_entry(root, name, known) for name in sorted(names(root))))


def place(blob: Path, target: Path, entry: Entry) -> None:
    """Puts the content of `blob` at `target`, which must not exist: reflink, else hard link, else copy. Sealed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if entry.size >= _LINK_FROM and not _reflink(blob, target) and _executable(blob.stat()) == entry.executable:
        try:
            target.hardlink_to(blob)
            return
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
                raise
    if not target.exists():
        shutil.copyfile(blob, target)
    protect(target, entry)


def protect(path: Path, entry: Entry) -> None:
    """Makes a file read-only and seals it."""
    path.chmod(0o555 if entry.executable else 0o444)
    os.utime(path, (seal(entry.digest),) * 2)


def text(path: str) -> str:
    """A small file's text. Three questions to the kernel; `Path.read_text` takes five times as long."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(file, 1 << 16):
            parts.append(part)
    finally:
        os.close(file)
    return b"".join(parts).decode("utf-8")


def write(path: Path, text: str) -> None:
    """Writes a small file so that a reader sees the old text or the new one, also after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = aside(path, "tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def aside(path: Path, suffix: str) -> Path:
    """A name in the folder of `path` that no other process or thread uses."""
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_native_id()}-{_US}.{suffix}")


def replace(target: Path, made: Path) -> None:
    """Puts the folder `made` in the place of the folder `target`, if there is one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    old = aside(target, "old")
    shutil.rmtree(old, ignore_errors=True)  # of a crashed process with our number, as in a container
    if target.exists():
        target.rename(old)
    made.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def writable(path: Path) -> bool:
    """Whether the file at `path`, which is made if need be, can be written to."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def room(folder: Path, size: int) -> Iterator[None]:
    """While `size` bytes are brought into `folder`. Raises OSError with the path and the numbers when the disk has no
    room for them, at once or when it is full before the end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    disk = os.statvfs(folder)
    free = disk.f_frsize * (disk.f_bavail if os.geteuid() else disk.f_bfree)
    full = OSError(errno.ENOSPC, f"{size / 1e6:.1f} MB to bring here and {free / 1e6:.1f} MB free", str(folder))
    if size > free:
        raise full
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise full from error
        raise


class Memo:
    """Remembers digests of a folder that is not ours by (device, inode, size, mtime in ns), in one small file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, root: Path) -> Receipt:
        """The receipt of the files below `root`; only files that changed since the last time are read."""
        before = self._load()
        after: dict[str, list[object]] = {}
        entries = []
        for name in sorted(name for name in names(root) if (root / name).is_file()):
            found = (root / name).stat()
            state: list[object] = [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns]
            held = before.get(name)
            known = held[4:] if isinstance(held, list) and held[:4] == state else []
            content = str(known[0]) if known else digest.of_file(root / name)
            if known or time.time() - found.st_mtime > _SETTLED_SECONDS:
                after[name] = [*state, content]
            entries.append(Entry(name, content, found.st_size, _executable(found)))
        if after != before:
            write(self._path, json.dumps(after))
        return Receipt(tuple(entries))

    def _load(self) -> dict[str, list[object]]:
        try:
            loaded = json.loads(text(str(self._path)))
        except (OSError, ValueError):
            return {}
        return loaded if isinstance(loaded, dict) else {}


def _entry(root: Path, name: str, known: Mapping[tuple[int, int], str]) -> Entry:
    path = root / name
    found = path.stat()
    content = known.get((found.st_dev, found.st_ino)) or digest.of_file(path)
    return Entry(name, content, found.st_size, _executable(found))


def _walk(root: str) -> list[tuple[str, os.DirEntry[str]]]:
    """All that is not a folder below `root`, with its path below `root`."""
    found: list[tuple[str, os.DirEntry[str]]] = []
    pending = [""]
    while pending:
        below = pending.pop()
        for entry in os.scandir(f"{root}/{below}"):  # read to its end, so it needs no closing
            if entry.is_dir(follow_symlinks=False):
                pending.append(f"{below}{entry.name}/")
            else:
                found.append((below + entry.name, entry))
    return found


def _sealed(found: os.stat_result, entry: Entry) -> bool:
    return found.st_mtime == seal(entry.digest) and found.st_size == entry.size and stat.S_ISREG(found.st_mode)


def _executable(found: os.stat_result) -> bool:
    return bool(found.st_mode & stat.S_IXUSR)


def _reflink(blob: Path, target: Path) -> bool:
    with blob.open("rb") as source, target.open("xb") as made:
        try:
            fcntl.ioctl(made.fileno(), _FICLONE, source.fileno())
        except OSError:
            target.unlink()
            return False
    return True
