"""The load client against servers without a model, and beside perf_analyzer and AIPerf.

    python benchmarks/load.py client [--before DIR]
    python benchmarks/load.py peer --repository artifacts/build/NAME --perf-analyzer PATH --libraries DIR
    python benchmarks/load.py peer [--repository artifacts/build/NAME] --aiperf PATH --tokenizer DIR

client: what the client costs (CPU, flat out against stub.py, which has the real gRPC library) and adds to TTFT (at an
engine's pace, against bare.py, which stamps a response with the moments of the request's arrival and of the sending).
`--before` is another load tool's folder, measured in turns. peer: both ask the same server in turns for equal loads of
prompts that nobody asked before: a built repository's, or stub.py at an engine's pace over OpenAI's chat. The figures
of all come from their exports by one definition (rules/tools/load/measures.py).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peers
from peers import Asked, Broken, Peer
from timing import machine, table

PROJECT = Path(__file__).resolve().parents[1]
LOAD = PROJECT / "rules" / "tools" / "load"
WORDS = ("bees", "make", "honey", "while", "cache", "keeps", "keys", "values", "what", "was", "read", "of", "the")
OSL = 32  # tokens of an answer, beside others
SETTINGS: dict[str, Any] = {
    "model": "ensemble", "endpoint": "grpc", "stream": True, "fixed": True, "column": None, "size": None, "isl": 0,
    "osl": OSL, "concurrency": [1], "request_rate": [], "arrival": "poisson", "requests": 64, "seconds": None,
    "warmup": 0, "repeats": 1, "seed": 0, "timeout_s": 60.0, "processes": 1, "slo": {}, "counting": "chunks",
    "tokenizer": None, "grpc": None, "http": None, "metrics": "",
}  # fmt: skip


def main() -> None:
    """Prints what results/load-*.txt hold."""
    parser = argparse.ArgumentParser(description="the load client, alone and beside others")
    parser.add_argument("what", choices=("client", "peer"))
    parser.add_argument("--before", type=Path, help="the folder of another load tool")
    parser.add_argument("--repository", type=Path, help="a built model repository")
    parser.add_argument("--perf-analyzer", type=Path)
    parser.add_argument("--libraries", default="", help="LD_LIBRARY_PATH of perf_analyzer")
    parser.add_argument("--aiperf", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="a folder, for AIPerf")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if os.getpid() != os.getsid(0):
        os.setsid()  # the kernel shares CPU by session (sched_autogroup)
    print(machine(), flush=True)
    sys.path.insert(0, str(LOAD))
    with tempfile.TemporaryDirectory(prefix="bench_load_") as folder:
        (client if args.what == "client" else peer)(Path(folder), args)


def client(folder: Path, args: argparse.Namespace) -> None:
    """Flat out, and at the pace of an engine: 100 responses per second for each stream."""
    tools = {"now": LOAD} | ({"before": args.before} if args.before else {})
    rows: list[list[object]] = []
    paced: list[list[object]] = []
    for endpoint in ("grpc", "http"):
        for concurrency in (1, 64):
            for name, tool in tools.items():
                rows.append([name, endpoint, concurrency, *cost(folder / f"{len(rows)}", endpoint, concurrency, tool)])
            for name, figures in pace(folder, endpoint, concurrency, tools, args.rounds).items():
                paced.append([name, endpoint, concurrency, *map(statistics.median, zip(*figures, strict=True))])
    print("\nflat out\n" + table(rows, ("", "protocol", "concurrency", "responses/s", "per CPU s")))
    head = ("", "protocol", "concurrency", "responses/s", "added TTFT p50, ms", "p99, ms", "the way there p50, ms")
    print("\nat an engine's pace\n" + table(paced, head))


def cost(folder: Path, endpoint: str, concurrency: int, tool: Path) -> list[object]:
    """(responses per second, and per CPU second) of a server that answers at once."""
    with stub("stub.py") as place:
        requests = 1280 if concurrency > 1 else 320
        asked = {"endpoint": endpoint, "concurrency": [concurrency], "requests": requests, "osl": 64}
        point = ours(folder, ["x"], place | asked | {"warmup": concurrency}, tool)
    count = point["counts"]["responses"]
    return [round(count / point["seconds"]), round(count / point["client"]["cpu_seconds"])]


def pace(
    folder: Path, endpoint: str, concurrency: int, tools: dict[str, Path], rounds: int
) -> dict[str, list[list[float]]]:
    """In turns: (responses per second, added TTFT's median and p99, the median of what lies on the way there)."""
    found: dict[str, list[list[float]]] = {name: [] for name in tools}
    for number in range(rounds):
        for name, tool in list(tools.items())[:: 1 if number % 2 else -1]:
            here = folder / f"{endpoint}_{concurrency}_{number}_{name}"
            tokens, requests = (64, 4 * concurrency) if concurrency > 1 else (8, 32)
            with stub("bare.py", f"--tokens={tokens}") as place:
                asked = {"endpoint": endpoint, "concurrency": [concurrency], "requests": requests}
                point = ours(here, ["x"], place | asked | {"warmup": concurrency}, tool)
            there, back = zip(*added(here / point["folder"]), strict=True)
            late = sorted(map(sum, zip(there, back, strict=True)))
            figures = (statistics.median(late), late[int(0.99 * len(late))], statistics.median(there))
            found[name].append([round(point["counts"]["responses"] / point["seconds"]), *figures])
    return found


def added(folder: Path) -> Iterator[tuple[float, float]]:
    """What lies between client and server in each TTFT, in ms: (on the way there, on the way back)."""
    export = json.loads((folder / "profile_export.json").read_text())
    for one in export["experiments"][0]["requests"]:
        arrived, sent = map(int, one["response_outputs"][0]["text_output"].split())
        yield (arrived - one["timestamp"]) / 1e6, (one["response_timestamps"][0] - sent) / 1e6


def peer(folder: Path, args: argparse.Namespace) -> None:
    """Each of the others and we, in turns."""
    others = [peers.perf_analyzer(args.perf_analyzer, args.libraries)] if args.perf_analyzer else []
    others += [peers.aiperf(args.aiperf, args.tokenizer, "http" if args.repository else "chat")] if args.aiperf else []
    server = served(folder, args.repository) if args.repository else stub("stub.py", "--first=20", "--gap=10")
    with server as place:
        for other in others:
            for concurrency in args.concurrency:
                here = folder / f"{other.name}_{concurrency}"
                here.mkdir()
                report(other, concurrency, compared(here, other, place, concurrency, args))


def compared(
    folder: Path, other: Peer, place: dict[str, str], concurrency: int, args: argparse.Namespace
) -> list[list[dict[str, float]]]:
    """The figures of all rounds, theirs and ours."""
    found: list[list[dict[str, float]]] = [[], []]
    for number in range(args.rounds + 1):
        for which in (0, 1)[:: 1 if number % 2 else -1]:
            once = measured(folder / f"{number}_{which}", other, place, concurrency, args.requests, mine=bool(which))
            if number:  # the first round warms up
                found[which].append(once)
    return found


def measured(
    folder: Path, other: Peer, place: dict[str, str], concurrency: int, requests: int, *, mine: bool
) -> dict[str, float]:
    """The figures of one run, done again, with other prompts, as long as its export cannot be read."""
    for number in itertools.count():
        here = folder.with_name(f"{folder.name}_{number}")
        warmup = concurrency if other.warms else 0
        texts = prompts(warmup + requests, (other.name, concurrency, here.name))
        try:
            if not mine:
                here.mkdir()
                return figures(
                    other.run(here, Asked(**place, texts=texts, concurrency=concurrency, osl=OSL, warmup=warmup))
                )
            asked = {"endpoint": other.endpoint, "concurrency": [concurrency], "requests": requests, "warmup": warmup}
            point = ours(here, texts, place | asked)
            return figures(peers.requests(here / point["folder"] / "profile_export.json"))
        except Broken as error:
            print(f"again: {error}", flush=True)
    raise AssertionError


def report(other: Peer, concurrency: int, found: list[list[dict[str, float]]]) -> None:
    """Medians of the rounds, ours as a part of theirs, and the least and the largest of that in a round."""
    rows = []
    for name in found[0][0]:
        one, two = (statistics.median(figures[name] for figures in rounds) for rounds in found)
        ratios = [part(after[name], before[name]) for before, after in zip(*found, strict=True)]
        rows.append([name, one, two, part(two, one), min(ratios), max(ratios)])
    head = ("", other.name, f"doit bench, {other.endpoint}", "ratio", "least", "largest")
    print(f"\nconcurrency {concurrency}\n" + table(rows, head), flush=True)


def part(ours: float, theirs: float) -> float:
    """Infinite where theirs is 0, as the ITL of who reads an answer's chunks all at once is."""
    return ours / theirs if theirs else math.inf


def figures(times: Iterable[tuple[int, list[int]]]) -> dict[str, float]:
    """Of sendings and responses, by one definition: an answer has as many tokens as asked for."""
    import measures

    found = measures.summarise([measures.Timing(sent, heard, 1, OSL) for sent, heard in times])
    return {
        "requests/s": found["request_throughput"]["avg"],
        "TTFT p50, ms": found["time_to_first_token"]["p50"],
        "ITL p50, ms": found["inter_token_latency"]["p50"],
        "latency p50, ms": found["request_latency"]["p50"],
        "latency p99, ms": found["request_latency"]["p99"],
    }


def ours(folder: Path, texts: list[str], asked: dict[str, Any], tool: Path = LOAD) -> Any:
    """The load point of one run of the load tool."""
    folder.mkdir()
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    run = {"settings": SETTINGS | asked | {"prompts": str(file)}, "identity": {"version": 1}}
    (folder / "run.json").write_text(json.dumps(run))
    subprocess.run([sys.executable, "-I", str(tool), f"--run={folder}"], check=True, stdout=subprocess.DEVNULL)
    return json.loads((folder / "summary.json").read_text())["points"][0]


def prompts(count: int, seed: object) -> list[str]:
    """Prompts that nobody has in a KV cache yet."""
    chosen = random.Random(str(seed))
    return [" ".join(chosen.choices(WORDS, k=32)) for _ in range(count)]


@contextmanager
def stub(program: str, *pace: str) -> Iterator[dict[str, str]]:
    """Where a server without a model is: stub.py or bare.py."""
    argv = [sys.executable, str(PROJECT / "benchmarks" / program), *pace]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process, ended(process):
        assert process.stdout
        ports = json.loads(process.stdout.readline())
        yield {"grpc": f"127.0.0.1:{ports['grpc']}", "http": f"http://127.0.0.1:{ports['http']}"}


@contextmanager
def served(folder: Path, repository: Path) -> Iterator[dict[str, str]]:
    """Where a real server of a built repository is."""
    state = folder / "state.json"
    argv = [sys.executable, "-I", str(PROJECT / "rules" / "tools" / "serve.py"), f"--repository=x={repository}"]
    argv += ["--http-port=0", "--grpc-port=0", "--metrics-port=0", f"--log={folder / 'log'}", f"--state={state}"]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, start_new_session=True) as process, ended(process):
        while not state.exists() and process.poll() is None:
            time.sleep(0.1)
        ports = json.loads(state.read_text())
        yield {"grpc": f"127.0.0.1:{ports['grpc_port']}", "http": f"http://127.0.0.1:{ports['http_port']}"}


@contextmanager
def ended(process: subprocess.Popen[Any]) -> Iterator[None]:
    """Whatever happens: who leaves a Popen's `with` waits for the process."""
    try:
        yield
    finally:
        process.terminate()


if __name__ == "__main__":
    main()
