"""Serve one model repository of a TensorRT-LLM engine as serve.py does one of the embedded lane.

    serve_engine.py --repository NAME=DIR --log FILE --state FILE [--host H] [--http-port N ...]

ENGINES_SERVER is the command that starts the server, as JSON; repository and ports in it are replaced. ENGINES_LAUNCHER
is launch.py, which this becomes: it finds ports where 0 is asked for, waits until all is ready, as long as
ENGINES_LOAD_SECONDS if that is there, and leaves nothing behind. They come with the action that runs this, inside the
toolchain, so only the standard library is used.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

ROOT = "/repository"  # where the repository's configs say that it is
PORT = re.compile(r"--(http|grpc|metrics)-port=\d+")


class Refused(Exception):
    """Something the user can mend: one message."""


def world_size(engine: Path) -> int:
    """The ranks that the engine's config.json says and whose files are there."""
    try:
        size = int(
            json.loads((engine / "config.json").read_text("utf-8"))["pretrained_config"]["mapping"]["world_size"]
        )
    except (OSError, ValueError, LookupError, TypeError) as reason:
        raise Refused(f"error: the engine's config.json cannot be read\n    reason  {reason!r}") from None
    lost = [f"rank{rank}.engine" for rank in range(size) if not (engine / f"rank{rank}.engine").is_file()]
    if lost:
        raise Refused(f"error: the engine has not all of its ranks\n    missing  {', '.join(lost)}")
    return size


def server(args: argparse.Namespace, command: list[str]) -> dict[str, Any]:
    """What the launcher is told: the command with this repository and these ports."""
    name, _, source = args.repository.partition("=")
    ranks, there = command.count("-n"), world_size(Path(source, "tensorrt_llm/1/engine"))
    if ranks != there:
        raise Refused(f"error: the engine has another world size\n    engine   {there}\n    command  {ranks} ranks")
    ports = {"http": args.http_port, "grpc": args.grpc_port, "metrics": args.metrics_port}
    folder = Path(f"{args.log}.files")
    target = str(folder / "repository")
    return {
        "name": name,
        "argv": [filled(word, target, ports) for word in command],
        "env": {},
        "host": args.host,
        "ports": ports,
        "models": sorted(path.parent.name for path in Path(source).glob("*/config.pbtxt")),
        "log": str(args.log),
        "folder": str(folder),
        "repositories": {name: source},
        "prefix": next((word.rpartition("=")[2] for word in command if "shm-region-prefix-name" in word), "")[:-2],
        "layout": {"target": target, "seen": target, "root": ROOT, "sources": {name: source}, "devices": {}},
    }


def filled(word: str, repository: str, ports: dict[str, int]) -> str:
    """An argument with the place of the repository and its port, or the word for one that the launcher finds."""
    if word.startswith("--model-repository="):
        return f"--model-repository={repository}"
    found = PORT.fullmatch(word)
    return f"--{found[1]}-port={ports[found[1]] or '{' + found[1] + '}'}" if found else word


def main() -> None:
    """Becomes the launcher; exit 1 with one message when the repository is not what the command is for."""
    args = arguments()
    try:
        text = json.dumps(server(args, json.loads(os.environ["ENGINES_SERVER"])))
    except Refused as refusal:
        sys.exit(str(refusal))
    limit = [f"--load-seconds={of}" for of in filter(None, [os.environ.get("ENGINES_LOAD_SECONDS")])]
    argv = [sys.executable, "-I", os.environ["ENGINES_LAUNCHER"], f"--server={text}", *limit, f"--state={args.state}"]
    os.execv(argv[0], argv)  # noqa: S606


def arguments() -> argparse.Namespace:
    """serve.py's command line, of one repository."""
    parser = argparse.ArgumentParser(description="serve the repository of an engine until SIGINT or SIGTERM")
    parser.add_argument("--repository", required=True, metavar="NAME=DIR")
    parser.add_argument("--host", default="127.0.0.1")
    for purpose, port in (("http", 8000), ("grpc", 8001), ("metrics", 8002)):
        parser.add_argument(f"--{purpose}-port", type=int, default=port, metavar="N", help="0: a free one")
    for name in ("--log", "--state"):
        parser.add_argument(name, type=lambda text: Path(text).absolute(), required=True, metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
