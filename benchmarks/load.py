"""The load client against a server without a model, and beside the real perf_analyzer on a served variant.

    python benchmarks/load.py client
    python benchmarks/load.py peer --repository artifacts/build/NAME --perf-analyzer PATH --libraries DIR

client: what the client costs (CPU) and adds (TTFT): the stub stamps each response with the moments of the request's
arrival and of the sending, on the same clock. peer: both ask the same server in turns for equal loads of prompts that
nobody asked before; the figures of both come from their exports by one definition (rules/tools/load/measures.py).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from timing import machine, table

PROJECT = Path(__file__).resolve().parents[1]
LOAD = PROJECT / "rules" / "tools" / "load"
WORDS = ("bees", "make", "honey", "while", "cache", "keeps", "keys", "values", "what", "was", "read", "of", "the")
SETTINGS: dict[str, Any] = {
    "model": "ensemble", "endpoint": "grpc", "stream": True, "fixed": True, "column": None, "size": None, "isl": 0,
    "osl": 32, "concurrency": [1], "request_rate": [], "arrival": "poisson", "requests": 64, "seconds": None,
    "warmup": 0, "repeats": 1, "seed": 0, "timeout_s": 60.0, "processes": 1, "slo": {}, "counting": "server",
    "tokenizer": None, "grpc": None, "http": None, "metrics": "",
}  # fmt: skip


def main() -> None:
    """Prints what results/load-*.txt hold."""
    parser = argparse.ArgumentParser(description="the load client, alone and beside perf_analyzer")
    parser.add_argument("what", choices=("client", "peer"))
    parser.add_argument("--repository", type=Path, help="a built model repository")
    parser.add_argument("--perf-analyzer", type=Path)
    parser.add_argument("--libraries", default="", help="LD_LIBRARY_PATH of perf_analyzer")
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


def client(folder: Path, _args: argparse.Namespace) -> None:
    """Flat out, and at the pace of an engine with 64 streams: 100 responses per second each."""
    rows = []
    for pace in (("0", "0"), ("20", "10")):
        for endpoint in ("grpc", "http"):
            for concurrency in (1, 64):
                with stub(*pace) as ports:
                    rows.append(cost(folder / str(len(rows)), ports, endpoint, concurrency, pace))
    head = ("pace, ms", "protocol", "concurrency", "responses/s", "per CPU s", "added TTFT p50, ms", "p99, ms")
    print("\n" + table(rows, head))


def cost(folder: Path, ports: dict[str, int], endpoint: str, concurrency: int, pace: tuple[str, str]) -> list[object]:
    """One row."""
    place = {"grpc": f"127.0.0.1:{ports['grpc']}", "http": f"http://127.0.0.1:{ports['http']}"}
    requests = 1280 if concurrency > 1 else 320 if pace[0] == "0" else 10
    asked = {"endpoint": endpoint, "concurrency": [concurrency], "requests": requests, "osl": 64, "warmup": concurrency}
    point = ours(folder, ["x"], place | asked)
    used, seconds = point["client"]["cpu_seconds"], point["seconds"]
    rate, per_cpu = point["counts"]["responses"] / seconds, point["counts"]["responses"] / used
    late = sorted(added(folder / point["folder"]))
    p99 = late[int(0.99 * len(late))]
    return ["+".join(pace), endpoint, concurrency, round(rate), round(per_cpu), statistics.median(late), p99]


def added(folder: Path) -> Iterator[float]:
    """What lies between client and server in each TTFT, in ms: on the way there and on the way back."""
    export = json.loads((folder / "profile_export.json").read_text())
    for one in export["experiments"][0]["requests"]:
        arrived, sent = map(int, one["response_outputs"][0]["text_output"].split())
        yield (arrived - one["timestamp"] + one["response_timestamps"][0] - sent) / 1e6


def peer(folder: Path, args: argparse.Namespace) -> None:
    """perf_analyzer and we, in turns."""
    import measures

    with served(folder, args.repository) as place:
        for concurrency in args.concurrency:
            found: dict[str, list[dict[str, float]]] = {"perf_analyzer": [], "doit bench": []}
            for number in range(args.rounds + 1):
                for name, rounds in list(found.items())[:: 1 if number % 2 else -1]:
                    texts = prompts(args.requests, (concurrency, number, name))
                    here = folder / f"{concurrency}_{number}_{name.replace(' ', '_')}"
                    asked = place | {"concurrency": [concurrency], "requests": args.requests}
                    point = theirs(here, texts, asked, args) if name == "perf_analyzer" else ours(here, texts, asked)
                    export = point if name == "perf_analyzer" else here / point["folder"] / "profile_export.json"
                    if number:  # the first round warms up
                        rounds.append(figures(measures, export))
            report(concurrency, found)


def report(concurrency: int, found: dict[str, list[dict[str, float]]]) -> None:
    """Medians of the rounds, and ours as a part of theirs."""
    rows = []
    for name in next(iter(found.values()))[0]:
        one, two = (statistics.median(figures[name] for figures in rounds) for rounds in found.values())
        rows.append([name, one, two, two / one])
    print(f"\nconcurrency {concurrency}\n" + table(rows, ("", *found, "ratio")), flush=True)


def figures(measures: Any, export: Path) -> dict[str, float]:
    """Of an export, by one definition: an answer has 32 tokens, as asked."""
    data = json.loads(export.read_text())["experiments"][0]["requests"]
    timings = [measures.Timing(one["timestamp"], one["response_timestamps"], 1, SETTINGS["osl"]) for one in data]
    found = measures.summarise(timings)
    return {
        "requests/s": found["request_throughput"]["avg"],
        "TTFT p50, ms": found["time_to_first_token"]["p50"],
        "ITL p50, ms": found["inter_token_latency"]["p50"],
        "latency p50, ms": found["request_latency"]["p50"],
        "latency p99, ms": found["request_latency"]["p99"],
    }


def ours(folder: Path, texts: list[str], asked: dict[str, Any]) -> Any:
    """The load point of one run of the load tool."""
    folder.mkdir()
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    run = {"settings": SETTINGS | asked | {"prompts": str(file)}, "identity": {"version": 1}}
    (folder / "run.json").write_text(json.dumps(run))
    command = [sys.executable, "-I", str(LOAD), f"--run={folder}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads((folder / "summary.json").read_text())["points"][0]


def theirs(folder: Path, texts: list[str], asked: dict[str, Any], args: argparse.Namespace) -> Path:
    """perf_analyzer's export of the same load."""
    folder.mkdir()
    osl = SETTINGS["osl"]
    inputs = {"max_tokens": [osl], "min_tokens": [osl], "stream": [True], "exclude_input_in_output": [True]}
    data = {"data": [{"text_input": [text], **inputs} for text in texts]}
    (folder / "in.json").write_text(json.dumps(data))
    command = [str(args.perf_analyzer), "-m", "ensemble", "-u", asked["grpc"], "-i", "grpc", "--async", "--streaming"]
    command += ["-b", "1", f"--input-data={folder / 'in.json'}", "--service-kind=triton"]
    command += [f"--concurrency-range={asked['concurrency'][0]}", f"--request-count={args.requests}"]
    command += [f"--profile-export-file={folder / 'export.json'}"]
    env = {**os.environ, "LD_LIBRARY_PATH": args.libraries}
    subprocess.run(command, check=True, env=env, stdout=subprocess.DEVNULL)
    return folder / "export.json"


def prompts(count: int, seed: object) -> list[str]:
    """Prompts that nobody has in a KV cache yet."""
    chosen = random.Random(str(seed))
    return [" ".join(chosen.choices(WORDS, k=32)) for _ in range(count)]


@contextmanager
def stub(first: str, gap: str) -> Iterator[dict[str, int]]:
    """A server without a model."""
    argv = [sys.executable, str(PROJECT / "benchmarks" / "stub.py"), f"--first={first}", f"--gap={gap}"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield json.loads(process.stdout.readline())
        process.kill()


@contextmanager
def served(folder: Path, repository: Path) -> Iterator[dict[str, Any]]:
    """A real server of a built repository."""
    state = folder / "state.json"
    argv = [sys.executable, "-I", str(PROJECT / "rules" / "tools" / "serve.py"), f"--repository=x={repository}"]
    argv += ["--http-port=0", "--grpc-port=0", "--metrics-port=0", f"--log={folder / 'log'}", f"--state={state}"]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        while not state.exists() and process.poll() is None:
            time.sleep(0.1)
        ports = json.loads(state.read_text())
        yield {"grpc": f"127.0.0.1:{ports['grpc_port']}", "http": f"http://127.0.0.1:{ports['http_port']}"}
        process.terminate()


if __name__ == "__main__":
    main()
