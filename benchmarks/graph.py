"""No-op and one-change time of graphs of N actions, ours against others; and of N variants.

    python benchmarks/graph.py actions 100 1000 10000 --peers doit ninja make
    python benchmarks/graph.py actions 1000 --peers snakemake=/path/to/snakemake dvc=/path/to/dvc
    python benchmarks/graph.py variants 10 1000 10000

`actions` are chains of four with a file each (chains.py): ours has a model per chain, so N / 4 variants and, not
selected, N / 4 smoke tests, which plain doit's graph has too. `variants` are models of up to 100 variants, with as
many files in each output as the embedded lane makes; with `--outputs one` a single file, since 10,000 variants would
be half a million. One change: an input of one last action (ours: an option of one model). Contestants take turns; CPU
is user + system of the whole command.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import chains
from chains import Contestant
from timing import Run, alternate, machine, median, run, table

HEAD = ("", "what", "wall s", "CPU s", "peak MB")


def main() -> None:
    """Prints what results/graph-*.txt hold."""
    parser = argparse.ArgumentParser(description="no-op and one change")
    parser.add_argument("what", choices=("actions", "variants"))
    parser.add_argument("sizes", type=int, nargs="+")
    parser.add_argument("--peers", nargs="*", default=["doit"], metavar="NAME[=PROGRAM]")
    parser.add_argument("--outputs", choices=("real", "one"), default="real", help="files of each action of variants")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print(machine(), f"medians of {args.rounds} rounds\n", sep="\n")
    for size in args.sizes:
        with tempfile.TemporaryDirectory(prefix="bench_graph_") as folder:
            measure = actions if args.what == "actions" else variants
            print(f"{size} {args.what}\n{measure(Path(folder), size, args)}\n", flush=True)


def actions(folder: Path, size: int, args: argparse.Namespace) -> str:
    """Ours and the peers, no-op and one change."""
    found = {"ours": chains.ours(folder / "ours", size // 4)}
    for peer in args.peers:
        name, _, program = peer.partition("=")
        extra = (str(Path(program).absolute()),) if program else ()
        found[name] = getattr(chains, "plain" if name == "doit" else name)(folder / name, size // 4, *extra)
    idle = alternate({name: no_op(one) for name, one in found.items()}, args.rounds)
    busy = alternate({name: one_change(one) for name, one in found.items()}, args.rounds)
    rows = [*told(idle, "no-op"), *told(busy, "one change")]
    if "doit" not in found:
        return table(rows, HEAD)
    ratio = median(idle["ours"]).cpu / median(idle["doit"]).cpu
    return f"{table(rows, HEAD)}\nno-op, ours / doit: {ratio:.2f} of CPU"


def variants(folder: Path, size: int, args: argparse.Namespace) -> str:
    """`doit list`, `doit list --all` and a no-op `doit build` of real outputs."""
    one = chains.ours(folder / "ours", size, per_model=min(size, 100), outputs=args.outputs)
    python = (sys.executable, "-m", "doit")
    commands = {"list": (*python, "list"), "build, no-op": one.argv}
    found = alternate({name: no_op(one, argv) for name, argv in commands.items()}, args.rounds)
    return table([row for name, runs in found.items() for row in told({"ours": runs}, name)], HEAD)


def no_op(one: Contestant, argv: tuple[str, ...] | None = None) -> Callable[[], Run]:
    """The command, with nothing to do."""
    return lambda: run(argv or one.argv, one.folder, one.env)


def one_change(one: Contestant) -> Callable[[], Run]:
    """The command after a change that makes one action stale; the change is not timed."""
    numbers = itertools.count(1)

    def once() -> Run:
        one.change(next(numbers))
        return run(one.argv, one.folder, one.env)

    return once


def told(found: dict[str, list[Run]], what: str) -> list[list[object]]:
    """A row per contestant."""
    return [[name, what, one.wall, one.cpu, one.peak_mb] for name, runs in found.items() for one in (median(runs),)]


if __name__ == "__main__":
    main()
