"""Take over a Hugging Face checkpoint from a local folder: verify it, then link or copy its files.

Everything wrong with the source is reported at once. Only settings, tokenizer files and safetensors
are taken, and what the entry includes: pickled weights and Python files can run code, so each has to
be asked for, and ONNX files or a .git folder are not part of the model.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import struct
import sys
import time
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

TAKEN = ("*.json", "*.jsonl", "*.safetensors", "*.jinja", "*.model", "*.tiktoken", "merges.txt", "vocab.txt")
LEFT_OUT = ("pytorch_model*", "flax_model*", "tf_model*", "openvino_*", "consolidated*", ".*")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
PICKLED = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
CODE = ("*.py",)
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "*.tiktoken", "vocab.json", "vocab.txt")
LFS_MARK = b"version https://git-lfs.github.com/spec/"
HEADER_LIMIT = 100_000_000  # bytes, as the safetensors library limits it
SMALL = 1 << 20
CHUNK = 16 << 20
FICLONE = 0x40049409  # linux/fs.h: share blocks, so that a later edit of one file leaves the other


class Refused(Exception):
    """A failure whose text is meant for the user."""


def main() -> int:
    """Run the tool; the exit status, 1 when it refused."""
    args = _arguments()
    try:
        fetch(args.source, args.out, args)
    except (Refused, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--include", action="append", default=[], metavar="PATTERN")
    parser.add_argument("--exclude", action="append", default=[], metavar="PATTERN")
    parser.add_argument("--allow-pickle", action="store_true")
    parser.add_argument("--trust-remote-code", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def fetch(source: Path, out: Path, wanted: argparse.Namespace) -> None:
    """Verify `source` and bring its files below `out`; raise Refused naming all that is wrong."""
    if not source.is_dir():
        raise Refused(f"the source is no folder\n  source  {source}\n  hint: name a checkpoint's folder")
    present = sorted(path for path in source.rglob("*") if path.is_file())
    names = {path: path.relative_to(source).as_posix() for path in present}
    chosen = taken(wanted, list(names.values()))
    files = {name: path for path, name in names.items() if name in chosen}
    wrong = problems(files, [name for name in names.values() if _is(name, PICKLES)])
    if wrong:
        facts = "\n".join(f"  {line}" for line in wrong)
        raise Refused(
            f"the source is not a whole Hugging Face checkpoint\n  source  {source}\n{facts}\n"
            "  hint: download it again, complete and as safetensors (`git lfs pull` in a git clone)"
        )
    left = sorted({name.partition("/")[0] for name in names.values()} - {name.partition("/")[0] for name in files})
    if left:
        print(f"left out: {', '.join(left)}", flush=True)
    if any(_is(name, PICKLES) for name in files):
        print("warning: pickled weights can run code when they are loaded", flush=True)
    bring(files, out)
    size = sum(path.stat().st_size for path in files.values())
    (out / "summary.txt").write_text(f"{len(files)} files, {size / 1e6:.1f} MB\n")


def taken(wanted: Any, names: list[str]) -> set[str]:
    """The names that are taken, decided as rules/taken.py decides; pickles only where there are no safetensors."""
    found = {name for name in names if _plain(wanted, name)}
    if wanted.allow_pickle and not any(name.endswith(".safetensors") for name in found):
        found |= {name for name in names if _is(name, PICKLED) and not _is(name, wanted.exclude)}
    return found


def _plain(wanted: Any, name: str) -> bool:
    if _is(name, wanted.exclude) or (_is(name, PICKLES) and not wanted.allow_pickle):
        return False
    if _is(name, CODE):
        return bool(wanted.trust_remote_code)
    return _is(name, wanted.include) or ("/" not in name and _is(name, TAKEN) and not _is(name, LEFT_OUT))


def _is(name: str, kinds: Iterable[str]) -> bool:
    return any(fnmatch(name, kind) for kind in kinds)


def problems(files: dict[str, Path], pickles: list[str]) -> list[str]:
    """Every reason why these files are not a checkpoint, as `file: reason`; empty when they are one.

    `pickles` are the pickled files that there are, taken or not.
    """
    wrong = []
    if "config.json" not in files:
        wrong.append("config.json: missing")
    if not any(_is(name, ("*.safetensors", *PICKLES)) for name in files):
        only = f", only {', '.join(pickles)}, which can run code when loaded (allow_pickle)" if pickles else ""
        wrong.append(f"*.safetensors: missing{only}")
    if not any(_is(name, TOKENIZERS) for name in files):
        wrong.append("tokenizer.json: missing, and no other tokenizer file")
    for name, path in files.items():
        wrong.extend(f"{name}: {reason}" for reason in file_problems(path))
    for name, path in files.items():
        if name.endswith(".safetensors.index.json"):
            wrong.extend(f"{name}: {reason}" for reason in index_problems(path, set(files)))
    return wrong


def file_problems(path: Path) -> list[str]:
    """What is wrong with one file by itself."""
    with path.open("rb") as file:
        if file.read(len(LFS_MARK)) == LFS_MARK:
            return ["is a Git LFS pointer, not the file itself"]
    if path.suffix == ".safetensors":
        return safetensors_problems(path)
    if path.suffix == ".json":
        try:
            json.loads(path.read_bytes())
        except ValueError as problem:
            return [f"is not JSON: {problem}"]
    return []


def safetensors_problems(path: Path) -> list[str]:
    """Compare a file's size with its header: 8 bytes length, JSON, then the tensors' bytes.

    The format: https://huggingface.co/docs/safetensors (u64 little-endian length, `data_offsets`).
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            return [f"is cut off: {size} bytes"]
        (length,) = struct.unpack("<Q", start)
        if length > min(HEADER_LIMIT, size - 8):
            return [f"is cut off or no safetensors: {size} bytes, and its header wants {length}"]
        raw = file.read(length)
    try:
        header = json.loads(raw)
        end = max((row["data_offsets"][1] for name, row in header.items() if name != "__metadata__"), default=0)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError):
        return ["has a header that cannot be read"]
    wanted = 8 + length + end
    return [] if size == wanted else [f"has {size} bytes, its header says {wanted}"]


def index_problems(path: Path, names: set[str]) -> list[str]:
    """Shards that the index names and the folder lacks."""
    try:
        shards = set(json.loads(path.read_bytes())["weight_map"].values())
    except (ValueError, TypeError, KeyError, AttributeError):
        return ["has no weight_map"]
    missing = sorted(str(shard) for shard in shards - names)
    return [f"names missing shards: {', '.join(missing)}"] if missing else []


def bring(files: dict[str, Path], out: Path) -> None:
    """Place every file below `out`, with a line of progress by bytes at least every 2 s."""
    progress = Progress(sum(path.stat().st_size for path in files.values()))
    for name, path in files.items():
        real = path.resolve()  # a hub's cache holds links, and a link to a link would dangle elsewhere
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        place(real, out / name, progress)
    progress.tell()


class Progress:
    """Bytes done of bytes wanted, printed at most every 2 s."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.spoken = total, 0, time.monotonic()

    def add(self, size: int) -> None:
        """Count `size` more bytes."""
        self.done += size
        if time.monotonic() - self.spoken > 2:
            self.tell()

    def tell(self) -> None:
        """Print where it stands."""
        self.spoken = time.monotonic()
        print(f"{self.done / 1e6:,.1f} of {self.total / 1e6:,.1f} MB", flush=True)


def place(source: Path, target: Path, progress: Any) -> None:
    """Share blocks, else hard-link what is large, else copy.

    A hard link would carry a later edit of the user's file along, so small files, the ones that are
    edited by hand, are copied.
    """
    size = source.stat().st_size
    if _reflink(source, target) or (size >= SMALL and _hard_link(source, target)):
        progress.add(size)
        return
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(CHUNK):
            writer.write(chunk)
            progress.add(len(chunk))
    shutil.copymode(source, target)


def _reflink(source: Path, target: Path) -> bool:
    try:
        with source.open("rb") as reader, target.open("wb") as writer:
            fcntl.ioctl(writer.fileno(), FICLONE, reader.fileno())
    except OSError:
        target.unlink(missing_ok=True)
        return False
    return True


def _hard_link(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
