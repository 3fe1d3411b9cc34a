"""`bench:X`: a served variant under load. docs/measuring.md.

An observation: nothing is looked up and nothing is cached. The load tool (rules/tools/load/) starts the server once,
measures every load point and keeps each as soon as it is there; a run that was cut short is gone on with, as long as
what is measured, how, and with what are the same.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError

from rules import digest, envelope, findings, serving, tree, verdicts
from rules.errors import Misconfigured, Problem, StepFailed
from rules.gpu import Lease
from rules.loads import Bench
from rules.lock import alone
from rules.runners import local
from rules.spec import strict_problems
from rules.variant import Variant
from rules.workspace import Workspace

__all__ = ["Asked", "Place", "Series", "compare", "elsewhere", "lines", "measure", "require", "runs"]

Heard = Callable[[str], None]
_TOOLS = Path(__file__).parent / "tools"
_TAIL_LINES = 16
_GRACE_S = 30.0  # what was measured is kept, an engine unloaded, and its server waited for
_KEY = "OPENAI_API_KEY"
_BUSY = 0.8  # of a core per client process, from where on its figures may be its own
_COLUMNS = (  # figure, what it is called, how it is written
    ("output_tokens_per_s", "output tok/s", "{:,.1f}"),
    ("input_tokens_per_s", "input tok/s", "{:,.1f}"),
    ("requests_per_s", "req/s", "{:,.2f}"),
    ("goodput_per_s", "goodput/s", "{:,.2f}"),
    ("ttft_p50_ms", "TTFT p50 ms", "{:,.1f}"),
    ("ttft_p99_ms", "p99 ms", "{:,.1f}"),
    ("itl_p50_ms", "ITL p50 ms", "{:,.2f}"),
    ("itl_p99_ms", "p99 ms", "{:,.2f}"),
    ("latency_p99_ms", "latency p99 ms", "{:,.0f}"),
)
_TEMPLATE = 64  # tokens of a chat template, at most
_SAME = ("keys", "url", "host", "cpu", "gpus", "versions", "settings")
_SCHEMES = {"grpc": "grpc", "http": "http", "https": "http"}


@dataclass(frozen=True, kw_only=True)
class Place:
    """A server that somebody else started: `grpc://host:port`, or `http(s)://...` with Triton's or OpenAI's API."""

    url: str
    endpoint: str = ""
    metrics: str = ""

    def settings(self) -> dict[str, Any]:
        """As the load tool takes it. Raises Misconfigured for another scheme."""
        parts = urlsplit(self.url)
        if parts.scheme not in _SCHEMES or not parts.hostname:
            what = f"{self.url!r} is not a URL that can be measured"
            raise Misconfigured(Problem(what=what, hint="grpc://HOST:PORT or http(s)://HOST:PORT"))
        grpc = parts.scheme == "grpc"
        endpoint = self.endpoint or _SCHEMES[parts.scheme]
        place = {"grpc": parts.netloc, "http": None} if grpc else {"grpc": None, "http": self.url.rstrip("/")}
        return {**place, "endpoint": endpoint, "metrics": self.metrics}

    def gpus(self, devices: Sequence[str]) -> list[str]:
        """Which of this machine's GPUs may be its own: all of them where it is on this machine."""
        return list(devices) if urlsplit(self.url).hostname in ("localhost", "127.0.0.1", "::1") else []


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What differs from the entry's `bench` table, where a server is that is not ours, and its tokenizer's folder."""

    changes: Mapping[str, Any] = field(default_factory=dict)
    place: Place | None = None
    tokenizer: Path | None = None


def measure(space: Workspace, variant: Variant, asked: Asked, heard: Heard) -> dict[str, Any]:
    """Measures every load point and judges: the summary, with the run's own `folder`. Raises StepFailed, Misconfigured.

    The variant's repository is built already, unless the server is somebody else's.
    """
    identity = _identity(space, variant, asked)
    served = None if asked.place else variant
    gpus = asked.place.gpus(space.executor.gpus().devices) if asked.place else []
    what = {"settings": identity["settings"], "identity": identity, "gpus": gpus}
    summary = _run(space, what, served, heard)
    return _gated(space, variant, asked, summary)


class Series:
    """Several variants measured one after the other. One that was cut short is gone on with: what `names` has measured
    since it began is not measured again, as long as nothing that counts has changed.
    """

    def __init__(self, space: Workspace, names: Sequence[str]) -> None:
        self._space, self._names = space, list(names)
        self._path = space.executor.artifacts.root / "bench" / "series.json"

    def measure(self, variant: Variant, asked: Asked, heard: Heard) -> dict[str, Any]:
        """As `measure`, or what is there already."""
        with alone(self._path.with_suffix(".lock"), f"bench:{variant.name}", heard):
            done = self._done()
            summary = self._again(done.get(variant.name), variant, asked)
            if summary is None:
                summary = measure(self._space, variant, asked, heard)
            done[variant.name] = summary["folder"]
            left = {name.partition(":")[2] for name in self._names} - set(done)
            tree.write(self._path, json.dumps({"names": self._names, "done": done} if left else {}) + "\n")
        return summary

    def _done(self) -> dict[str, str]:
        try:
            kept = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return dict(kept["done"]) if kept.get("names") == self._names else {}

    def _again(self, folder: str | None, variant: Variant, asked: Asked) -> dict[str, Any] | None:
        """The run in `folder`, judged as of now, if it says what a new one would."""
        mine = runs(self._space, variant.name) if folder else []
        found = next((run for run in mine if run.folder == Path(str(folder))), None)
        if found is None or not found.summary["finished"]:
            return None
        identity = _identity(self._space, variant, asked)
        if any(found.summary.get(name) != identity.get(name) for name in _SAME):
            return None
        return _gated(self._space, variant, asked, {**found.summary, "folder": str(found.folder)})


def elsewhere(space: Workspace, asked: Asked, heard: Heard) -> dict[str, Any]:
    """Measures a server that is none of our variants, as `measure` does."""
    assert asked.place, "BUG: elsewhere is at a URL"
    table = _changed(Bench(), asked.changes, "--")
    if table.isl is None or table.osl is None:
        raise Misconfigured(Problem(what="how long are prompts and answers?", hint="--isl N --osl N"))
    settings = _common(table, table.isl, table.osl, table.stream is not False) | asked.place.settings()
    settings["tokenizer"] = str(asked.tokenizer.absolute()) if asked.tokenizer else None
    parts = urlsplit(asked.place.url)
    name = f"url_{parts.hostname}_{parts.port or 80}_{table.model.replace('/', '_')}"
    identity = envelope.unknown(space, name, "bench", settings) | {"url": asked.place.url}
    identity["versions"]["client"] = _client()
    gpus = asked.place.gpus(space.executor.gpus().devices)
    what = {"settings": settings, "identity": identity, "gpus": gpus}
    return _judged(_run(space, what, None, heard), [])


def compare(summary: dict[str, Any], before: Mapping[str, Any], tolerance: float) -> dict[str, Any]:
    """The summary with its verdicts against the baseline `before` added."""
    return _judged(summary, [*summary["gates"], *verdicts.against(summary, before, tolerance)])


def require(summary: Mapping[str, Any]) -> None:
    """Raises StepFailed with a line per gate that does not hold, and when no request at all was answered."""
    wrong = [gate["text"] for gate in summary["gates"] if not gate["holds"]]
    facts = (*(("", line) for line in wrong), ("run", str(summary["folder"])))
    if wrong:
        what = f"bench:{summary['variant']} breaks {len(wrong)} of {len(summary['gates'])} gates"
        raise StepFailed(Problem(what=what, facts=facts))
    silent = [point for point in summary["points"] if not point["counts"]["ok"]]
    if silent:
        kinds = (
            *((kind, str(count)) for kind, count in silent[0]["errors"].items()),
            ("the first", silent[0].get("error_message", "")),
        )
        what = f"bench:{summary['variant']}: no request was answered at {verdicts.point_name(silent[0])}"
        raise StepFailed(Problem(what=what, facts=(*kinds, *facts)))


def runs(space: Workspace, variant: str) -> list[findings.Run]:
    """The runs of a variant, oldest first."""
    found = findings.load(space.executor.artifacts.root.absolute())
    return [run for run in found.bench if run.variant == variant]


def lines(summary: Mapping[str, Any]) -> list[str]:
    """The figures for a person: a table with a row per load point, of repeats the medians, then a line per gate."""
    loads: dict[str, list[Mapping[str, Any]]] = {}
    for point in summary["points"]:
        loads.setdefault(verdicts.point_name(point), []).append(point)
    columns = [one for one in _COLUMNS if any(one[0] in point["figures"] for point in summary["points"])]
    rows = [("load", *(title for _, title, _ in columns))]
    rows += [(name, *(_median(points, figure, form) for figure, _, form in columns)) for name, points in loads.items()]
    widths = [max(map(len, of)) for of in zip(*rows, strict=True)]
    cells = ((row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])) for row in rows)
    notes = ["", *map(_notes, loads.values())]
    told = ["  ".join([*row, note]).rstrip() for row, note in zip(cells, notes, strict=True)]
    return [*(told if loads else ()), *map(_judged_line, summary["gates"])]


def _judged_line(gate: Mapping[str, Any]) -> str:
    return f"{'not judged' if gate['skipped'] else 'holds' if gate['holds'] else 'BROKEN'}: {gate['text']}"


def _median(points: Iterable[Mapping[str, Any]], figure: str, form: str) -> str:
    values = [point["figures"][figure] for point in points if figure in point["figures"]]
    return form.format(median(values)) if values else ""


def _notes(points: Sequence[Mapping[str, Any]]) -> str:
    """What is to be known of a load point beside its figures."""
    errors, requests = (sum(point["counts"][what] for point in points) for what in ("errors", "requests"))
    kinds = sorted({kind for point in points for kind in point["errors"]})
    busy = any(point["client"].get("busy", 0) > _BUSY for point in points)
    notes = (
        f"{len(points)} repeats" if len(points) > 1 else "",
        f"{errors} of {requests} failed ({', '.join(kinds)})" if errors else "",
        "the client itself was busy: raise processes" if busy else "",
        "partial" if any(point["partial"] for point in points) else "",
        next(filter(None, (_miscounted(point["counts"]) for point in points)), ""),
    )
    return ", ".join(filter(None, notes))


def _miscounted(counts: Mapping[str, Any]) -> str:
    """Said when server and tokenizer differ by a tenth, and by more than a chat template adds."""
    ours, theirs, requests = (counts.get(name) or 0 for name in ("input_tokens", "server_input_tokens", "ok"))
    if not ours or not theirs or 0.9 * ours <= theirs <= 1.1 * ours + _TEMPLATE * requests:
        return ""
    return f"the server counts {theirs} input tokens, the tokenizer {ours}: it is another model's"


def _identity(space: Workspace, variant: Variant, asked: Asked) -> dict[str, Any]:
    settings = _settings(space, variant, _table(variant, asked)) | (asked.place.settings() if asked.place else {})
    if asked.tokenizer:
        settings["tokenizer"] = str(asked.tokenizer.absolute())
    identity = envelope.of(space, variant, "bench", settings) | {"url": asked.place.url if asked.place else None}
    identity["versions"]["client"] = _client()
    return identity


def _table(variant: Variant, asked: Asked) -> Bench:
    return _changed(variant.entry.bench, asked.changes, f"models.{variant.model}.bench")


def _gated(space: Workspace, variant: Variant, asked: Asked, summary: dict[str, Any]) -> dict[str, Any]:
    table = _table(variant, asked)
    gates = verdicts.gated(summary, variant.entry.gates, table.gate_at)
    if table.baseline:
        gates += _committed(space.root / table.baseline.removeprefix("file:"), summary, table.tolerance)
    return _judged(summary, gates)


def _changed(table: Bench, changes: Mapping[str, Any], path: str) -> Bench:
    """The table with what was typed instead. Raises Misconfigured."""
    try:
        return Bench.model_validate({**table.model_dump(exclude_unset=True), **changes})
    except ValidationError as error:
        raise Misconfigured(strict_problems(path, error, tuple(Bench.model_fields))) from error


def _settings(space: Workspace, variant: Variant, table: Bench) -> dict[str, Any]:
    """The table in effect, with every default written out."""
    shape = variant.shape
    stream = bool(variant.entry.serving.get("streaming", True)) if table.stream is None else table.stream
    settings = _common(table, table.isl or shape.isl, table.osl or shape.osl, stream)
    if settings["prompts"]:
        settings["prompts"] = str(space.root / settings["prompts"])
    if table.concurrency is None and not table.request_rate:
        settings["concurrency"] = sorted({1, shape.batch})
    tokenizer = space.executor.artifacts.folder(f"build:{variant.name}") / "preprocessing/1/tokenizer"
    known = (tokenizer / "tokenizer.json").is_file()
    limits = {"isl_max": shape.isl, "osl_max": shape.osl, "tokenizer": str(tokenizer.absolute()) if known else None}
    return settings | limits


def _common(table: Bench, isl: int, osl: int, stream: bool) -> dict[str, Any]:  # noqa: FBT001 - a value, not a switch
    fixed = table.prompts is None if table.fixed is None else table.fixed
    given = table.model_dump(exclude={"baseline", "tolerance", "gate_at"}) | {"isl": isl, "osl": osl, "stream": stream}
    given |= {"fixed": fixed, "prompts": (table.prompts or "").removeprefix("file:") or None}
    given |= {"concurrency": table.concurrency or ([] if table.request_rate else [1])}
    given |= {"slo": table.slo.model_dump(exclude_none=True), "isl_max": None, "osl_max": None, "tokenizer": None}
    return given | {"grpc": None, "http": None, "metrics": ""}


def _run(space: Workspace, asked: dict[str, Any], served: Variant | None, heard: Heard) -> dict[str, Any]:
    """Runs the load tool on a new run, or on the one that was cut short, alone among benches.

    With `served`, that variant's server is started by the tool, on GPUs that are held meanwhile.
    """
    artifacts = space.executor.artifacts.root
    name = asked["identity"]["variant"]
    gpus = space.plan.actions[f"smoke:{served.name}"].gpus if served else 0
    serving.require_here([(name, gpus)])
    with (
        alone(artifacts / "locks" / "bench", f"bench:{name}", heard),
        space.executor.gpus().lease(gpus, heard) as lease,
    ):
        folder = (_unfinished(space, asked) or envelope.begin(artifacts, "bench", name)).absolute()
        serve = _serve(space, served, lease, folder) if served else None
        tree.write(folder / "run.json", json.dumps({**asked, "serve": serve}, indent=1) + "\n")
        env = serving.surroundings(space, served) if served else _secret()
        failure = _load(name, folder, artifacts, env, lease, heard)
    if failure:
        raise StepFailed(failure)
    return {**json.loads((folder / "summary.json").read_text(encoding="utf-8")), "folder": str(folder)}


def _serve(space: Workspace, variant: Variant, lease: Lease, folder: Path) -> dict[str, Any]:
    """What the load tool starts; its files are in the run's `folder`, with names that no other run here has now."""
    base = folder / f"bench-{os.getpid()}"
    return {
        "argv": serving.command(space, variant, lease.devices, base),
        "state": f"{base}.json",
        "gpus": list(lease.devices),
        "contained": space.plan.actions[f"engine:{variant.name}"].runner != "local",
    }


def _secret() -> dict[str, str | None]:
    """The key for a server that is not ours; our own needs none."""
    return {_KEY: os.environ[_KEY]} if _KEY in os.environ else {}


def _load(
    name: str, folder: Path, artifacts: Path, env: Mapping[str, str | None], lease: Lease, heard: Heard
) -> Problem | None:
    """The tool in a process of its own; what it printed last, when it fails."""
    tail: deque[str] = deque(maxlen=_TAIL_LINES)

    def line(text: str) -> None:
        tail.append(text)
        heard(text)

    scratch = artifacts.absolute() / "work" / f"bench-{os.getpid()}"
    scratch.mkdir(parents=True, exist_ok=True)
    command = local.Command(
        argv=[local.python(), "-I", str(_TOOLS / "load"), f"--run={folder}"],
        env=env,
        log=folder / "load.log",
        scratch=scratch,
        inherit=lease.descriptors,
        grace_s=_GRACE_S,
    )
    try:
        code = local.run(command, line)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if not code:
        return None
    facts = (("run", str(folder)), *(("", said) for said in tail))
    return Problem(
        what=f"bench:{name} failed with exit code {code}",
        facts=facts,
        hint="what was measured is kept; run it again to go on",
    )


def _unfinished(space: Workspace, asked: Mapping[str, Any]) -> Path | None:
    """The folder of the newest run, if it was cut short and measured the same thing in the same way."""
    run = next(reversed(runs(space, asked["identity"]["variant"])), None)
    if run is None or run.summary.get("finished", True):
        return None
    return run.folder if all(run.summary.get(name) == asked["identity"].get(name) for name in _SAME) else None


def _client() -> str:
    """The load tool's own version: the digest of its files."""
    files = sorted((_TOOLS / "load").glob("*.py"))
    return digest.of_text("\n".join(f"{path.name} {digest.of_file(path)}" for path in files))[:16]


def _committed(folder: Path, summary: Mapping[str, Any], tolerance: float) -> list[dict[str, Any]]:
    path = folder / f"{summary['variant']}.json"
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        return verdicts.against(summary, before, tolerance)
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise StepFailed(Problem(what=f"{path} is not a baseline", facts=(("reason", repr(error)),))) from error


def _judged(summary: dict[str, Any], gates: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Keeps the verdicts in the run's summary.json."""
    found = {**summary, "gates": list(gates)}
    kept = {name: value for name, value in found.items() if name != "folder"}
    tree.write(Path(found["folder"]) / "summary.json", json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    return found
