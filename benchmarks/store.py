"""The store's bytes: restoring an engine tree, hashing, and push and pull over loopback.

    python benchmarks/store.py restore --files 16 --mib 512
    python benchmarks/store.py hash --mib 4096
    python benchmarks/store.py remote --mib 4096      needs rclone, curl and what `python -m tests.servers` installs
    python benchmarks/store.py remote --mib 4096 --way down --first      pulls only; as root, before the neighbours

Each measurement runs in a process of its own, so that peak memory is its own; contestants take turns.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from timing import FIRST, Run, alternate, machine, median, run, table

PROJECT = Path(__file__).parents[1]
sys.path.insert(0, str(PROJECT))

from tests import servers  # noqa: E402

MIB = 1 << 20
ENV = {**os.environ, "PYTHONPATH": str(PROJECT)}
ENV.pop("AWS_CA_BUNDLE", None)  # rclone cannot use one, and loopback needs none

FILL = """
import os, sys
with open(sys.argv[1], "wb") as file:
    block = os.urandom(1 << 20)
    for number in range(int(sys.argv[2])):
        file.write(number.to_bytes(8, "little") + block[8:])
"""
RESTORE = """
import sys, time; from pathlib import Path
from rules.action import Receipt; from rules.store import Store
store, key = Store(Path(sys.argv[1])), "11" * 32
began = time.perf_counter()
receipt = store.get(key)
store.lay_out(receipt, Path(sys.argv[2]))
print(time.perf_counter() - began)
"""
PUT = """
import sys, time; from pathlib import Path
from rules.store import Store
began = time.perf_counter()
Store(Path(sys.argv[1])).put("11" * 32, Path(sys.argv[2]), {})
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
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=list(SERVERS))
    parser.add_argument("--way", choices=("up", "down"), help="of remote: only these")
    parser.add_argument("--first", action="store_true", help="before other sessions' processes (root, autogroup)")
    args = parser.parse_args()
    if args.first:
        ENV[FIRST] = "-19"
        Path("/proc/self/autogroup").write_text(ENV[FIRST])  # the servers are in our session
    with tempfile.TemporaryDirectory(prefix="bench_store_", dir=os.environ.get("BENCH_DIR")) as folder:
        print(machine())
        print({"restore": restore, "hash": hashing, "remote": remote}[args.what](Path(folder), args))


def filled(path: Path, mib: int) -> Path:
    """A file of bytes that nothing compresses. Another process makes it: what we start inherits our peak memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-c", FILL, str(path), str(mib)], check=True)
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
    for number in range(args.files):
        filled(folder / f"made/rank{number}.engine", args.mib)
    put = inside(PUT, folder / "store", folder / "made")()
    ours = inside(RESTORE, folder / "store", folder / "tree")

    def afresh() -> Run:
        shutil.rmtree(folder / "tree", ignore_errors=True)
        return ours()

    found = alternate({"into nothing": afresh, "over an old tree": ours}, args.rounds)
    rows: list[list[object]] = [[name, median(runs).wall, median(runs).peak_mb] for name, runs in found.items()]
    gib = args.files * args.mib / 1024
    rows.append([f"store.put of it ({gib / put.wall:.2f} GiB/s)", put.wall, put.peak_mb])
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
    """One file up to and down from three servers, by us and by a client that people use."""
    path = filled(folder / "file", args.mib)
    texts = [f"one file of {args.mib} MiB, medians of {args.rounds}; ratios are of wall time within a round"]
    for name in args.servers:
        with tempfile.TemporaryDirectory(dir=folder) as data, SERVERS[name](Path(data)) as found:
            texts.append(f"{name}\n{transfers(*found, path, args)}")
    return "\n\n".join(texts)


def transfers(url: str, up: list[str], down: list[str], path: Path, args: argparse.Namespace) -> str:
    """A table for one server, of one object; `up` and `down` are the other client's command lines."""
    got = path.with_name("down")
    send = inside(REMOTE, "up", url, "cas/blob", path)
    contestants = {
        "ours up": send,
        "peer up": peer([word.format(path=path) for word in up]),
        "ours down": afresh(got, inside(REMOTE, "down", url, "cas/blob", got)),
        "peer down": afresh(got, peer([word.format(path=got) for word in down])),
    }
    if args.way == "down":
        send()
    served: dict[str, list[float]] = {}
    turns = {
        name: beside(once, served.setdefault(name, []))
        for name, once in contestants.items()
        if args.way in (None, name.split()[1])
    }
    found = alternate(turns, args.rounds)
    size = path.stat().st_size / MIB
    rows = []
    for name, runs in found.items():
        pairs = zip(found[f"peer {name.split()[1]}"], runs, strict=True)
        ratios = [other.wall / own.wall for other, own in pairs]
        every = " ".join(f"{size / one.wall:.0f}" for one in runs)
        cpu = [median(runs).cpu, statistics.median(served[name][1:])]
        rows.append([name, every, *cpu, median(runs).peak_mb, statistics.median(ratios)])
    return table(rows, ("", "MiB/s of each round", "CPU s", "server's CPU s", "peak MB", "to peer"))


def afresh(path: Path, once: Callable[[], Run]) -> Callable[[], Run]:
    """Once, with nothing at `path`: to throw away an old file of 4 GiB takes time too."""

    def run_afresh() -> Run:
        path.unlink(missing_ok=True)
        return once()

    return run_afresh


def beside(once: Callable[[], Run], served: list[float]) -> Callable[[], Run]:
    """Once, and the CPU seconds of the servers meanwhile go to `served`."""

    def run_beside() -> Run:
        before = servers_cpu()
        found = once()
        served.append(servers_cpu() - before)
        return found

    return run_beside


def servers_cpu() -> float:
    """CPU seconds so far of the processes below us that run now. https://man7.org/linux/man-pages/man5/proc_pid_stat.5"""
    parents, ticks = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            parents[int(folder.name)] = int(fields[1])
            ticks[int(folder.name)] = int(fields[11]) + int(fields[12])
    below, size = {os.getpid()}, 0
    while len(below) > size:
        size = len(below)
        below |= {process for process, parent in parents.items() if parent in below}
    return sum(ticks[process] for process in below - {os.getpid()}) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def s3(root: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """s3rver, and rclone's S3 client."""
    with servers.s3rver(root) as port:
        there = f"http://127.0.0.1:{port}"
        login = {"ACCESS_KEY_ID": "S3RVER", "SECRET_ACCESS_KEY": "S3RVER", "REGION": "us-east-1"}
        ENV.update({f"AWS_{name}": value for name, value in login.items()})
        ENV.update(AWS_ENDPOINT_URL=there, AWS_ALLOW_HTTP="true", RCLONE_CONFIG_PEER_TYPE="s3")
        ENV.update({f"RCLONE_CONFIG_PEER_{name}": value for name, value in login.items()})
        ENV.update(RCLONE_CONFIG_PEER_ENDPOINT=there, RCLONE_CONFIG_PEER_PROVIDER="Other")
        ENV.update(RCLONE_S3_NO_CHECK_BUCKET="true")
        yield "s3://engines", [*RCLONE, "{path}", "peer:engines/cas/blob"], [*RCLONE, "peer:engines/cas/blob", "{path}"]


@contextlib.contextmanager
def webdav(root: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Rclone as server and as client."""
    (root / "cas").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    serving = subprocess.Popen(["rclone", "serve", "webdav", str(root), "--addr", f"127.0.0.1:{port}", "-q"])
    there = f"http://127.0.0.1:{port}"
    ENV.update(RCLONE_CONFIG_PEER_TYPE="webdav", RCLONE_CONFIG_PEER_URL=there, RCLONE_CONFIG_PEER_VENDOR="other")
    time.sleep(1)
    try:
        yield there, [*RCLONE, "{path}", "peer:cas/blob"], [*RCLONE, "peer:cas/blob", "{path}"]
    finally:
        serving.terminate()
        serving.wait()


@contextlib.contextmanager
def nginx(root: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Nginx with DAV, and curl."""
    with servers.nginx(root) as port:
        there = f"http://127.0.0.1:{port}"
        yield there, [*CURL, "-T", "{path}", f"{there}/cas/blob"], [*CURL, f"{there}/cas/blob", "-o", "{path}"]


RCLONE = ("rclone", "copyto", "--ignore-times", "--s3-no-check-bucket")
CURL = ("curl", "--silent", "--show-error", "--fail", "--noproxy", "*")
SERVERS = {"s3rver (peer: rclone)": s3, "rclone serve webdav (peer: rclone)": webdav, "nginx (peer: curl)": nginx}


def peer(argv: list[str]) -> Callable[[], Run]:
    """Another client, its start included (10 to 40 ms)."""

    def once() -> Run:
        with tempfile.TemporaryDirectory() as cwd:
            return run(argv, Path(cwd), ENV)

    return once


if __name__ == "__main__":
    main()
