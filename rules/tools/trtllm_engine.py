"""Build an engine by the command after `--`, then verify it: every violation is named at once.

    trtllm_engine.py --release V --tp-size N --pp-size N [--limit NAME=VALUE ...] [--timing-cache FILE] --out DIR
                     -- trtllm-build ...

FILE is what earlier builds have timed. The build is given a copy of that name in the current folder, and what it makes
of that replaces FILE in one step, once the engine is verified: builds may run side by side and may be killed.

Runs inside the toolchain, so only the standard library is used. When memory ends, the build says it in many ways or,
killed by signal 9, not at all: here it is one error with the numbers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

GIB = 1 << 30
# A worker process that the kernel kills shows only as a broken pool or an exit code of 137.
HOST = re.compile(r"terminated abruptly|MemoryError|std::bad_alloc|Cannot allocate memory|exitcode:? -9|signal 9\b")
GPU = re.compile(
    r"CUDA out of memory|cudaErrorMemoryAllocation|OutOfMemory|out of (device |GPU )?memory", re.IGNORECASE
)
FEWER = "fewer workers need less memory: build = { workers = 1 }"
COPIES = 3  # triton_cli's README: 48 GB of host memory for 7 to 8 billion parameters in 16 bits
CGROUP = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def main() -> int:
    """The command's exit status; when it is 0, 1 if what it wrote is not as asked."""
    args = arguments()
    memory = Memory()
    warm(args.timing_cache)
    try:
        code, seen = run(fitted(args.command, free()))
    except OSError as problem:
        print(f"error: {args.command[0]} cannot be started\n    reason  {problem.strerror}", file=sys.stderr)
        return 127
    finally:
        memory.done.set()
    if code:
        explain(code, seen, memory, args.out)
        return 1
    found = violations(args.out, args)
    if found:
        # Releases that do not ask their workers how they ended exit 0 when one was killed: a rank is missing then.
        found += left_out(memory) if any(line.endswith(" is missing") for line in found) else []
        lines = "\n".join(f"    {line}" for line in found)
        print(f"error: the engine is not what was asked for\n{lines}", file=sys.stderr)
        return 1
    keep(args.timing_cache)
    print(f"verified: TensorRT-LLM {args.release}, {args.tp_size * args.pp_size} ranks", flush=True)
    return 0


def arguments() -> argparse.Namespace:
    """What the engine must be, and the command that builds it."""
    parser = argparse.ArgumentParser(description="run trtllm-build and verify the engine")
    parser.add_argument("--release", required=True, metavar="VERSION", help="TensorRT-LLM's")
    parser.add_argument("--tp-size", type=int, required=True)
    parser.add_argument("--pp-size", type=int, required=True)
    parser.add_argument("--limit", action="append", default=[], metavar="NAME=VALUE", help="of build_config")
    parser.add_argument("--timing-cache", type=Path, metavar="FILE")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("command", nargs="+")
    return parser.parse_args()


def free() -> int:
    """Bytes of host memory to be had, in this cgroup."""
    limits = [int(text) for text in map(read, CGROUP) if text.isdigit()]
    return min(meminfo("MemAvailable"), *limits) if limits else meminfo("MemAvailable")


def fitted(command: list[str], memory: int) -> list[str]:
    """The command with no more --workers than `memory` bytes hold: each has a rank as read, as network, as engine."""
    if not {"--workers", "--checkpoint_dir"} <= set(command):
        return command
    at, folder = command.index("--workers") + 1, Path(command[command.index("--checkpoint_dir") + 1])
    rank = max((path.stat().st_size for path in folder.glob("rank*.safetensors")), default=0)
    fit = max(1, memory // (COPIES * rank)) if rank and memory else int(command[at])
    if fit >= int(command[at]):
        return command
    each = f"each takes about {COPIES * rank / GIB:.1f} GiB of {memory / GIB:.1f}"
    print(f"{fit} workers at a time in place of {command[at]}: {each}", flush=True)
    return [*command[:at], str(fit), *command[at + 1 :]]


def warm(shared: Path | None) -> None:
    """A copy of the timing cache in the current folder. Without one everything is timed, as the first time."""
    if shared:
        with contextlib.suppress(OSError):
            shutil.copyfile(shared, shared.name)


def keep(shared: Path | None) -> None:
    """Puts the current folder's timing cache in the shared one's place. An engine is no worse without it."""
    if not shared or not Path(shared.name).is_file():
        return
    new = shared.with_name(f".{shared.name}.{os.uname().nodename}-{os.getpid()}")
    try:
        shutil.copyfile(shared.name, new)
        with new.open("rb") as file:
            os.fsync(file.fileno())
        new.replace(shared)
    except OSError as problem:
        print(f"the timing cache is not kept: {problem.strerror}", flush=True)
        with contextlib.suppress(OSError):
            new.unlink()


class Memory(threading.Thread):
    """Watches how little of the host's memory was available, in bytes, until `done` is set."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.done = threading.Event()
        self.total, self.lowest = meminfo("MemTotal"), meminfo("MemAvailable")
        self.start()

    def run(self) -> None:
        """Look every half second."""
        while not self.done.wait(0.5):
            self.lowest = min(self.lowest, meminfo("MemAvailable"))


def meminfo(name: str) -> int:
    """A line of /proc/meminfo in bytes; 0 where there is none."""
    try:
        text = Path("/proc/meminfo").read_text("ascii")
    except OSError:
        return 0
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def run(command: list[str]) -> tuple[int, set[str]]:
    """The exit status (negative: the signal) and which memories the output says have ended; the output is passed on."""
    seen, said = set(), time.monotonic()
    done = threading.Event()

    def tell() -> None:
        started = time.monotonic()
        while not done.wait(5):
            if time.monotonic() - said >= 5:
                print(f"building the engine, {time.monotonic() - started:.0f} s", flush=True)

    threading.Thread(target=tell, daemon=True).start()
    try:
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as process:
            for line in process.stdout or ():
                said = time.monotonic()
                sys.stdout.write(line)
                sys.stdout.flush()
                seen |= {name for name, pattern in (("host", HOST), ("GPU", GPU)) if pattern.search(line)}
    finally:
        done.set()
    return process.returncode, seen


def explain(code: int, seen: set[str], memory: Memory, out: Path) -> None:
    """One error for a command that failed; with the numbers when a memory has ended."""
    ended = f"signal {-code}" if code < 0 else f"exit code {code}"
    if code in (-9, 137) or seen == {"host"}:
        lines = [f"trtllm-build ran out of host memory ({ended})", *numbers(memory), f"hint: {FEWER}"]
    elif seen:
        facts = [line.strip() for line in gpu_memory()] or ["nvidia-smi says nothing"]
        hint = "another process on the GPU? else a smaller max_num_tokens or batch, or a larger tp"
        lines = [f"trtllm-build ran out of GPU memory ({ended})", *facts, f"hint: {hint}"]
    else:
        lines = [
            f"trtllm-build failed with {ended}",
            f"wrote  {', '.join(sorted(p.name for p in out.iterdir())) or 'nothing'}",
        ]
    print("error: " + "\n    ".join(lines), file=sys.stderr)


def left_out(memory: Memory) -> list[str]:
    """What there is to say of a rank that was left out without a word."""
    return [*numbers(memory), f"hint: a worker that ran out of host memory leaves no word; {FEWER}"]


def numbers(memory: Memory) -> list[str]:
    """Host memory there is, was left and is allowed, a line each."""
    limits = [int(text) for text in map(read, CGROUP) if text.isdigit() and int(text) < memory.total]
    return [
        f"host memory    {memory.total / GIB:.1f} GiB",
        f"lowest free    {memory.lowest / GIB:.1f} GiB available while it ran",
        *(f"cgroup limit   {limit / GIB:.1f} GiB" for limit in limits),
    ]


def read(path: str) -> str:
    """The text of a file, empty where there is none."""
    try:
        return Path(path).read_text("ascii").strip()
    except OSError:
        return ""


def gpu_memory() -> list[str]:
    """Index, used and whole memory of each GPU, in MiB, as the driver tells them."""
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=index,memory.used,memory.total", "--format=csv"]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines()


def violations(out: Path, wanted: argparse.Namespace) -> list[str]:
    """One line for each thing that is not as `wanted`."""
    try:
        config = json.loads((out / "config.json").read_text("utf-8"))
        version, mapping, built = config["version"], config["pretrained_config"]["mapping"], config["build_config"]
    except (OSError, ValueError, KeyError, TypeError) as problem:
        return [f"config.json cannot be read: {problem!r}"]
    found = []
    if version != wanted.release and not str(version).startswith(f"{wanted.release}.post"):
        found.append(f"version is {version}, not {wanted.release}: another toolchain than declared built it")
    world = wanted.tp_size * wanted.pp_size
    sizes = {"tp_size": wanted.tp_size, "pp_size": wanted.pp_size, "world_size": world}
    found += [f"mapping.{k} is {mapping.get(k)}, not {v}" for k, v in sizes.items() if mapping.get(k) != v]
    for name, value in (limit.split("=", 1) for limit in wanted.limit):
        if name not in built or str(built[name]) != value:
            found.append(f"build_config.{name} is {built.get(name, 'not there')}, not {value}")
    return found + wrong_ranks(out, world)


def wrong_ranks(out: Path, world: int) -> list[str]:
    """Rank files that are missing, empty or too many."""
    there: dict[str, Any] = {path.name: path.stat().st_size for path in out.glob("rank*.engine")}
    names = [f"rank{rank}.engine" for rank in range(world)]
    return [
        *(f"{name} is missing" for name in names if name not in there),
        *(f"{name} is empty" for name in names if there.get(name) == 0),
        *(f"{name} is one too many" for name in sorted(set(there) - set(names))),
    ]


if __name__ == "__main__":
    sys.exit(main())
