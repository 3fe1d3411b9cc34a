"""The same graph for each build system: N actions in chains of four, a file each, built.

    c0/source -> c0/checkpoint -> c0/engine -> c0/build        c1/source -> ...

Ours has a models.toml in which every model is one variant; the others copy a file of one line. `lay_out` builds, and
gives the command of a no-op; `change` makes what one chain's last action depends on new.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from timing import run

PROJECT = Path(__file__).parents[1]
sys.path.insert(0, str(PROJECT))

from tests.fakes import site  # noqa: E402  the project as an installed wheel whose tools are stand-ins

STAGES = ("source", "checkpoint", "engine", "build")
DODO = 'from rules.tasks import DOIT_CONFIG, task_engines\n__all__ = ["DOIT_CONFIG", "task_engines"]\n'
TOOLCHAIN = '[toolchains.cpu]\nbackend = "openvino"\n'
MODEL = """
[models.c{number}]
source = "tiny:qwen2"
toolchain = "cpu"
precisions = [{precisions}]
shapes = [{shapes}]
"""
SETTLED_S = 2.5  # what was written in the last two seconds is looked at again: rules/freshness.py
SHAPE = "{{ batch = {batch}, isl = 256, osl = 64 }}"


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """A built graph: the folder, the command that does nothing, and how to make one action stale."""

    folder: Path
    argv: tuple[str, ...]
    change: Callable[[int], None]
    env: Mapping[str, str] | None = None


def spec(variants: int, per_model: int) -> str:
    """A models.toml with this many variants; `per_model` of them share a source and up to four checkpoints."""
    precisions = min(4, max(1, per_model // 8))
    names = ", ".join(f'"{name}"' for name in ("fp32", "fp16", "int8_wo", "int4_wo")[:precisions])
    shapes = ", ".join(SHAPE.format(batch=batch + 1) for batch in range(per_model // precisions))
    models = (MODEL.format(number=n, precisions=names, shapes=shapes) for n in range(variants // per_model))
    return TOOLCHAIN + "".join(models)


def ours(folder: Path, variants: int, per_model: int = 1, outputs: str = "one") -> Contestant:
    """Our build system with this many variants, everything built but the smoke tests' run."""
    folder.mkdir(parents=True)
    (folder / "dodo.py").write_text(DODO)
    text = spec(variants, per_model)
    (folder / "models.toml").write_text(text)
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(site(folder / "site"))}
    run([sys.executable, str(PROJECT / "benchmarks/built.py"), outputs], folder, env)
    argv = (sys.executable, "-m", "doit", "build")
    run(argv, folder, env)
    time.sleep(SETTLED_S)
    run(argv, folder, env)

    def change(number: int) -> None:
        serving = f"serving = {{ max_queue_size = {number + 1} }}\n"
        head, mark, rest = text.partition("[models.c1]\n")
        (folder / "models.toml").write_text(head + mark + serving + rest)

    return Contestant(folder=folder, argv=argv, change=change, env=env)


PLAIN = """
DOIT_CONFIG = {{"dep_file": ".doit.db", "backend": "json", "default_tasks": ["build"]}}
STAGES = {stages}

def copy(source, target):
    with open(source) as file, open(target, "w") as made:
        made.write(file.read())

def chain(stage):
    yield {{"basename": stage, "name": None, "doc": "a stage"}}
    before = STAGES[STAGES.index(stage) - 1] if stage != "source" else "input"
    for n in range({chains}):
        source, target = f"{{before}}/c{{n}}", f"{{stage}}/c{{n}}"
        yield {{"basename": stage, "name": f"c{{n}}", "actions": [(copy, [source, target])],
               "file_dep": [source], "targets": [target]}}

def task_all():
    for stage in STAGES:
        yield from chain(stage)
"""


def _inputs(folder: Path, chains: int) -> Callable[[int], None]:
    for stage in ("input", *STAGES):
        (folder / stage).mkdir(parents=True)
    for n in range(chains):
        (folder / f"input/c{n}").write_text(f"{n}\n")
    return lambda number: touched(folder / "engine/c1", f"1 {number}\n")


def touched(path: Path, text: str) -> None:
    """Writes the input of one last action."""
    path.write_text(text)


def plain(folder: Path, chains: int) -> Contestant:
    """Plain doit: the same numbers of tasks, dependencies and targets, smoke tests too."""
    change = _inputs(folder, chains)
    (folder / "smoke").mkdir()
    (folder / "dodo.py").write_text(PLAIN.format(stages=(*STAGES, "smoke"), chains=chains))
    argv = (sys.executable, "-m", "doit", "build")
    run(argv, folder)
    return Contestant(folder=folder, argv=argv, change=change)


def ninja(folder: Path, chains: int) -> Contestant:
    """Ninja, with a log of commands that ran."""
    change = _inputs(folder, chains)
    pairs = list(zip(("input", *STAGES[:-1]), STAGES, strict=True))
    rules = [f"build {stage}/c{n}: copy {before}/c{n}" for n in range(chains) for before, stage in pairs]
    (folder / "build.ninja").write_text("\n".join(["rule copy", "  command = cp $in $out", *rules, ""]))
    run(["ninja", "-j2", "--quiet"], folder)
    return Contestant(folder=folder, argv=("ninja", "--quiet"), change=change)


def make(folder: Path, chains: int) -> Contestant:
    """GNU make, which keeps no state but times."""
    change = _inputs(folder, chains)
    pairs = list(zip(("input", *STAGES[:-1]), STAGES, strict=True))
    rules = [f"{stage}/c{n}: {before}/c{n}\n\tcp $< $@" for n in range(chains) for before, stage in pairs]
    everything = "all: " + " ".join(f"build/c{n}" for n in range(chains))
    (folder / "Makefile").write_text("\n".join([everything, *rules, ""]))
    run(["make", "-j2", "-s"], folder)
    return Contestant(folder=folder, argv=("make", "-s"), change=change)


SNAKEFILE = """
rule all:
    input: expand("build/c{{n}}", n=range({chains}))
"""
SNAKE_RULE = """
rule {stage}:
    input: "{before}/{{n}}"
    output: "{stage}/{{n}}"
    shell: "cp {{input}} {{output}}"
"""


def snakemake(folder: Path, chains: int, program: str) -> Contestant:
    """Snakemake; --touch stands in for the first run, which takes 20 ms an action."""
    change = _inputs(folder, chains)
    pairs = zip(("input", *STAGES[:-1]), STAGES, strict=True)
    rules = (SNAKE_RULE.format(before=before, stage=stage) for before, stage in pairs)
    (folder / "Snakefile").write_text(SNAKEFILE.format(chains=chains) + "".join(rules))
    for stage in STAGES:
        for n in range(chains):
            (folder / f"{stage}/c{n}").write_text(f"{n}\n")
    run([program, "--touch", "--cores", "1", "--quiet"], folder)
    return Contestant(folder=folder, argv=(program, "--cores", "1", "--quiet"), change=change)


def dvc(folder: Path, chains: int, program: str) -> Contestant:
    """DVC without a git repository; `commit` stands in for the first run."""
    change = _inputs(folder, chains)
    lines = ["stages:"]
    for before, stage in zip(("input", *STAGES[:-1]), STAGES, strict=True):
        for n in range(chains):
            one = f"    cmd: cp {before}/c{n} {stage}/c{n}\n    deps: [{before}/c{n}]\n    outs: [{stage}/c{n}]"
            lines += [f"  {stage}_{n}:", one]
            (folder / f"{stage}/c{n}").write_text(f"{n}\n")
    (folder / "dvc.yaml").write_text("\n".join([*lines, ""]))
    run([program, "init", "--no-scm", "--quiet"], folder)
    run([program, "config", "core.analytics", "false"], folder)
    run([program, "commit", "--force", "--quiet"], folder)
    return Contestant(folder=folder, argv=(program, "repro", "--quiet"), change=change)
