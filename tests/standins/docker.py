"""A stand-in for `docker` and `podman` in tests: it understands the options used, maps mounts back, runs the command.

It never ships and isolates nothing. Like the real one, a container outlives its client: only signals that the client
passes on, or `rm --force`, end it. An option that it does not know is exit code 125.

<folder>/images.json     {"image": {"id": "sha256:...", "packages": {"tensorrt_llm": "0.10.0"}}}
<folder>/bin             what the images have on their PATH
<folder>/containers      one file per container: its process and label
<folder>/calls.jsonl     every command line
<folder>/fails           what trtllm_build's STANDIN_FAILS is in the containers, if it is there
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

HERE = Path(__file__).resolve()


def install(folder: Path, images: dict[str, dict[str, str]]) -> Path:
    """Puts `docker` and `podman` into `folder`/path, with images that have these packages; returns that folder."""
    for name in ("path", "bin", "containers"):
        (folder / name).mkdir(parents=True)
    known = {
        image: {"id": f"sha256:{n:064x}", "packages": packages} for n, (image, packages) in enumerate(images.items())
    }
    (folder / "images.json").write_text(json.dumps(known), "utf-8")
    for name in ("docker", "podman"):
        program = folder / "path" / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I "{HERE}" "{folder}" "$@"\n', "utf-8")
        program.chmod(0o755)
    return folder / "path"


def main(folder: Path, argv: list[str]) -> int:
    """What the client's exit status would be."""
    with (folder / "calls.jsonl").open("a", encoding="utf-8") as calls:
        calls.write(json.dumps(argv) + "\n")
    images = json.loads((folder / "images.json").read_text("utf-8"))
    if argv[:2] == ["image", "inspect"] or argv[0] == "pull":
        return told(argv[-1] in images and images[argv[-1]]["id"], f"Error: No such image: {argv[-1]}")
    if argv[0] == "ps":
        return listed(folder)
    if argv[:2] == ["rm", "--force"]:
        return removed(folder, argv[2])
    return started(folder, images, argv)


def told(text: str | bool, error: str) -> int:
    """The text, or the error with exit code 1."""
    print(text or error, file=sys.stdout if text else sys.stderr)
    return 0 if text else 1


def listed(folder: Path) -> int:
    """Name and label of every container."""
    for path in sorted((folder / "containers").iterdir()):
        print(path.name, json.loads(path.read_text("utf-8"))["label"])
    return 0


def removed(folder: Path, name: str) -> int:
    """Kills all of a container."""
    path = folder / "containers" / name
    if not path.exists():
        return 0
    with contextlib.suppress(ProcessLookupError):
        os.killpg(json.loads(path.read_text("utf-8"))["pid"], signal.SIGKILL)
    path.unlink(missing_ok=True)
    return 0


def options() -> argparse.ArgumentParser:
    """The options of `run` that are used, with `exit_on_error` at 125."""
    parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_argument("run")
    for switch in ("--rm", "--init"):
        parser.add_argument(switch, action="store_true", required=switch == "--rm")
    for name in ("--name", "--label", "--gpus", "--shm-size", "--network", "--userns", "--user", "--workdir"):
        parser.add_argument(name)
    for name in ("--ulimit", "--publish", "--mount", "--env", "--device"):
        parser.add_argument(name, action="append", default=[])
    parser.add_argument("--entrypoint")
    parser.add_argument("image")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    return parser


def started(folder: Path, images: dict[str, dict[str, object]], argv: list[str]) -> int:
    """Runs the command with every path inside replaced by the mount's path on the host."""
    try:
        args = options().parse_args(argv)
    except (argparse.ArgumentError, SystemExit) as problem:
        print(f"unknown flag: {problem}", file=sys.stderr)
        return 125
    if args.image not in images:
        print(f"Unable to find image {args.image!r}", file=sys.stderr)
        return 125
    if args.entrypoint:
        print(json.dumps(images[args.image]["packages"]))
        return 0
    mounts = dict(mount(text) for text in args.mount)
    missing = [host for host in mounts.values() if not Path(host).exists()]
    if missing:
        print(f"bind source path does not exist: {missing[0]}", file=sys.stderr)
        return 125
    environment = dict(text.partition("=")[::2] for text in args.env)
    command = [on_host(word, mounts) for word in args.command]
    command[0] = sys.executable if command[0] == "python3" else command[0]
    gpus = args.gpus.strip('"').removeprefix("device=") if args.gpus else ""
    return followed(
        folder,
        args,
        command,
        {name: on_host(value, mounts) for name, value in environment.items()}
        | {"STANDIN_GPUS": gpus, "STANDIN_PORTS": ",".join(args.publish)},
        mounts.get(args.workdir, "/"),
    )


def followed(folder: Path, args: argparse.Namespace, command: list[str], env: dict[str, str], workdir: str) -> int:
    """The command's exit status; 128 and the signal that ended it, as of a container."""
    path = folder / "containers" / (args.name or "unnamed")
    if path.exists():
        print(f"Conflict. The container name {args.name!r} is already in use", file=sys.stderr)
        return 125
    env["PATH"] = f"{folder / 'bin'}:/usr/local/bin:/usr/bin:/bin"
    if (folder / "fails").exists():
        env["STANDIN_FAILS"] = (folder / "fails").read_text("utf-8")
    pipe, errors = subprocess.PIPE, subprocess.STDOUT  # its output passes through the client, and ends with it
    with subprocess.Popen(command, env=env, cwd=workdir, start_new_session=True, stdout=pipe, stderr=errors) as process:
        label = (args.label or "").removeprefix("doit-engines=")
        path.write_text(json.dumps({"pid": process.pid, "label": label}), "utf-8")

        def forward(number: int, _frame: FrameType | None) -> None:
            process.send_signal(number)

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, forward)
        for line in process.stdout or ():
            sys.stdout.buffer.write(line)
            sys.stdout.flush()
        code = process.wait()
    path.unlink(missing_ok=True)
    return code if code >= 0 else 128 - code


def mount(text: str) -> tuple[str, str]:
    """Path inside, path on the host."""
    fields = dict(field.partition("=")[::2] for field in text.split(","))
    return fields["target"], fields["source"]


def on_host(word: str, mounts: dict[str, str]) -> str:
    """Paths inside that stand alone, after `=` or before `/`, as paths on the host."""
    for inside, host in sorted(mounts.items(), key=lambda pair: -len(pair[0])):
        word = host.join(re.split(rf"(?<![\w./-]){re.escape(inside)}(?![\w.-])", word))
    return word


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
