"""Served against bare: output tokens/s, CPU per token and TTFT of the five models and of the engine in process.

    python benchmarks/serving.py --engine 05b --concurrency 1 8 32

A is OpenVINO GenAI's ContinuousBatchingPipeline in this process, set up and asked as the template does; B and C are
`ensemble` and `tensorrt_llm_bls` over gRPC, behind the real server. They take turns within one run, with the same
words in another order each (B and C share an engine that reuses its KV cache: the second to ask the same text would not
compute its prompt) and a fixed number of output tokens (min_tokens = max_tokens). CPU is what all processes of the
contestant used, from /proc, without the client's; TTFT is from sending to the first text, one request at a time.
"""

from __future__ import annotations

import argparse
import os
import queue
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import engines
from clients import SILENCE_S, Direct, Served, Server
from timing import machine, table

CONTESTANTS = ("ensemble", "bls", "whole")
WORDS = (
    "bees",
    "make",
    "honey",
    "while",
    "the",
    "cache",
    "keeps",
    "keys",
    "and",
    "values",
    "of",
    "what",
    "was",
    "read",
)


@dataclass(frozen=True, kw_only=True)
class Wave:
    """What `concurrency` requests at once took: wall seconds, CPU seconds by process, output tokens."""

    wall: float
    cpu: dict[str, float]
    tokens: int

    @property
    def rate(self) -> float:
        """Output tokens per second."""
        return self.tokens / self.wall

    @property
    def cost(self) -> float:
        """CPU milliseconds per output token."""
        return sum(self.cpu.values()) * 1000 / self.tokens


def main() -> None:
    """Prints what results/serving-*.txt hold."""
    args = arguments()
    if os.getpid() != os.getsid(0):
        os.setsid()  # the kernel shares CPU by session (sched_autogroup): the server's has its own, so must ours
    with tempfile.TemporaryDirectory(prefix="bench_serving_") as folder, contestants(args, Path(folder)) as found:
        print(machine(), flush=True)
        print(f"engine   {args.engine}, {args.isl} words in, {args.osl} tokens out, medians of {args.rounds} rounds\n")
        if args.ttft:
            print(first_tokens(found, args), flush=True)
        for concurrency in args.concurrency:
            print(throughput(found, concurrency, args), flush=True)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="the served models against the bare engine")
    parser.add_argument("--engine", choices=("tiny", "05b"), default="tiny")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir(), "bench_engines"), help="kept engines")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--isl", type=int, default=32, help="words of a prompt")
    parser.add_argument("--osl", type=int, default=64, help="output tokens of each request")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ttft", type=int, default=40, help="requests for TTFT")
    parser.add_argument("--only", choices=CONTESTANTS, nargs="+", default=CONTESTANTS, help="beside the bare engine")
    return parser.parse_args()


@contextmanager
def contestants(args: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """The bare engine and the models of a server around the same files."""
    engine = engines.made(args.engine, args.work.absolute())
    models = engines.repository(engine, engine.parent / "tokenizer", folder / "repository")
    server = Server(models, folder)
    try:
        served = {
            "ensemble": Served(server, "ensemble", stream=True),
            "bls": Served(server, "tensorrt_llm_bls", stream=True),
            "whole": Served(server, "ensemble", stream=False),
        }
        yield {"bare": Direct(models), **{name: served[name] for name in args.only}}
    finally:
        server.stop()


def prompts(count: int, args: argparse.Namespace, seed: object, name: str) -> list[str]:
    """Prompts that no KV cache holds yet: the same words for every contestant, in an order of its own."""
    chosen, order = random.Random(str(seed)), random.Random(f"{seed} {name}")
    texts = [chosen.choices(WORDS, k=args.isl) for _ in range(count)]
    return [" ".join(order.sample(words, len(words))) for words in texts]


def throughput(found: dict[str, Any], concurrency: int, args: argparse.Namespace) -> str:
    """A table of the contestants; ratios are medians of the rounds' own ratios."""
    rounds = []
    for number in range(args.rounds + 1):
        rounds.append({})
        for name, one in turned(found, number):
            texts = prompts(concurrency, args, (concurrency, number), name)
            try:
                rounds[-1][name] = wave(one, texts, args.osl)
            except queue.Empty:
                print(
                    f"{name} did not answer all {concurrency} requests within {SILENCE_S} s, and is left out from here"
                )
                del found[name]
    rounds = rounds[1:]  # the first warms up
    rows = [row(name, rounds) for name in found]
    head = ("", "tokens/s", "ratio", "CPU ms/token", "ratio", "server", "engine", "pre", "post", "bls")
    return f"concurrency {concurrency}\n{table(rows, head)}\n"


def turned(found: dict[str, Any], number: int) -> list[tuple[str, Any]]:
    """The contestants from another one on in each round: who comes first warms caches for the others."""
    items = list(found.items())
    start = number % len(items)
    return items[start:] + items[:start]


def wave(one: Any, texts: list[str], osl: int) -> Wave:
    """Sends `texts` at once and waits for the last answer."""
    before, began = one.cpu(), time.perf_counter()
    tokens = one.generate(texts, osl)
    wall = time.perf_counter() - began
    assert tokens == osl * len(texts), f"{tokens} tokens came instead of {osl * len(texts)}"
    return Wave(wall=wall, tokens=tokens, cpu={name: used - before.get(name, 0.0) for name, used in one.cpu().items()})


def row(name: str, rounds: list[dict[str, Wave]]) -> list[object]:
    """One contestant: rates, and CPU milliseconds per token of each of its processes."""
    own = [one[name] for one in rounds]
    parts = ("tritonserver", "tensorrt_llm", "preprocessing", "postprocessing", "tensorrt_llm_bls")
    return [
        name,
        statistics.median(one.rate for one in own),
        statistics.median(one[name].rate / one["bare"].rate for one in rounds),
        statistics.median(one.cost for one in own),
        statistics.median(one["bare"].cost / one[name].cost for one in rounds),
        *(statistics.median(1000 * one.cpu.get(part, 0.0) / one.tokens for one in own) for part in parts),
    ]


def first_tokens(found: dict[str, Any], args: argparse.Namespace) -> str:
    """TTFT one request at a time, in turns."""
    streams = {name: one for name, one in found.items() if "whole" not in name}
    seconds: dict[str, list[float]] = {name: [] for name in streams}
    for number in range(args.ttft + 3):
        for name, one in turned(streams, number):
            (text,) = prompts(1, args, ("ttft", number), name)
            seconds[name].append(one.first_token(text))
    taken = {name: [1000 * value for value in values[3:]] for name, values in seconds.items()}
    bare = statistics.median(taken["bare"])
    rows = [
        [name, statistics.median(all_), statistics.quantiles(all_, n=100)[98], statistics.median(all_) - bare]
        for name, all_ in taken.items()
    ]
    return f"TTFT, ms, {args.ttft} requests\n" + table(rows, ("", "p50", "p99", "added p50")) + "\n"


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    main()
