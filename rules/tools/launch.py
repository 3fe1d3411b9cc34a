"""Runs Triton servers for TensorRT-LLM engines, here or in containers, until SIGINT or SIGTERM or until one ends.

    launch.py --server JSON [--server JSON ...] [--one-by-one] --state FILE

Each server is an object: `name`, `argv` and `env` of the command that runs it, `host`, `ports` (http, grpc, metrics),
`models`, `log`, `repositories` (variant -> folder), and a `folder` of its own beside the log. It has `container`
([program, name]) when the command is a client of docker or podman; `prefix`, that of its shared-memory regions, when
these are on this machine ({pid} in it and in argv becomes ours); and `layout` when its repository is made here:
`target`, `seen` (the same folder as the server sees it), `root` (where configs now say it is), `sources` (variant ->
model repository) and `devices` (variant -> GPUs of its engine, for the orchestrator).

Upstream's launcher returns at once and says nothing of what becomes of the server. This one waits until every model is
ready, tells what a log means, and leaves no process, container, shared memory or file behind, however it ends: that is
done by a second process, the janitor, which acts when a pipe from this one closes.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SHM = Path("/dev/shm")  # noqa: S108
GRACE_SECONDS = 12.0  # of unloading an engine; `doit stop` waits longer
POLL_SECONDS, QUIET_SECONDS = 0.1, 5.0
QUESTION = {"text_input": "What does a KV cache keep?", "max_tokens": 32}
VERSIONS = "the engine was built by another TensorRT-LLM or TensorRT: build it with the image that serves it"
MEMORY = "see who else is on the GPU; lower kv_cache_free_gpu_mem_fraction, or use more ranks"
SHARED = "docker: --shm-size=32g; here: remount /dev/shm larger, or remove regions that nobody uses"
FAILURES = (  # in a server's log, the most telling first: pattern, what it is, hint
    (r".*(?:expecting library version|Version tag does not match).*", "the engine is of another version", VERSIONS),
    (r".*(?:CUDA out of memory|cudaErrorMemoryAllocation|OutOfMemory).*", "GPU memory ended", MEMORY),
    (r".*[Nn]ot enough slots.*", "mpirun has fewer slots than ranks", "OpenMPI counts cores: give the machine more"),
    (r".*(?:No space left on device|unable to (?:create|initialize) shared memory).*", "shared memory ended", SHARED),
    (r".*(?:orte_init|ompi_mpi_init).*", "MPI could not start", "is OpenMPI whole, and may it write to TMPDIR?"),
    (r"^E.*?failed to load '[^']+' version \d+: .*", "a model failed to load", ""),
    (r"^E.*?Poll failed for model directory .*", "a model's folder is wrong", ""),
    (r"^E.*?[Ff]ailed to start .*", "tritonserver could not start", ""),
)

Server = dict[str, Any]
if TYPE_CHECKING:
    Running = tuple[Server, subprocess.Popen[bytes]]


class Refused(Exception):
    """Something the user can mend: what happened, the facts as (name, value), a hint."""

    def __init__(self, what: str, facts: Sequence[tuple[str, object]] = (), hint: str = "") -> None:
        width = max((len(name) for name, _ in facts), default=0)
        lines = [f"error: {what}", *(f"    {name.ljust(width)}  {value}" for name, value in facts)]
        super().__init__("\n".join(lines + ([f"    hint: {hint}"] if hint else [])))


def require_ports(servers: Sequence[Server]) -> None:
    """Every port of every server can be had, and each is named once."""
    facts: list[tuple[str, object]] = []
    with contextlib.ExitStack() as held:
        for server in servers:
            for purpose, port in server["ports"].items():
                try:
                    bind(held, server["host"], port)
                except (OSError, OverflowError) as reason:
                    owner = port_owner(port)
                    facts.append((f"{server['name']}, {purpose}", f"{port}: {owner or reason}"))
    if facts:
        raise Refused("a port cannot be used", facts, "doit stop ends our servers; --http-port N chooses others")


def bind(held: contextlib.ExitStack, host: str, port: int) -> None:
    """Listens on host:port as long as `held` is open."""
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    bound = held.enter_context(socket.socket(family, kind))
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((address[0], port))
    bound.listen()


def port_owner(port: int) -> str:
    """`pid N: command` of the process that listens on `port`; empty when /proc does not tell (proc(5), net/tcp)."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            rows = [row.split() for row in Path(table).read_text().splitlines()[1:]]
            inodes |= {f"socket:[{row[9]}]" for row in rows if row[3] == "0A" and row[1].endswith(f":{port:04X}")}
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if str(link.readlink()) in inodes:
                command = (link.parents[1] / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                return f"pid {link.parents[1].name}: {command[:100].strip()}"
    return ""


def sweep() -> None:
    """Removes the regions of servers of ours that were ended so hard that nobody could."""
    for region in SHM.glob("doit_trtllm_*"):
        owner = region.name.split("_")[2]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            with contextlib.suppress(OSError):
                region.unlink()


def lay_out(layout: dict[str, Any]) -> list[str]:
    """Makes the repository of links; returns the models, `<model>__<variant>` when it holds several variants."""
    target, several = Path(layout["target"]), len(layout["sources"]) > 1
    served: list[str] = []
    for variant, source in layout["sources"].items():
        models = sorted(path.parent.name for path in Path(source).glob("*/config.pbtxt"))
        names = {name: f"{name}__{variant}" if several else name for name in models}
        for name in models:
            copy = os.symlink if layout["seen"] == layout["target"] else link
            shutil.copytree(Path(source, name).resolve(), target / names[name], copy_function=copy)
            (rewrite if several else replace_root)(target / names[name] / "config.pbtxt", names, layout, variant)
        served += names.values()
    return served


def link(source: str, target: str) -> None:
    """A hard link, which a container sees as the file itself; a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def replace_root(path: Path, _names: dict[str, str], layout: dict[str, Any], _variant: str) -> None:
    """Gives a config the places where the server sees its files, with no more than Python has in every image."""
    text = path.read_text().replace(f'"{layout["root"]}/', f'"{layout["seen"]}/')
    path.unlink()  # a link to the artifact
    path.write_text(text)


def rewrite(path: Path, names: dict[str, str], layout: dict[str, Any], variant: str) -> None:
    """Gives a config the new names, the places where the server sees its files, and its engine the variant's GPUs."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    config.name = path.parent.name
    for step in config.ensemble_scheduling.step:
        step.model_name = names.get(step.model_name, step.model_name)
    for key, parameter in config.parameters.items():
        below = parameter.string_value.removeprefix(f"{layout['root']}/")
        if below != parameter.string_value:
            model, _, rest = below.partition("/")
            parameter.string_value = f"{layout['seen']}/{names[model]}/{rest}"
        elif key == "tensorrt_llm_model_name":
            parameter.string_value = names.get(parameter.string_value, parameter.string_value)
    if "gpu_device_ids" in config.parameters and layout["devices"].get(variant):
        config.parameters["gpu_device_ids"].string_value = layout["devices"][variant]
    path.unlink()
    path.write_text(text_format.MessageToString(config))


def start(server: Server, janitor: int) -> subprocess.Popen[bytes]:
    """Starts the command in a session of its own, with its output in the log."""
    Path(server["folder"]).mkdir(parents=True, exist_ok=True)
    argv, env = [own(word) for word in server["argv"]], {**os.environ, **server["env"]}
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


def own(text: str) -> str:
    """`text` with our process id where it goes: whose a leftover region is can be told by it."""
    return text.replace("{pid}", str(os.getpid()))


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


def answers(host: str, port: int, path: str) -> bool:
    """Whether GET `path` gives 200. Not with urllib, which would ask a proxy."""
    with contextlib.closing(http.client.HTTPConnection(host, port, timeout=2)) as connection:
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False


def reachable(server: Server) -> str:
    """The address that a client on this machine uses."""
    return str({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(server["host"], server["host"]))  # noqa: S104


def died(server: Server, status: int) -> Refused:
    """What the log says about the end: the first line that is known to tell it, or the last lines."""
    text = Path(server["log"]).read_text(errors="replace")
    for pattern, what, hint in FAILURES:
        if found := re.search(pattern, text, re.MULTILINE):
            facts = [("said", found[0].strip()[:300]), ("log", server["log"])]
            return Refused(f"{server['name']}: {what}", facts, hint)
    facts = [("status", status), *(("last line", line) for line in text.splitlines()[-3:]), ("log", server["log"])]
    return Refused(f"{server['name']} ended before it was ready", facts)


def wait_until_ready(server: Server, running: Sequence[Running]) -> Iterator[str]:
    """Yields lines of progress until the server and every model are ready; Refused when any that runs has ended."""
    host, port = reachable(server), server["ports"]["http"]
    paths = ["/v2/health/ready", *(f"/v2/models/{model}/ready" for model in server["models"])]
    begin = spoken = time.monotonic()
    while not all(answers(host, port, path) for path in paths):
        for other, process in running:
            if process.poll() is not None:
                raise died(other, process.returncode)
        now = time.monotonic()
        if now - spoken > QUIET_SECONDS:
            spoken = now
            lines = Path(server["log"]).read_text(errors="replace").splitlines() or [""]
            yield f"  waiting for {server['name']} ({now - begin:.0f} s)  {lines[-1][:100]}"
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
    require_ports(args.server)
    sweep()
    running: list[Running] = []
    try:
        for server in args.server:
            if server.get("layout"):
                server["models"] = lay_out(server["layout"])
            print(f"tritonserver: starting {server['name']}, log {server['log']}")
            running.append((server, start(server, janitor)))
            for line in wait_until_ready(server, running) if args.one_by_one else ():
                print(line)
        for server in args.server if not args.one_by_one else ():
            for line in wait_until_ready(server, running):
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
    parser.add_argument("--state", type=lambda text: Path(text).absolute(), required=True, metavar="FILE")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(arguments(sys.argv[1:])))
