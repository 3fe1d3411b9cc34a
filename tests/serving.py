"""A running serve.py for tests, a small repository for it to serve, and what it may leave behind."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

__all__ = ["SERVE", "Server", "alive", "echo_repository", "free", "has_curl", "leftovers", "until"]

SERVE = Path(__file__).parents[1] / "rules" / "tools" / "serve.py"
_blocks = itertools.count()

ECHO = """
import time
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            text = pb.get_input_tensor_by_name(request, "text_input").as_numpy()
            if text.ravel()[0] == b"never":
                print("never began", flush=True)
                time.sleep(600)
            response = pb.InferenceResponse([pb.Tensor("text_output", text)])
            request.get_response_sender().send(response, flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
TENSORS = """
input { name: "text_input" data_type: TYPE_STRING dims: [ 1 ] }
output { name: "text_output" data_type: TYPE_STRING dims: [ 1 ] }
"""
PYTHON = 'name: "echo" backend: "python" model_transaction_policy { decoupled: true } instance_group { kind: KIND_CPU }'
STEP = """name: "ensemble" platform: "ensemble"
ensemble_scheduling { step { model_name: "echo" model_version: -1
    input_map { key: "text_input" value: "text_input" } output_map { key: "text_output" value: "text_output" } } }"""


def echo_repository(folder: Path, code: str = ECHO) -> Path:
    """A Triton repository: an ensemble over a decoupled Python model that answers with its input."""
    for name, config in (("echo", PYTHON), ("ensemble", STEP)):
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "config.pbtxt").write_text(config + TENSORS)
    (folder / "echo/1/model.py").write_text(code)
    return folder


class Server:
    """serve.py on free ports, with its files and temporary directory below `folder`."""

    def __init__(self, folder: Path, *arguments: str, **repositories: Path) -> None:
        self.state_path, self.log, self.temporary = folder / "state.json", folder / "server.log", folder / "tmp"
        self.temporary.mkdir()
        argv = [sys.executable, "-I", str(SERVE), *(f"--repository={name}={at}" for name, at in repositories.items())]
        ports = zip(("http", "grpc", "metrics"), free(), strict=True)
        argv += [*(f"--{purpose}-port={port}" for purpose, port in ports), *arguments]
        argv += [f"--log={self.log}", f"--state={self.state_path}"]
        self.out, self.err = folder / "out", folder / "err"
        with self.out.open("w") as out, self.err.open("w") as err:
            env = {**os.environ, "TMPDIR": str(self.temporary)}
            self.process = subprocess.Popen(argv, stdout=out, stderr=err, env=env)

    def ready(self) -> dict[str, Any]:
        """Waits for the state file and returns it."""
        until(lambda: self.state_path.exists() or self.process.poll() is not None)
        assert self.state_path.exists(), self.out.read_text() + self.err.read_text()
        assert until(lambda: "  curl -s" in self.out.read_text()), self.out.read_text()
        state: dict[str, Any] = json.loads(self.state_path.read_text())
        return state

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The JSON that Triton answers."""
        state = self.ready()
        connection = http.client.HTTPConnection(state["host"], state["http_port"], timeout=60)
        try:
            connection.request("POST", path, json.dumps(body))
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
            return answer
        finally:
            connection.close()

    def end(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal and waits. Returns the exit status."""
        self.process.send_signal(number)
        return self.process.wait(60)

    def server_pid(self) -> int:
        """tritonserver's pid."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return next(int(pid) for pid in children if b"tritonserver" in Path(f"/proc/{pid}/cmdline").read_bytes())


def leftovers(server: Server) -> list[str]:
    """Processes (zombies aside), shared memory and files of one server that are still there."""
    pid = server.process.pid
    found = [str(path) for path in Path("/dev/shm").glob(f"doit_triton_{pid}_*")]
    found += [str(path) for path in (server.state_path, *server.temporary.iterdir()) if path.exists()]
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = line.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        found += [text] if str(server.temporary) in text or str(server.state_path) in text else []
    return found


def alive(pid: int) -> bool:
    """Whether a process is running. A zombie is not: who is process 1 of a container may never wait for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(holds: Any, seconds: float = 60) -> bool:
    """Waits until `holds()` is true, and says so, or until the time is over: a limit for what is broken, never a
    measure of how fast something is.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.05)
    return bool(holds())


def free() -> list[int]:
    """Three ports that nobody listens on, with three more after them. They lie below those that the kernel gives to
    whoever asks for any, and each process of the suite has its own: no other test comes by one of them meanwhile.
    """
    own = 10_000 + os.getpid() % 200 * 100
    while True:
        first = own + next(_blocks) % 10 * 10
        with contextlib.suppress(OSError), contextlib.ExitStack() as held:
            for port in range(first, first + 6):
                held.enter_context(socket.create_server(("127.0.0.1", port)))
            return [first, first + 1, first + 2]


def has_curl() -> bool:
    """Whether the curl line can be pasted here."""
    return shutil.which("curl") is not None
