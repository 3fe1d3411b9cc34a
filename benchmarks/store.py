"""The store's bytes: restoring an engine tree, hashing, and push and pull over loopback.

    python benchmarks/store.py restore --files 16 --mib 512
    python benchmarks/store.py hash --mib 4096
    python benchmarks/store.py remote --mib 4096      against `rclone`, which must be on PATH

Each measurement runs in a process of its own, so that peak memory is its own; contestants take turns.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from timing import Run, alternate, machine, median, run, table

PROJECT = Path(__file__).parents[1]
MIB = 1 << 20
ENV = {**os.environ, "PYTHONPATH": str(PROJECT)}

RESTORE = """
import sys, time; from pathlib import Path
from rules.action import Receipt; from rules.store import Store
store, key = Store(Path(sys.argv[1])), "11" * 32
began = time.perf_counter()
receipt = store.get(key)
store.lay_out(receipt, Path(sys.argv[2]))
print(time.perf_counter() - began)
"""
HASHES = {
    "read() only": "f = open(p, 'rb', 0); b = bytearray(1 << 20)\nwhile f.readinto(b): pass",
    "blake3, one thread": "from blake3 import blake3; blake3().update_mmap(p).hexdigest()",
    "blake3, all threads": "from blake3 import blake3; blake3(max_threads=blake3.AUTO).update_mmap(p).hexdigest()",
    "ours (digest.of_file)": "from rules import digest; from pathlib import Path; digest.of_file(Path(p))",
    "sha256": "import hashlib; hashlib.file_digest(open(p, 'rb'), 'sha256')",
    "md5 (plain doit)": "import hashlib; hashlib.file_digest(open(p, 'rb'), 'md5')",
}
TIMED = """
import sys, time; p = sys.argv[1]
from rules import digest; import blake3
t = time.perf_counter()
{}
print(time.perf_counter() - t)
"""
REMOTE = """
import sys, time; from pathlib import Path
from rules.remotes import connect
verb, url, name, path = sys.argv[1:]
remote = connect(url)
began = time.perf_counter()
if verb == "up":
    remote.send(name, Path(path), lambda count: None)
else:
    assert remote.fetch(name, Path(path), lambda count: None)
print(time.perf_counter() - began)
"""


def main() -> None:
    """Prints one of the tables."""
    parser = argparse.ArgumentParser(description="restore, hash, push and pull")
    parser.add_argument("what", choices=("restore", "hash", "remote"))
    parser.add_argument("--files", type=int, default=16)
    parser.add_argument("--mib", type=int, default=512, help="size of a file")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench_store_", dir=os.environ.get("BENCH_DIR")) as folder:
        print(machine())
        print({"restore": restore, "hash": hashing, "remote": remote}[args.what](Path(folder), args))


def filled(path: Path, mib: int) -> Path:
    """A file of bytes that nothing compresses or shares."""
    path.parent.mkdir(parents=True, exist_ok=True)
    block = os.urandom(16 * MIB)
    with path.open("wb") as file:
        for number in range(-(-mib // 16)):
            file.write(number.to_bytes(8, "little") + block[8 : min(16, mib - 16 * number) * MIB])
    return path


def inside(code: str, *arguments: object) -> Callable[[], Run]:
    """Runs code in a process; its wall time is what it prints, which leaves out Python's start."""

    def once() -> Run:
        with tempfile.TemporaryDirectory() as cwd:
            whole = run([sys.executable, "-c", code, *map(str, arguments)], Path(cwd), ENV)
            return Run(wall=float(Path(cwd, ".bench.log").read_text()), cpu=whole.cpu, peak_mb=whole.peak_mb)

    return once


def restore(folder: Path, args: argparse.Namespace) -> str:
    """A tree of `files` from the store into an empty place, over an old one, and as cp -r would."""
    sys.path.insert(0, str(PROJECT))
    from rules.store import Store

    for number in range(args.files):
        filled(folder / f"made/rank{number}.engine", args.mib)
    began = time.perf_counter()
    Store(folder / "store").put("11" * 32, folder / "made", {})
    put = time.perf_counter() - began
    ours = inside(RESTORE, folder / "store", folder / "tree")

    def afresh() -> Run:
        shutil.rmtree(folder / "tree", ignore_errors=True)
        return ours()

    found = alternate({"into nothing": afresh, "over an old tree": ours}, args.rounds)
    rows: list[list[object]] = [[name, median(runs).wall, median(runs).peak_mb] for name, runs in found.items()]
    gib = args.files * args.mib / 1024
    rows.append([f"store.put of it ({gib / put:.2f} GiB/s)", put, "-"])
    return f"{args.files} files of {args.mib} MiB, medians of {args.rounds}\n" + table(rows, ("", "s", "peak MB"))


def hashing(folder: Path, args: argparse.Namespace) -> str:
    """One file in the page cache."""
    path = filled(folder / "file", args.mib)
    found = alternate({name: inside(TIMED.format(code), path) for name, code in HASHES.items()}, args.rounds)
    rows = [[name, args.mib * MIB / median(runs).wall / 1e9, median(runs).peak_mb] for name, runs in found.items()]
    return f"one file of {args.mib} MiB in the page cache, medians of {args.rounds}\n" + table(
        rows, ("", "GB/s", "peak MB (with mapped pages)")
    )


def remote(folder: Path, args: argparse.Namespace) -> str:
    """One file up to and down from an S3 and a WebDAV server that rclone serves, by us and by rclone's client."""
    path = filled(folder / "file", args.mib)
    texts = [f"one file of {args.mib} MiB, MiB/s of medians of {args.rounds}"]
    for kind in ("s3", "webdav"):
        with tempfile.TemporaryDirectory(dir=folder) as data:
            texts.append(transfers(kind, Path(data), path, args))
    return "\n\n".join(texts)


def transfers(kind: str, data: Path, path: Path, args: argparse.Namespace) -> str:
    """A table for one kind of server."""
    (data / "bucket/cas").mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    extra = ["--auth-key", "key,secret"] if kind == "s3" else []
    server = subprocess.Popen(["rclone", "serve", kind, str(data), "--addr", f"127.0.0.1:{port}", *extra, "-q"])
    ENV.update(
        AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="secret", AWS_REGION="us-east-1",  # noqa: S106  made here
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}", AWS_ALLOW_HTTP="true",
        RCLONE_CONFIG_PEER_TYPE=kind, RCLONE_CONFIG_PEER_PROVIDER="Rclone", RCLONE_CONFIG_PEER_ACCESS_KEY_ID="key",
        RCLONE_CONFIG_PEER_SECRET_ACCESS_KEY="secret",  # noqa: S106  made here
        RCLONE_CONFIG_PEER_ENDPOINT=f"http://127.0.0.1:{port}",
        RCLONE_CONFIG_PEER_URL=f"http://127.0.0.1:{port}", RCLONE_CONFIG_PEER_VENDOR="rclone",
    )  # fmt: skip
    url = "s3://bucket" if kind == "s3" else f"http://127.0.0.1:{port}/bucket"
    down = path.parent / "down"
    try:
        time.sleep(1)
        found = alternate(
            {
                "ours up": inside(REMOTE, "up", url, "cas/ours", path),
                "rclone up": peer("copyto", str(path), "peer:bucket/cas/peer", "--ignore-times"),
                "ours down": inside(REMOTE, "down", url, "cas/ours", down),
                "rclone down": peer("copyto", "peer:bucket/cas/peer", str(path.parent / "peer"), "--ignore-times"),
            },
            args.rounds,
        )
    finally:
        server.terminate()
        server.wait()
    ratios = {
        way: statistics.median(
            p.wall / o.wall for o, p in zip(found[f"ours {way}"], found[f"rclone {way}"], strict=True)
        )
        for way in ("up", "down")
    }
    rows = [
        [name, args.mib / median(runs).wall, median(runs).cpu, median(runs).peak_mb, ratios[name.split()[1]]]
        for name, runs in found.items()
    ]
    return f"rclone serve {kind}\n" + table(rows, ("", "MiB/s", "CPU s", "peak MB", "ours / rclone"))


def peer(*words: str) -> Callable[[], Run]:
    """Rclone's own client, its start included (30 ms)."""

    def once() -> Run:
        with tempfile.TemporaryDirectory() as cwd:
            return run(["rclone", *words], Path(cwd), ENV)

    return once


if __name__ == "__main__":
    main()
