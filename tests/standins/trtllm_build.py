"""A stand-in for `trtllm-build` in tests: it parses with a release's table and writes that release's file layout.

It never ships, builds nothing and needs no GPU. What it cannot show: whether the real program accepts the values.

    trtllm_build.py RELEASE FLAGS...        STANDIN_FAILS: oom, gpu, killed, rankN, quiet
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import stat
import sys
from pathlib import Path
from typing import Any, NoReturn

from rules.release import Flag, load

HERE = Path(__file__).resolve()
CONVERTERS: dict[str, Any] = {"int": int, "float": float}


def install(folder: Path, release: str) -> Path:
    """Puts an executable `trtllm-build` of `release` into `folder`, for a PATH or a container's /usr/local/bin."""
    program = folder / "trtllm-build"
    command = f"import sys; sys.path.insert(0, {str(HERE.parents[2])!r}); from tests.standins import trtllm_build as it"
    line = f'exec "{sys.executable}" -c "{command}; it.main({release!r})" "$@"'
    program.write_text(f"#!/bin/sh\n{line}\n", "utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    return program


def main(release: str) -> None:
    """Writes rank files and config.json, or fails as STANDIN_FAILS says."""
    args = parser(release).parse_args()
    fails = os.environ.get("STANDIN_FAILS", "")
    print(f"[TensorRT-LLM] TensorRT-LLM version: {release}", flush=True)
    checkpoint, out = Path(args.checkpoint_dir), Path(args.output_dir)
    config = json.loads((checkpoint / "config.json").read_text("utf-8"))
    for rank in range(config["mapping"]["world_size"]):
        if fails == f"rank{rank}":
            fail(f"RuntimeError: Failed to build the engine of rank {rank}")
        weights = (checkpoint / f"rank{rank}.safetensors").stat().st_size
        print(f"[TRT] [I] Engine generation completed, rank {rank}", flush=True)
        if fails != "quiet" or rank:
            (out / f"rank{rank}.engine").write_text(f"engine of rank {rank}, {weights} bytes of weights\n", "utf-8")
    broken(fails)
    timed(args)
    build = {name: value for name, value in vars(args).items() if name not in {"checkpoint_dir", "output_dir"}}
    whole = {"version": release, "pretrained_config": config, "build_config": build}
    (out / "config.json").write_text(json.dumps(whole, indent=4) + "\n", "utf-8")


def timed(args: argparse.Namespace) -> None:
    """Reads the input timing cache, if that file exists, and writes the output one, as releases from 0.9.0 do."""
    if getattr(args, "output_timing_cache", None):
        given = Path(args.input_timing_cache or "")
        before = given.read_text("utf-8") if given.is_file() else ""
        print(f"[TRT] [I] {before.count(chr(10))} timings loaded", flush=True)
        Path(args.output_timing_cache).write_text(f"{before}timings for a batch of {args.max_batch_size}\n", "utf-8")


def broken(fails: str) -> None:
    """The ways in which memory ends."""
    if fails == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if fails == "oom":
        fail("concurrent.futures.process.BrokenProcessPool: A process in the process pool was terminated abruptly")
    if fails == "gpu":
        fail("[TRT] [E] 1: [defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)")


def fail(text: str) -> NoReturn:
    """A traceback's last line, and exit code 1."""
    print(text, file=sys.stderr, flush=True)
    sys.exit(1)


def parser(release: str) -> argparse.ArgumentParser:
    """argparse with exactly the flags of that release."""
    made = argparse.ArgumentParser(prog="trtllm-build")
    for name, flag in load(release).flags("build").items():
        made.add_argument(*(f"--{one}" for one in (name, *flag.aliases)), **options(flag))
    return made


def options(flag: Flag) -> dict[str, Any]:
    """What argparse is told of one flag."""
    if flag.type == "flag":
        return {"action": "store_true"}
    convert = CONVERTERS.get(flag.type, str)
    given = {"type": convert, "default": flag.default, "choices": flag.choices or None, "nargs": flag.nargs or None}
    return {name: value for name, value in given.items() if value is not None}
