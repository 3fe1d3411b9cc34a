"""Runs an action's command in a container of docker or podman, with the mounts, GPUs and limits that guides type.

`line` is pure: `doit plan` shows what it returns and `run` runs exactly that. Against the guides' lines: one container
per command and gone with it, not one that lives on; no network; inputs read-only; nothing written as root; no terminal
asked for; `--mount`, since `-v` makes a mistyped folder instead of refusing it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rules.action import Files, Input
from rules.errors import Problem, StepFailed
from rules.runners import local

__all__ = ["OUT", "PYTHON", "SCRATCH", "THEIRS", "WARM", "Call", "inside", "line", "mismatches", "owner", "run"]

OUT, SCRATCH, WARM, PYTHON = "/out", "/scratch", "/warm", "python3"
_LABEL = "doit-engines"
_SHM = "32g"  # for NCCL and for Triton's Python backend; docker's own 64 MiB is what fills up
_ULIMITS = ("memlock=-1", "stack=67108864")  # as NVIDIA's containers ask for when they start
_ENV = {
    "HOME": SCRATCH,
    "TMPDIR": SCRATCH,
    "USER": "doit",  # the host's user has no name in there, and torch asks for one
    "LANG": "C.UTF-8",
    "PYTHONUNBUFFERED": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
# Of our own environment, what docker's and podman's programs need to find their service and their credentials.
THEIRS = ("PATH", "HOME", "XDG_RUNTIME_DIR", "DOCKER_HOST", "DOCKER_CONFIG", "DOCKER_CONTEXT", "CONTAINER_HOST")
# Printed by the image's own Python: the name and version of everything that is installed there.
_ASK = "import json; from importlib.metadata import distributions as all; "
_ASK += "print(json.dumps({one.metadata['Name']: one.version for one in all()}))"


@dataclass(frozen=True, kw_only=True)
class Call:
    """A command in a container. `argv` and `env` are as seen inside.

    `reads` and `writes` are (path inside, path on the host), `devices` GPUs by index or UUID, `ports` (host, inside),
    on the host's `address` or on all. Without `ports` there is no network. `user` is `uid:gid`; `owner` tells whose
    container it is.
    """

    program: Literal["docker", "podman"]
    image: str
    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    reads: Sequence[tuple[str, str]] = ()
    writes: Sequence[tuple[str, str]] = ()
    devices: Sequence[str] = ()
    ports: Sequence[tuple[int | str, int]] = ()
    address: str = ""
    user: str
    owner: str = ""


def inside(name: str, source: Input) -> str:
    """Where the input of that name lies in the container; a single file keeps its suffix, which readers go by."""
    single = isinstance(source, Files) and [path for path, _ in source.members] == [""]
    return f"/in/{name}{Path(source.root).suffix if isinstance(source, Files) and single else ''}"


def line(call: Call) -> list[str]:
    """The command line. Two runs of one action differ in the container's name, label and devices alone."""
    keep = ["--userns=keep-id"] if call.program == "podman" else []  # or the host's user would be another one inside
    return [
        *(call.program, "run", "--rm", "--init", f"--name={call.name}"),
        *([f"--label={_LABEL}={call.owner}"] if call.owner else []),
        *_gpus(call),
        f"--shm-size={_SHM}",
        *(f"--ulimit={limit}" for limit in _ULIMITS),
        *(f"--publish={_bound(call.address)}{host}:{port}" for host, port in call.ports),
        *([] if call.ports else ["--network=none"]),
        *keep,
        f"--user={call.user}",
        *(f"--mount=type=bind,source={host},target={path},readonly" for path, host in call.reads),
        *(f"--mount=type=bind,source={host},target={path}" for path, host in call.writes),
        f"--workdir={SCRATCH}",
        *(f"--env={name}={value}" for name, value in {**_ENV, **call.env}.items()),
        call.image,
        *call.argv,
    ]


def _bound(address: str) -> str:
    return f"[{address}]:" if ":" in address else address and f"{address}:"


def _gpus(call: Call) -> list[str]:
    """Of docker, the value is read as CSV: without quotes of its own, a second device would be another option."""
    if not call.devices:
        return []
    if call.program == "podman":
        return [f"--device=nvidia.com/gpu={device}" for device in call.devices]
    return ["--gpus", f'"device={",".join(call.devices)}"']


def run(call: Call, command: local.Command, heard: Callable[[str], None]) -> int:
    """Runs to the end like `local.run`, with `command`'s log, time and locks; its argv and env are made here.

    Signals reach the command through docker's program. A container that outlives that is removed here or, when we were
    killed, by whoever runs the next one.
    """
    _sweep(call.program)
    theirs = {name: os.environ[name] for name in THEIRS if name in os.environ}
    started = local.Command(
        argv=line(call),
        env=theirs,
        log=command.log,
        scratch=command.scratch,
        timeout_s=command.timeout_s,
        inherit=command.inherit,
        powers=True,  # inputs are mounted read-only
    )
    try:
        return local.run(started, heard)
    finally:
        _said([call.program, "rm", "--force", call.name])


def owner() -> str:
    """What this process is called, and no other one ever: host, process id, and when it started in clock ticks."""
    return f"{socket.gethostname()}:{os.getpid()}:{_started(os.getpid())}"


def mismatches(call: Call, toolchain: Sequence[tuple[str, str]], known: Path) -> list[Problem]:
    """The packages of `toolchain` that the image has in another version than declared; `image` itself is none.

    The image is asked once, whatever its tag says; `known` is the folder that keeps the answer by the image's digest.
    Raises StepFailed when there is no such image or it cannot be asked.
    """
    there = _packages(call.program, call.image, known)
    wrong = [
        (name, declared, there.get(_plain(name), "none"))
        for name, declared in toolchain
        if name != "image" and not _matches(declared, there.get(_plain(name), ""))
    ]
    return [
        Problem(
            what=f"{name} in the image is not the version that the key declares",
            facts=(("declared", declared), ("in the image", found), ("image", call.image)),
            hint="name the image of that release, or the release of that image; the tag alone says nothing",
        )
        for name, declared, found in wrong
    ]


def _matches(declared: str, found: str) -> bool:
    """A post-release repackages the same release: 25.02's image has 0.17.0.post1."""
    return found == declared or found.startswith(f"{declared}.post")


def _packages(program: str, image: str, known: Path) -> dict[str, str]:
    digest = _digest(program, image)
    path = known / f"{digest.rpartition(':')[2]}.json"
    with contextlib.suppress(OSError, ValueError):
        found: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        return found
    ask = [program, "run", "--rm", "--network=none", f"--entrypoint={PYTHON}", image, "-c", _ASK]
    asked = _said(ask)
    try:
        found = {_plain(name): version for name, version in json.loads(asked.stdout).items()}
    except ValueError:
        raise StepFailed(_failed("the image cannot tell its versions", asked, image)) from None
    known.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n", encoding="utf-8")
    return found


def _digest(program: str, image: str) -> str:
    """The image's own digest; it is pulled first when it is not here."""
    asked = _said([program, "image", "inspect", "--format={{.Id}}", image])
    if asked.returncode:
        pulled = _said([program, "pull", "--quiet", image])
        if pulled.returncode:
            raise StepFailed(_failed("there is no such image", pulled, image))
        asked = _said([program, "image", "inspect", "--format={{.Id}}", image])
    return asked.stdout.strip()


def _failed(what: str, asked: subprocess.CompletedProcess[str], image: str) -> Problem:
    said = (asked.stderr.strip() or asked.stdout.strip() or "nothing").splitlines()[-1]
    hint = "see `image` of the toolchain; docker login when the registry asks for it"
    return Problem(what=what, facts=(("image", image), ("said", said)), hint=hint)


def _said(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        hint = 'install it, or run inside the container with runner = "local"'
        raise StepFailed(Problem(what=f"{command[0]} is not installed here", hint=hint)) from None


def _sweep(program: str) -> None:
    """Removes the containers of processes of this host that are gone."""
    listed = _said(
        [program, "ps", "--all", f"--filter=label={_LABEL}", f'--format={{{{.Names}}}} {{{{.Label "{_LABEL}"}}}}']
    )
    for name in _orphans(listed.stdout.splitlines()):
        _said([program, "rm", "--force", name])


def _orphans(listed: Sequence[str]) -> Iterator[str]:
    for row in listed:
        name, _, whose = row.partition(" ")
        host, _, process = whose.partition(":")
        pid, _, started = process.partition(":")
        if host == socket.gethostname() and pid.isdigit() and _started(int(pid)) != started:
            yield name


def _started(pid: int) -> str:
    """When a process started; empty when there is none of that id."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")
