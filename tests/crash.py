"""Kills doit with SIGKILL at random moments and looks at what is left.

    python -m tests.crash --rounds 500 [--seed 1]

After every kill each result in the store must be whole, and a build that is let run must make exactly what a build in a
clean folder makes.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from rules import digest
from rules.store import Store
from tests.fakes import site
from tests.serving import until
from tests.space import SPEC, Space

_STAGES = ("source", "checkpoint", "engine", "build", "smoke")
_TARGET = "smoke"
_SHAPES = (64, 65, 66)


@dataclass
class Torture:
    """A workspace that is built, killed and looked at; `made` is what a clean build of each osl makes."""

    space: Space
    chance: random.Random
    made: dict[int, dict[str, str]] = field(default_factory=dict)
    longest_s: float = 0.0  # of a clean build here and now; then as long that most builds are killed while they run
    killed_while_running: int = 0

    def round(self) -> None:
        """One kill at a random moment, after a random disturbance."""
        self._disturb()
        process = _start(self.space)
        try:
            process.wait(self.chance.uniform(0.05, 0.8 * self.longest_s))
            self.longest_s *= 0.85
        except subprocess.TimeoutExpired:
            self.longest_s *= 1.05
            self.killed_while_running += 1
        _kill(process, self.space.site)
        lies = wrong_results(Store(self.space.root / "artifacts" / "store"))
        assert not lies, f"results that are not whole: {lies}"

    def check(self) -> None:
        """A build that is let run is right, whatever was left by the ones before."""
        osl = self._set_osl()
        self.space.build(_TARGET)
        assert outputs(self.space.root) == self.made[osl], f"osl {osl}: not what a clean build makes"

    def learn(self, folder: Path) -> None:
        """Builds each osl in a clean folder."""
        for osl in _SHAPES:
            clean = Space(_made(folder / str(osl)), self.space.site)
            clean.write("models.toml", spec(osl))
            began = time.monotonic()
            clean.build("-n", "2", _TARGET)
            self.longest_s = max(self.longest_s, time.monotonic() - began)
            self.made[osl] = outputs(clean.root)

    def _disturb(self) -> None:
        artifacts = self.space.root / "artifacts"
        what = self.chance.randrange(5)
        self._set_osl()
        if what == 0:
            shutil.rmtree(artifacts, ignore_errors=True)
        if what == 1:
            for stage in _STAGES:
                shutil.rmtree(artifacts / stage, ignore_errors=True)
        if what == 2:
            shutil.rmtree(artifacts / "store" / "results", ignore_errors=True)
        if what == 3:
            self._harm(artifacts)

    def _harm(self, artifacts: Path) -> None:
        """Writes into an output, a receipt or a record, which no memo may overlook."""
        files = [path for stage in _STAGES for path in sorted((artifacts / stage).rglob("*")) if path.is_file()]
        if files:
            path = self.chance.choice(files)
            path.chmod(0o644)
            path.write_text("harmed")

    def _set_osl(self) -> int:
        osl = self.chance.choice(_SHAPES)
        self.space.write("models.toml", spec(osl))
        return osl


def spec(osl: int) -> str:
    """models.toml with two precisions and this osl."""
    return SPEC.replace("osl = 64", f"osl = {osl}").replace('["int8_wo"]', '["int8_wo", "fp16"]')


def outputs(root: Path) -> dict[str, str]:
    """Path -> content of everything that the actions of the present models.toml made."""
    osl = next(osl for osl in _SHAPES if f"osl = {osl}" in (root / "models.toml").read_text())
    return {
        path.relative_to(root).as_posix(): path.read_text()
        for stage in _STAGES
        for path in sorted((root / "artifacts" / stage).rglob("*"))
        if path.is_file() and not path.name.endswith(".record.json")
        if "_osl" not in path.as_posix() or f"_osl{osl}_" in path.as_posix()
        if "/." not in path.as_posix()
    }


def wrong_results(store: Store) -> list[str]:
    """The keys whose results name a blob that is not there or not what it is called, read byte by byte."""
    wrong = []
    for path in (store.root / "results").glob("??/[0-9a-f]*"):
        receipt = store.receipt(path.parent.name + path.name)
        entries = receipt.entries if receipt else ()
        if receipt is None or any(
            not store.blob(e.digest).exists() or digest.of_file(store.blob(e.digest)) != e.digest for e in entries
        ):
            wrong.append(path.name)
    return wrong


def torture(folder: Path, rounds: int, seed: int) -> Torture:
    """`rounds` kills in a workspace below `folder`, with a check after every fifth."""
    made = site(folder / "site")
    patient = Torture(Space(_made(folder / "space"), made), random.Random(seed))
    patient.learn(folder / "clean")
    for count in range(1, rounds + 1):
        patient.round()
        if count % 5 == 0:
            patient.check()
    return patient


def _start(space: Space) -> subprocess.Popen[str]:
    return space.start("-n", "2", _TARGET)


def _kill(process: subprocess.Popen[str], site: Path) -> None:
    """Kills doit as the kernel would, out of memory: only doit itself; its commands find out on their own."""
    process.send_signal(signal.SIGKILL)
    process.communicate()
    _end_orphans(site)


def _end_orphans(site: Path) -> None:
    """Waits for commands that a killed doit left: they write into work folders that nobody takes results from."""
    until(lambda: not _orphans(f"{site}/rules/tools/".encode()))


def _orphans(tools: bytes) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if tools in command:
                found.append(int(entry.name))
    return found


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        patient = torture(Path(folder), args.rounds, args.seed)
    seconds = time.monotonic() - began
    print(f"{args.rounds} kills, {patient.killed_while_running} of them while it ran, all right, {seconds:.0f} s")  # noqa: T201


if __name__ == "__main__":
    main()
