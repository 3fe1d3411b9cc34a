"""Stand-ins for `mpirun`, `tritonserver` and `nvidia-smi` in tests. They never ship, run no model and need no GPU.

mpirun        takes the blocks that OpenMPI takes, gives each rank a process group, ends all when one ends
tritonserver  takes the options that are used, refuses others, has a shared-memory region; rank 0 really listens
nvidia-smi    answers from <folder>/gpus.json: [[index, uuid, compute_cap, memory.total, memory.free, name], ...]

<folder>/ranks.jsonl    what each rank was started with
<folder>/fails          a line that rank 0 says before it ends with status 1, if it is there
<folder>/behind         a command, as JSON, that answers at rank 0's ports, if it is there; without it, models are ready
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType
from typing import Any

HERE = Path(__file__).resolve()
SERVER = "/opt/tritonserver/bin/tritonserver"


def install(folder: Path, into: Path, gpus: int, sm: str = "9.0", free: int = 80_000) -> None:
    """Puts the three into `into`, with `gpus` GPUs of 81,559 MiB of which `free` are."""
    folder.mkdir(parents=True, exist_ok=True)
    into.mkdir(parents=True, exist_ok=True)
    rows = [[str(n), f"GPU-{n}", sm, "81559", str(free), "NVIDIA H100 80GB HBM3"] for n in range(gpus)]
    (folder / "gpus.json").write_text(json.dumps(rows), "utf-8")
    for name in ("mpirun", "nvidia-smi"):
        program = into / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I "{HERE}" "{folder}" {name} "$@"\n', "utf-8")
        program.chmod(0o755)


def nvidia_smi(folder: Path, argv: list[str]) -> int:
    """The rows of a query."""
    fields = argv[0].removeprefix("--query-gpu=").split(",")
    asked = next((word.removeprefix("--id=").split(",") for word in argv if word.startswith("--id=")), None)
    known = ["index", "uuid", "compute_cap", "memory.total", "memory.free", "name"]
    for row in json.loads((folder / "gpus.json").read_text("utf-8")):
        told = {**dict(zip(known, row, strict=True)), "driver_version": "550.54.15"}
        told |= {"memory.used": str(int(row[3]) - int(row[4])), "utilization.gpu": "50", "power.draw": "[N/A]"}
        if asked is None or row[0] in asked:
            print(", ".join(told[field] for field in fields))
    return 0


def mpirun(folder: Path, argv: list[str]) -> int:
    """Runs every block and waits; the first that ends takes the others with it. A last `:` is nothing."""
    words = [word for word in argv if word not in ("--allow-run-as-root", "--oversubscribe")]
    assert len(argv) - len(words) == 1 or os.getuid(), "as root it must be allowed"
    blocks = [block.split() for block in " ".join(words).split(" :") if block.strip()]
    ranks = []
    for rank, block in enumerate(blocks):
        assert block[:3] == ["-n", "1", SERVER], block
        command = [sys.executable, "-I", str(HERE), str(folder), "tritonserver", *block[3:]]
        env = {**os.environ, "OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_SIZE": str(len(blocks))}
        ranks.append(subprocess.Popen(command, env=env, preexec_fn=os.setpgrp))  # noqa: PLW1509

    def on_term(number: int, _frame: FrameType | None) -> None:
        for process in ranks:
            process.send_signal(number)

    signal.signal(signal.SIGTERM, on_term)
    while all(process.poll() is None for process in ranks):
        time.sleep(0.02)
    on_term(signal.SIGTERM, None)
    return int(max(abs(process.wait()) for process in ranks))


def tritonserver(folder: Path, argv: list[str]) -> int:
    """Rank 0 answers; others wait inside their engine and open no port."""
    args, rank = options().parse_args(argv), int(os.environ["OMPI_COMM_WORLD_RANK"])
    said: dict[str, Any] = {
        "rank": rank,
        "run": os.getppid(),
        "argv": argv,
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES") or os.environ["STANDIN_GPUS"],
    }
    said["orchestrator"] = os.environ.get("TRTLLM_ORCHESTRATOR", "")
    with (folder / "ranks.jsonl").open("a", encoding="utf-8") as ranks:
        ranks.write(json.dumps(said) + "\n")
    region = Path("/dev/shm", args.backend_config.removeprefix("python,shm-region-prefix-name=") + str(os.getpid()))
    region.write_text("region")
    if rank == 0 and (folder / "fails").exists():
        if "STANDIN_PORTS" in os.environ:
            region.unlink()  # a container's /dev/shm goes with it
        print((folder / "fails").read_text("utf-8"), flush=True)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # like the real one's, its regions stay when it is killed
    with contextlib.ExitStack() as left:
        left.callback(region.unlink)
        models = {path.parent.name for path in Path(args.model_repository).glob("*/config.pbtxt")}
        if rank:
            assert set(args.load_model) <= models
            time.sleep(600)
        together(folder)
        if (folder / "behind").exists():
            return answered(folder, args, left)
        listen(args, models)
    return 0


def answered(folder: Path, args: argparse.Namespace, left: contextlib.ExitStack) -> int:
    """The status of the command behind, which is ended with us."""
    ports = zip(("http", "grpc", "metrics"), published(args), strict=True)
    argv = [*json.loads((folder / "behind").read_text("utf-8")), *(f"--{name}-port={port}" for name, port in ports)]
    process = subprocess.Popen([word.replace("{pid}", str(os.getpid())) for word in argv], stdin=subprocess.PIPE)
    left.callback(process.wait)
    left.callback(process.terminate)
    left.callback(signal.signal, signal.SIGTERM, signal.SIG_IGN)  # mpirun sends it twice
    return process.wait()


def together(folder: Path) -> None:
    """Loading an engine ends when every rank has come: until then rank 0 opens no port."""
    wanted = set(range(int(os.environ["OMPI_COMM_WORLD_SIZE"])))
    while not wanted <= {one["rank"] for one in started(folder) if one["run"] == os.getppid()}:
        time.sleep(0.02)


def started(folder: Path) -> list[dict[str, Any]]:
    """What each rank was started with, as far as its line is whole."""
    lines = (folder / "ranks.jsonl").read_text("utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def listen(args: argparse.Namespace, models: set[str]) -> None:
    """On the three ports; of a container, on those that are published."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            ready = {"/v2/health/ready", *(f"/v2/models/{model}/ready" for model in models)}
            self.send_response(200 if self.path in ready else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    print(f"[TensorRT-LLM] serving {sorted(models)}", flush=True)
    servers = [ThreadingHTTPServer(("127.0.0.1", port), Handler) for port in published(args)]
    for server in servers[1:]:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    servers[0].serve_forever()


def published(args: argparse.Namespace) -> list[int]:
    """HTTP, gRPC, metrics: as given or, of a container, where they are published."""
    given = [text.rsplit(":", 2)[-2:] for text in filter(None, os.environ.get("STANDIN_PORTS", "").split(","))]
    outside = {inside: outside for outside, inside in given}
    return [int(outside.get(port, port)) for port in (args.http_port, args.grpc_port, args.metrics_port)]


def options() -> argparse.ArgumentParser:
    """The options of tritonserver that the launcher uses."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("model-repository", "grpc-port", "http-port", "metrics-port", "backend-config"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("log-verbose", "log-file", "model-control-mode", "pinned-memory-pool-byte-size", "enable-peer-access"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--load-model", action="append", default=[])
    parser.add_argument("--cuda-memory-pool-byte-size", action="append", default=[])
    parser.add_argument("--disable-auto-complete-config", action="store_true", required=True)
    return parser


if __name__ == "__main__":
    programs: dict[str, Callable[[Path, list[str]], int]] = {
        "mpirun": mpirun,
        "tritonserver": tritonserver,
        "nvidia-smi": nvidia_smi,
    }
    sys.exit(programs[sys.argv[2]](Path(sys.argv[1]), sys.argv[3:]))
