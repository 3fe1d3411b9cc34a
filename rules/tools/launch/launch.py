"""Runs Triton servers for TensorRT-LLM engines, here or in containers, until SIGINT or SIGTERM or until one ends.

    launch.py --server JSON [--server JSON ...] [--one-by-one] [--load-seconds N] --state FILE

Each server is an object: `name`, `argv` and `env` of the command that runs it, `host`, `ports` (http, grpc, metrics;
0 is a free one, and {http} and so on in argv become what they are), `models`, `log`, `repositories` (variant ->
folder), and a `folder` of its own beside the log. It has `container` ([program, name]) when the command is a client of
docker or podman; `prefix`, that of its shared-memory regions, when these are on this machine ({pid} in it and in argv
becomes ours); and `layout` when its repository is made here: `target`, `seen` (the same folder as the server sees it),
`root` (where configs now say it is), `sources` (variant -> model repository) and `devices` (variant -> GPUs of its
engine, for the orchestrator).

Upstream's launcher returns at once and says nothing of what becomes of the server. This one waits until every model is
ready, tells what a log means, and leaves no process, container, shared memory or file behind, however it ends: that is
done by a second process, the janitor, which acts when a pipe from this one closes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent))  # where isolated Python does not look

import logs
import ports
import repository
from logs import Refused

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SHM = Path("/dev/shm")  # noqa: S108
GRACE_SECONDS = 12.0  # of unloading an engine; `doit stop` waits longer
POLL_SECONDS, QUIET_SECONDS = 0.1, 5.0
QUESTION = {"text_input": "What does a KV cache keep?", "max_tokens": 32}

Server = dict[str, Any]
if TYPE_CHECKING:
    Running = tuple[Server, subprocess.Popen[bytes]]


def sweep() -> None:
    """Removes the regions of servers of ours that were ended so hard that nobody could."""
    for region in SHM.glob("doit_trtllm_*"):
        owner = region.name.split("_")[2]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            with contextlib.suppress(OSError):
                region.unlink()


def start(server: Server, janitor: int) -> subprocess.Popen[bytes]:
    """Starts the command in a session of its own, with its output in the log."""
    Path(server["folder"]).mkdir(parents=True, exist_ok=True)
    argv, env = [own(word, **server["ports"]) for word in server["argv"]], {**os.environ, **server["env"]}
    with open(server["log"], "wb") as output:  # noqa: PTH123
        try:
            process = subprocess.Popen(
                argv, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as reason:
            facts = [("command", server["argv"][0]), ("reason", reason.strerror)]
            raise Refused(f"{server['name']} cannot be started", facts, "run inside the release's container") from None
    os.write(janitor, f"{process.pid}\n".encode())
    return process


def own(text: str, **more: int) -> str:
    """`text` with our process id where it goes, by which a leftover region is known, and with `more` numbers."""
    for name, number in {"pid": os.getpid(), **more}.items():
        text = text.replace(f"{{{name}}}", str(number))
    return text


def session(leader: int) -> list[int]:
    """The processes of a session: mpirun gives each rank a process group of its own."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            state, _, _, sid = stat.read_text(errors="replace").rpartition(")")[2].split()[:4]
            if int(sid) == leader and state != "Z":
                found.append(int(stat.parent.name))
    return found


def end(leader: int) -> None:
    """Kills what is left of a session, also what it starts meanwhile."""
    while left := session(leader):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def remove(leaders: Sequence[int], servers: Sequence[Server], prefixes: Sequence[str], state: Path) -> None:
    """Ends every process and container; removes regions, laid out repositories and the state file."""
    for leader in leaders:
        end(leader)
    for server in servers:
        if server.get("container"):
            program, name = server["container"]
            subprocess.run([program, "rm", "--force", name], capture_output=True, check=False)
        folder = Path(server["folder"])
        for log in folder.glob("*.log"):
            log.replace(f"{folder}.{log.name}")
        shutil.rmtree(folder, ignore_errors=True)
    for leftover in [state, *(region for prefix in prefixes for region in SHM.glob(f"{prefix}*"))]:
        leftover.unlink(missing_ok=True)


def start_janitor(servers: Sequence[Server], state: Path) -> tuple[int, int]:
    """Forks the process that cleans up after this one: (its pid, the pipe that takes the servers' process ids)."""
    reading, writing = os.pipe()
    prefixes = [own(server["prefix"]) for server in servers if server.get("prefix")]
    if janitor := os.fork():
        os.close(reading)
        return janitor, writing
    os.setsid()  # neither Ctrl-C nor a kill of our process group reaches it
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    os.close(writing)
    with open(reading) as pipe:  # noqa: PTH123
        leaders = [int(line) for line in pipe.read().split()]
    remove(leaders, servers, prefixes, state)
    os._exit(0)


def stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Asks all to end at once and waits for them as long as the grace lasts; the janitor kills the rest."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    for process in processes:
        process.terminate()
    until = time.monotonic() + GRACE_SECONDS
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(until - time.monotonic(), 0))


def reachable(server: Server) -> str:
    """The address that a client on this machine uses."""
    return str({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(server["host"], server["host"]))  # noqa: S104


def wait_until_ready(server: Server, running: Sequence[Running], limit: float) -> Iterator[str]:
    """Yields lines of progress until the server and every model are ready; Refused when any that runs has ended, or
    when it takes longer than `limit` seconds: a rank that waits for another would wait for ever.
    """
    host, port = reachable(server), server["ports"]["http"]
    paths = ["/v2/health/ready", *(f"/v2/models/{model}/ready" for model in server["models"])]
    begin = spoken = time.monotonic()
    while not all(ports.answers(host, port, path) for path in paths):
        for other, process in running:
            if process.poll() is not None:
                raise logs.died(other, process.returncode)
        now = time.monotonic()
        if now - begin > limit:
            hint = "raise load_timeout_s in [serve] of models.toml if it only is slow; NCCL_DEBUG=INFO tells who waits"
            raise Refused(f"{server['name']} was not ready after {limit:g} s", logs.last(server), hint)
        if now - spoken > QUIET_SECONDS:
            spoken = now
            yield f"  waiting for {server['name']} ({now - begin:.0f} s)  {logs.last(server)[-2:][0][1]!s:.100}"
        time.sleep(POLL_SECONDS)
    yield f"  {server['name']} is ready ({time.monotonic() - begin:.1f} s)"


def announcement(server: Server) -> str:
    """What a user reads of a server that is ready: URLs, and a curl line per variant."""
    host, ports = reachable(server), server["ports"]
    url = f"http://{f'[{host}]' if ':' in host else host}:{ports['http']}"
    lines = [f"  {server['name']}  HTTP {url}  gRPC {ports['grpc']}  metrics {ports['metrics']}  log {server['log']}"]
    ensembles = [model for model in server["models"] if model.partition("__")[0] == "ensemble"]
    lines += [f"  curl -s {url}/v2/models/{model}/generate -d '{json.dumps(QUESTION)}'" for model in ensembles]
    return "\n".join(lines)


def write_state(path: Path, servers: Sequence[Server]) -> None:
    """Atomically: who sees the file sees all of it."""
    first = servers[0]
    numbers = {f"{name}_port": port for name, port in first["ports"].items()}
    named = [{key: server[key] for key in ("name", "host", "ports", "models", "log")} for server in servers]
    repositories = {name: folder for server in servers for name, folder in server["repositories"].items()}
    state = {"pid": os.getpid(), "host": reachable(first), **numbers, "models": first["models"], "servers": named}
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps({**state, "repositories": repositories}, indent=1))
    draft.replace(path)


def serve(args: argparse.Namespace, janitor: int) -> None:
    """Starts every server and stays until one dies (Refused) or a signal comes (KeyboardInterrupt)."""
    ports.settle(args.server)
    sweep()
    running: list[Running] = []
    try:
        for server in args.server:
            if server.get("layout"):
                server["models"] = repository.lay_out(server["layout"])
            print(f"tritonserver: starting {server['name']}, log {server['log']}")
            running.append((server, start(server, janitor)))
            for line in wait_until_ready(server, running, args.load_seconds) if args.one_by_one else ():
                print(line)
        for server in args.server if not args.one_by_one else ():
            for line in wait_until_ready(server, running, args.load_seconds):
                print(line)
        write_state(args.state, args.server)
        print("\n".join(["tritonserver: ready", *map(announcement, args.server)]))
        watch(running)
    finally:
        stop([process for _, process in running])


def watch(running: Sequence[Running]) -> None:
    """Waits until one of them ends, which nobody asked for."""
    while all(process.poll() is None for _, process in running):
        time.sleep(POLL_SECONDS)
    for server, process in running:
        if process.returncode is not None:
            facts = [("status", process.returncode), ("log", server["log"])]
            raise Refused(f"{server['name']} ended by itself", facts)


def on_signal(_number: int, _frame: FrameType | None) -> None:
    """Ends the program once."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    raise KeyboardInterrupt


def main(args: argparse.Namespace) -> int:
    """Exit 0 after a signal, 1 when a server could not start or ended by itself. Nothing is left behind."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    janitor, pipe = start_janitor(args.server, args.state)
    for number in SIGNALS:
        signal.signal(number, on_signal)
    try:
        serve(args, pipe)
    except Refused as refusal:
        print(refusal, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("tritonserver: stopped")
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        os.close(pipe)
        os.waitpid(janitor, 0)
    return 0


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Run Triton servers until SIGINT or SIGTERM.")
    parser.add_argument("--server", type=json.loads, action="append", required=True, metavar="JSON")
    parser.add_argument("--one-by-one", action="store_true", help="start the next when the one before is ready")
    parser.add_argument(
        "--load-seconds", type=float, default=3600.0, help="what one of them may take until it is ready"
    )
    parser.add_argument("--state", type=lambda text: Path(text).absolute(), required=True, metavar="FILE")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(arguments(sys.argv[1:])))
