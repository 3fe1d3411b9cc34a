"""Serves Triton model repositories with the tritonserver of the `nvidia-pytriton` wheel, until SIGINT or SIGTERM.

    serve.py --repository NAME=DIR [--repository NAME=DIR ...] --log FILE --state FILE [--http-port N ...]

Only the wheel's files are used: `pytriton` is not imported and site-packages is not written to. The models are laid
out as links in a private directory, so that a compiled `model.py` never changes an artifact. What was started or
written is removed by a second process, the janitor, which acts when this one ends, however it ends (SIGKILL too).

Facts about the wheel (measured with nvidia-pytriton 0.7.0 = Triton 2.51.0): the stub of the Python backend needs
`libpython3.X.so.1.0`, finds its packages through the first `python3` on PATH and ignores PYTHONPATH and
PYTHONDONTWRITEBYTECODE; with numpy 2 every string tensor arrives corrupted; HTTP and gRPC listen only after every
model has loaded.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import http.client
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

GLIBC = (2, 35)
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE_SECONDS = 4
LOAD_SECONDS = 1800  # the Python backend gives up on a model's initialize() after 30 unless told otherwise
QUESTION = {"text_input": "What does a KV cache keep?", "max_tokens": 32}
FAILURES = (  # in a server's log, the most telling first
    r"^E.*?failed to load '(?P<model>[^']+)' version \d+: (?P<reason>.*)",
    r"^E.*?Poll failed for model directory '(?P<model>[^']+)': (?P<reason>.*)",
    r"^E.*?(?P<model>)(?P<reason>[Ff]ailed to start .*)",
    r"(?P<model>)(?P<reason>triton_python_backend_stub: error while loading.*)",
)


class Refused(Exception):
    """Something the user can mend: what happened, the facts as (name, value), a hint."""

    def __init__(self, what: str, facts: Sequence[tuple[str, object]] = (), hint: str = "") -> None:
        width = max((len(name) for name, _ in facts), default=0)
        lines = [f"error: {what}", *(f"    {name.ljust(width)}  {value}" for name, value in facts)]
        super().__init__("\n".join(lines + ([f"    hint: {hint}"] if hint else [])))


def require_glibc(version: str | None) -> None:
    """Takes what confstr gives, "glibc 2.36"; None where the C library is another."""
    found = re.fullmatch(r"glibc (\d+)\.(\d+).*", version or "")
    if not found or (int(found[1]), int(found[2])) < GLIBC:
        facts = [("found", version or "another C library"), ("needed", f"glibc {GLIBC[0]}.{GLIBC[1]}")]
        raise Refused("glibc is too old for tritonserver", facts, "use Debian 12, Ubuntu 22.04 or newer")


def require_numpy(version: str) -> None:
    """Refuses numpy 2, with which the stub reads every string tensor wrongly."""
    if int(version.split(".", maxsplit=1)[0]) >= 2:
        raise Refused("numpy 2 corrupts string tensors in this Triton", [("found", version)], "pip install 'numpy<2'")


def libpython(name: str) -> Path:
    """The folder that holds the shared libpython called `name`, as sysconfig's INSTSONAME gives it."""
    base, multiarch = str(sysconfig.get_config_var("LIBDIR")), str(sysconfig.get_config_var("MULTIARCH") or "")
    folders = list(dict.fromkeys([Path(base), Path(base, multiarch), Path(sys.base_prefix, "lib")]))
    for folder in folders:
        if ".so" in name and (folder / name).is_file():
            return folder
    facts = [("python", sys.executable), ("missing", name), *(("looked in", str(folder)) for folder in folders)]
    hint = "use a Python built with --enable-shared, as uv's are, or install your distribution's libpython3.x"
    raise Refused("this Python has no shared library, which Triton's Python backend needs", facts, hint)


def find_wheel() -> Path:
    """The folder `pytriton/tritonserver` of the installed wheel."""
    spec = importlib.util.find_spec("pytriton")
    folder = Path(spec.origin).parent / "tritonserver" if spec and spec.origin else None
    if folder and (folder / "bin/tritonserver").is_file():
        return folder
    facts = [("python", sys.executable)]
    raise Refused("the wheel nvidia-pytriton is not installed", facts, "pip install nvidia-pytriton==0.7.0")


def bind(host: str, port: int, purpose: str) -> socket.socket:
    """A socket that listens on host:port, so that nobody else does. 0 lets the kernel choose."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((address[0], port))  # not `address`, in which 99999 has become 34463
        bound.listen()
    except (OSError, OverflowError) as reason:
        facts = [("port", f"{port} ({purpose})"), ("host", host), ("reason", str(reason))]
        facts += [("used by", owner) for owner in [port_owner(port)] if owner]
        hint = f"stop that process (`doit stop` when it is ours) or pass --{purpose}-port 0 for a free port"
        raise Refused(f"port {port} for {purpose} cannot be used", facts, hint) from None
    return bound


def choose_ports(host: str, wanted: dict[str, int]) -> dict[str, int]:
    """The port per purpose, with 0 replaced by a free one; all are held at once, so that they differ."""
    with contextlib.ExitStack() as held:
        bound = {purpose: held.enter_context(bind(host, port, purpose)) for purpose, port in wanted.items()}
        return {purpose: int(listening.getsockname()[1]) for purpose, listening in bound.items()}


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
                process = link.parent.parent
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                return f"pid {process.name}: {command[:120].strip()}"
    return ""


def runnable(source: Path, target: Path) -> Path:
    """`target`, a link to `source` where that has a run bit (some installers drop it), otherwise a copy with one."""
    if os.access(source, os.X_OK):
        target.symlink_to(source)
    else:
        shutil.copyfile(source, target)
        target.chmod(0o700)
    return target


def lay_out_server(wheel: Path, private: Path) -> Path:
    """Puts tritonserver and, below `backends`, the Python backend with the stub of this Python into `private`."""
    if os.statvfs(private).f_flag & os.ST_NOEXEC:
        raise Refused("programs cannot run from the temporary directory", [("directory", private)], "set TMPDIR")
    backend = private / "backends/python"
    backend.mkdir(parents=True)
    for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
        (backend / name).symlink_to(wheel / "backends/python" / name)
    stub = "triton_python_backend_stub"
    runnable(wheel / f"python_backend_stubs/{sys.version_info[0]}.{sys.version_info[1]}" / stub, backend / stub)
    return runnable(wheel / "bin/tritonserver", private / "tritonserver")


def lay_out_models(repositories: dict[str, Path], target: Path) -> list[str]:
    """Links every model below `target`; returns the names served, `<model>__<variant>` when there are several."""
    served: list[str] = []
    for variant, directory in repositories.items():
        models = {config.parent.name: config.parent for config in sorted(directory.glob("*/config.pbtxt"))}
        if not models:
            facts = [("directory", directory), ("expected", "<model>/config.pbtxt below it")]
            raise Refused(f"{variant} is not a Triton model repository", facts, f"build it: doit build:{variant}")
        names = {name: f"{name}__{variant}" if len(repositories) > 1 else name for name in models}
        for name, source in models.items():
            shutil.copytree(source.resolve(), target / names[name], copy_function=os.symlink)
            rename(target / names[name] / "config.pbtxt", names)
        served += names.values()
    return served


def rename(path: Path, names: dict[str, str]) -> None:
    """Gives a model's config, and the steps of an ensemble, the new `names`; says where a config is malformed."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    try:
        config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    except text_format.ParseError as reason:
        raise Refused("a config.pbtxt is malformed", [("file", path.resolve()), ("reason", reason)]) from None
    config.name = path.parent.name
    for step in config.ensemble_scheduling.step:
        step.model_name = names.get(step.model_name, step.model_name)
    path.unlink()
    path.write_text(text_format.MessageToString(config))


def remove(private: Path, state: Path, group: int | None) -> None:
    """Kills the server's process group; removes the private directory, the state file and the shared memory."""
    if group:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
            for _ in range(50):
                time.sleep(0.05)
                os.killpg(group, 0)
    for leftover in [state, *Path("/dev/shm").glob(f"{private.name}*")]:  # noqa: S108
        leftover.unlink(missing_ok=True)
    shutil.rmtree(private, ignore_errors=True)


def start_janitor(private: Path, state: Path) -> tuple[int, int]:
    """Forks the process that cleans up after this one: (its pid, the pipe that takes the server's process group).

    It acts when the pipe closes, and the kernel closes it for a process that was killed.
    """
    reading, writing = os.pipe()
    if janitor := os.fork():
        os.close(reading)
        return janitor, writing
    os.setsid()  # neither Ctrl-C nor a kill of our process group reaches it
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    os.close(writing)
    with open(reading) as pipe:  # noqa: PTH123
        group = pipe.read()
    remove(private, state, int(group) if group else None)
    os._exit(0)


def start(private: Path, wheel: Path, host: str, ports: dict[str, int], log: Path) -> subprocess.Popen[bytes]:
    """Starts tritonserver in a process group of its own, to be killed by the kernel when this process dies."""
    argv = [
        f"{private}/tritonserver",
        f"--model-repository={private}/models",
        f"--backend-directory={private}/backends",
    ]
    for purpose, port in ports.items():
        argv += [f"--{purpose}-address={host}", f"--{purpose}-port={port}"]
    argv += ["--allow-gpu-metrics=false", f"--exit-timeout-secs={GRACE_SECONDS - 1}"]
    argv += [f"--backend-config=python,stub-timeout-seconds={LOAD_SECONDS}"]
    argv += [f"--backend-config=python,shm-region-prefix-name={private.name}_"]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONHOME"}
    libraries = [libpython(str(sysconfig.get_config_var("INSTSONAME"))), wheel.parents[1] / "nvidia_pytriton.libs"]
    env["LD_LIBRARY_PATH"] = ":".join([*map(str, libraries), *filter(None, [env.get("LD_LIBRARY_PATH")])])
    env["PATH"] = f"{Path(sys.executable).parent}:{env.get('PATH', os.defpath)}"
    with log.open("wb") as output:
        return subprocess.Popen(
            argv, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            preexec_fn=lambda: ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL),  # noqa: PLW1509
        )  # fmt: skip


def stop(server: subprocess.Popen[bytes]) -> None:
    """Asks the server to end, kills what has not after the grace, and reaps the stubs it leaves."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # bounded in time, and not to be interrupted
    server.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(GRACE_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-server.pid, 0)


def answers(host: str, port: int, path: str) -> bool:
    """Whether GET `path` gives 200. Not with urllib, which would ask a proxy."""
    with contextlib.closing(http.client.HTTPConnection(host, port, timeout=2)) as connection:
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False


def died(log: Path) -> Refused:
    """What a server's log says about its end: the first model that failed with its own error, or the last lines."""
    text = log.read_text(errors="replace")
    for pattern in FAILURES:
        if found := re.search(pattern, text, re.MULTILINE):
            what = f"model {found['model']} failed to load" if found["model"] else "tritonserver could not start"
            reason = re.sub(r"\S*/doit_triton_[^/]+/models/", "", found["reason"].rstrip('"'))
            lines = [line.strip() for line in reason.split("\\n") if line.strip(" At:") and "<frozen" not in line]
            return Refused(what, [*(("reason", line) for line in lines[:12]), ("log", str(log))])
    facts = [("last line", line) for line in text.splitlines()[-3:]]
    return Refused("tritonserver ended before it was ready", [*facts, ("log", str(log))])


def wait_until_ready(server: subprocess.Popen[bytes], log: Path, models: list[str], http: str) -> Iterator[str]:
    """Yields lines of progress until the server at `http` (host:port) and every model are ready, else Refused."""
    host, port = http.rsplit(":", 1)
    begin = spoken = time.monotonic()
    loaded: set[str] = set()
    paths = ["/v2/health/ready", *(f"/v2/models/{model}/ready" for model in models)]
    while not all(answers(host, int(port), path) for path in paths):
        text = log.read_text(errors="replace")
        if server.poll() is not None or "triton_python_backend_stub: error while" in text:
            raise died(log)
        now = time.monotonic()
        for model in sorted(set(re.findall(r"successfully loaded '([^']+)'", text)) - loaded):
            loaded.add(model)
            spoken = now
            yield f"  {model} is loaded ({len(loaded)} of {len(models)}, {now - begin:.1f} s)"
        if now - spoken > 4:
            spoken = now
            yield f"  waiting for {', '.join(sorted(set(models) - loaded)) or 'the ports'} ({now - begin:.0f} s)"
        time.sleep(0.1)


def announcement(host: str, ports: dict[str, int], models: list[str]) -> str:
    """What a user reads when the server is ready: URLs, and a curl line per variant."""
    http = f"http://{host}:{ports['http']}"
    lines = [f"  HTTP     {http}", f"  gRPC     {host}:{ports['grpc']}"]
    lines += [f"  metrics  http://{host}:{ports['metrics']}/metrics"]
    ensembles = [model for model in models if model.partition("__")[0] == "ensemble"]
    lines += [f"  curl -s {http}/v2/models/{model}/generate -d '{json.dumps(QUESTION)}'" for model in ensembles]
    return "\n".join(["tritonserver: ready", *lines])


def write_state(path: Path, state: dict[str, object]) -> None:
    """Atomically: who sees the file sees all of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(state, indent=1))
    draft.replace(path)


def serve(args: argparse.Namespace, private: Path, janitor: int) -> None:
    """Starts the server and stays until it dies (Refused) or a signal comes (KeyboardInterrupt)."""
    require_glibc(os.confstr("CS_GNU_LIBC_VERSION"))
    wheel = find_wheel()
    require_numpy(importlib.metadata.version("numpy"))
    repositories = dict(args.repository)
    models = lay_out_models(repositories, private / "models")
    lay_out_server(wheel, private)
    args.log.parent.mkdir(parents=True, exist_ok=True)
    ports = choose_ports(args.host, {"http": args.http_port, "grpc": args.grpc_port, "metrics": args.metrics_port})
    print(f"tritonserver: loading {len(models)} models, log {args.log}")
    server = start(private, wheel, args.host, ports, args.log)
    try:
        os.write(janitor, str(server.pid).encode())
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(args.host, args.host)  # noqa: S104
        for line in wait_until_ready(server, args.log, models, f"{host}:{ports['http']}"):
            print(line)
        places = {"repositories": {name: str(path) for name, path in repositories.items()}, "log": str(args.log)}
        numbers = {f"{name}_port": port for name, port in ports.items()}
        write_state(args.state, {"pid": os.getpid(), "host": host, **numbers, "models": models, **places})
        print(announcement(host, ports, models))
        raise Refused("tritonserver ended by itself", [("status", server.wait()), ("log", args.log)])
    finally:
        stop(server)


def on_signal(_number: int, _frame: FrameType | None) -> None:
    """Ends the program once."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    raise KeyboardInterrupt


def main(args: argparse.Namespace) -> int:
    """Exit 0 after a signal, 1 when the server could not start or ended by itself. Nothing is left behind."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    private = Path(tempfile.mkdtemp(prefix=f"doit_triton_{os.getpid()}_"))
    janitor, pipe = start_janitor(private, args.state)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)  # stubs whose server died become ours to reap
    for number in SIGNALS:
        signal.signal(number, on_signal)
    try:
        serve(args, private, pipe)
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


def named_directory(text: str) -> tuple[str, Path]:
    """NAME=DIR."""
    name, _, directory = text.partition("=")
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name) or not directory:
        raise argparse.ArgumentTypeError(f"expected NAME=DIR, got {text!r}")
    return name, Path(directory).absolute()


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Serve Triton model repositories until SIGINT or SIGTERM.")
    parser.add_argument("--repository", type=named_directory, action="append", required=True, metavar="NAME=DIR")
    parser.add_argument("--host", default="127.0.0.1")
    for purpose, port in (("http", 8000), ("grpc", 8001), ("metrics", 8002)):
        parser.add_argument(f"--{purpose}-port", type=int, default=port, metavar="N", help="0: a free one")
    for name in ("--log", "--state"):
        parser.add_argument(name, type=lambda text: Path(text).absolute(), required=True, metavar="FILE")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(arguments(sys.argv[1:])))
