#!/usr/bin/env python3
"""Makes requirements.lock and requirements-dev.lock from pyproject.toml.

    .venv/bin/python scripts/lock.py [--upgrade]

Each locked Python is resolved by asking pip for one round of wheels (metadata and hashes, nothing is
installed), adding what their metadata asks for, and asking again until nothing new is named. There
is no backtracking: where two packages disagree, pip's message is the answer and a pin the cure.
Versions of the present lock are kept unless --upgrade. Hashes only: no line names an index.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import tomli
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.10", "3.11", "3.12")

# sha256 of PyTorch's CPU wheels (manylinux_2_28_x86_64), as published beside them. They are on no index
# that every pip knows, and the registry's build of the same version is the CUDA build, so pip
# cannot be asked. A Python without an entry gets a lock that is not complete. Best first: ./doitw takes them in turn.
TORCH = "2.13.0+cpu"
TORCH_HASHES = {
    "3.11": "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",
    "3.12": "4ca4a9394b0c771238a4f73590fdbbc4debad85ed0fa63d026ae1b085da7d6e2",
    # Read in a public lock, whose hashes for 3.11 and 3.12 are these: uv.lock of cdeust/Cortex at 00706b74.
    "3.10": "f5cbb61180a9793d9e12fe115a2310d2600bd449dfb9a01ec5640e21359fa5ea",
}
TORCH_REQUIRES = ("filelock", "fsspec", "jinja2", "networkx>=2.5.1", "sympy>=1.13.3", "typing-extensions>=4.10.0")

# Asked for by metadata and imported by nothing that we run.
UNUSED = {
    "torchvision": "optimum-intel: the registry has CUDA builds only, which break transformers on CPU torch",
    "nvidia-ml-py": "nvidia-modelopt: asks a GPU for its memory, where there is one",
}
# Only the files inside are used, so what its Python code would import is not followed.
FILES_ONLY = {"nvidia-pytriton"}

# What pip on glibc 2.35 accepts, best first, as pip orders it on a real machine.
PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in range(35, 16, -1)),
    *("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"),
)


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """One wheel that pip chose: canonical name, exact version, sha256 in hex, and what its metadata asks for.

    `pythons` is its Requires-Python, such as ">=3.11", or empty.
    """

    name: str
    version: str
    sha256: str
    requires: tuple[str, ...]
    pythons: str = ""


@dataclass(kw_only=True)
class Wanted:
    """All that is asked of one distribution so far."""

    specifiers: set[str] = field(default_factory=set)
    extras: set[str] = field(default_factory=set)


def directs() -> tuple[list[str], list[str]]:
    """Direct requirements of pyproject.toml: (for the main lock, for the development lock)."""
    project = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    main = project["dependencies"] + [one for extra in ("embedded", "measure", "test") for one in optional[extra]]
    return main, optional["dev"]


def locked(path: Path) -> dict[tuple[str, str], str]:
    """Versions of an existing lock by (Python, name): what a new lock prefers. Empty where there is none."""
    found: dict[tuple[str, str], str] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        pin = re.match(r'([\w.-]+)==(\S+)(?: ; python_version in "([\d. ]+)")?', line)
        if pin:
            found.update({(python, pin[1]): pin[2] for python in (pin[3] or " ".join(PYTHONS)).split()})
    return found


def environment(python: str) -> dict[str, str]:
    """Marker environment of CPython `python` on Linux x86_64."""
    return {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "os_name": "posix",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
    }


def applies(requirement: Requirement, extras: Iterable[str], python: str) -> bool:
    """Whether metadata's requirement counts for these extras on this Python."""
    marker = requirement.marker
    return marker is None or any(marker.evaluate({**environment(python), "extra": extra}) for extra in ("", *extras))


def ask(python: str, lines: list[str]) -> list[Wheel]:
    """One round: the wheels that pip would install for these lines, in their order. Exits with pip's errors.

    An index that does not tell which Pythons a wheel is for (PEP 503's data-requires-python is optional) makes pip
    choose one that it would then not install: older versions are asked for until one fits.
    """
    found = choose(python, lines)
    late = [n for n, one in enumerate(found) if not SpecifierSet(one.pythons).contains(f"{python}.99")]
    if late:
        older = ask(python, [before(found[n], Requirement(lines[n])) for n in late])
        found = [older[late.index(n)] if n in late else one for n, one in enumerate(found)]
    return found


def before(one: Wheel, asked: Requirement) -> str:
    """The line that asks for a version before this one."""
    return one.name + ",".join([f"<{one.version}", *(str(it) for it in asked.specifier if it.operator != "==")])


def choose(python: str, lines: list[str]) -> list[Wheel]:
    """What pip chooses."""
    with tempfile.TemporaryDirectory() as folder:
        asked, report = Path(folder, "asked.txt"), Path(folder, "report.json")
        asked.write_text("\n".join(lines))
        argv = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps"]
        argv += ["--only-binary=:all:", "--python-version", python, *(f"--platform={name}" for name in PLATFORMS)]
        argv += ["--target", folder, "--report", str(report), "-r", str(asked)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            errors = "\n".join(line for line in done.stderr.splitlines() if line.startswith("ERROR"))
            sys.exit(f"error: pip found no wheels for Python {python}\n{errors}\nhint: pin another version")
        found = {one.name: one for one in map(wheel, json.loads(report.read_text())["install"])}
        return [found[canonicalize_name(Requirement(line).name)] for line in lines]


def wheel(entry: dict[str, dict[str, object]]) -> Wheel:
    """A Wheel from one entry of pip's installation report (version 1)."""
    metadata = entry["metadata"]
    requires = metadata.get("requires_dist", [])
    archive = entry["download_info"]["archive_info"]
    assert isinstance(requires, list)
    assert isinstance(archive, dict)
    return Wheel(
        name=canonicalize_name(str(metadata["name"])),
        version=str(metadata["version"]),
        sha256=archive["hashes"]["sha256"],
        requires=tuple(requires),
        pythons=str(metadata.get("requires_python") or ""),
    )


def resolve(python: str, roots: Iterable[str], keep: dict[tuple[str, str], str]) -> list[Wheel]:
    """The closed set of wheels for one Python, sorted by name."""
    wanted: dict[str, Wanted] = {}
    for requirement in map(Requirement, roots):
        if applies(requirement, (), python):
            want(wanted, requirement)
    answers: dict[str, Wheel] = {}
    while True:
        before = repr(wanted)
        asked = list(lines(python, wanted, keep))
        new = [line for line in asked if line not in answers]
        answers |= dict(zip(new, ask(python, new), strict=True)) if new else {}
        wheels = [answers[line] for line in asked] + (torch_wheel(python) if "torch" in wanted else [])
        for name, requirement in asked_by(wheels, wanted, python):
            if name not in FILES_ONLY:
                want(wanted, requirement)
        if repr(wanted) == before:
            return sorted((one for one in wheels if one.sha256), key=lambda one: one.name)


def want(wanted: dict[str, Wanted], requirement: Requirement) -> None:
    """Adds what one requirement says to what is wanted."""
    name = canonicalize_name(requirement.name)
    if name not in UNUSED:
        entry = wanted.setdefault(name, Wanted())
        entry.specifiers |= {str(one) for one in requirement.specifier}
        entry.extras |= requirement.extras


def lines(python: str, wanted: dict[str, Wanted], keep: dict[tuple[str, str], str]) -> Iterator[str]:
    """Requirement lines for pip, torch left out, the kept version where the specifiers allow it."""
    for name, entry in sorted(wanted.items()):
        specifiers = ",".join(sorted(entry.specifiers))
        kept = keep.get((python, name))
        if kept and Requirement(f"{name}{specifiers}").specifier.contains(kept, prereleases=True):
            specifiers = f"=={kept}"
        if name != "torch":
            yield f"{name}{specifiers}"


def asked_by(wheels: list[Wheel], wanted: dict[str, Wanted], python: str) -> Iterator[tuple[str, Requirement]]:
    """What the metadata of these wheels asks for: (who asks, requirement)."""
    for one in wheels:
        for text in one.requires:
            requirement = Requirement(text)
            if applies(requirement, wanted[one.name].extras, python):
                yield one.name, requirement


def torch_wheel(python: str) -> list[Wheel]:
    """CPU torch. Without a known hash its sha256 is empty: its requirements are followed, itself is not locked."""
    return [Wheel(name="torch", version=TORCH, sha256=TORCH_HASHES.get(python, ""), requires=TORCH_REQUIRES)]


def text(resolved: dict[str, list[Wheel]]) -> str:
    """The lock: one entry per name and version, with a marker where not every Python has it."""
    pythons: dict[tuple[str, str], list[str]] = {}
    hashes: dict[tuple[str, str], set[str]] = {}
    for python, wheels in resolved.items():
        for one in wheels:
            pythons.setdefault((one.name, one.version), []).append(python)
            hashes.setdefault((one.name, one.version), set()).add(one.sha256)
    complete = [python for python in TORCH_HASHES if python in PYTHONS]
    out = ["# Made by scripts/lock.py from pyproject.toml. CPython on Linux x86_64, glibc 2.35 or newer."]
    out += [f"# complete for Python: {' '.join(complete)}"]
    # torch first: the largest, and the one that an index may lack, so that pip finds out at once
    for (name, version), where in sorted(pythons.items(), key=lambda item: (item[0][0] != "torch", item[0])):
        marker = "" if len(where) == len(PYTHONS) else f' ; python_version in "{" ".join(where)}"'
        out.append(
            " \\\n    ".join(
                [f"{name}=={version}{marker}", *(f"--hash=sha256:{one}" for one in sorted(hashes[name, version]))]
            )
        )
    return "\n".join(out) + "\n"


def main() -> None:
    """Writes both locks into the project's root."""
    parser = argparse.ArgumentParser(description="make requirements.lock and requirements-dev.lock")
    parser.add_argument("--upgrade", action="store_true", help="forget the versions of the present locks")
    upgrade = parser.parse_args().upgrade
    main_lock, dev_lock = ROOT / "requirements.lock", ROOT / "requirements-dev.lock"
    keep = {} if upgrade else locked(main_lock) | locked(dev_lock)
    roots, dev_roots = directs()
    main_wheels: dict[str, list[Wheel]] = {}
    dev_wheels: dict[str, list[Wheel]] = {}
    for python in PYTHONS:
        main_wheels[python] = resolve(python, roots, keep)
        here = {one.name: one.version for one in main_wheels[python]}
        keep |= {(python, name): version for name, version in here.items()}
        dev_wheels[python] = [one for one in resolve(python, dev_roots, keep) if one.name not in here]
        print(f"Python {python}: {len(here)} + {len(dev_wheels[python])} packages", flush=True)
    main_lock.write_text(text(main_wheels))
    dev_lock.write_text(text(dev_wheels))


if __name__ == "__main__":
    main()
