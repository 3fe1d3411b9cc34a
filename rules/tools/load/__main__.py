"""Measures a server under load: every load point of a run, each with its exports, and one summary.

    python -I rules/tools/load --run FOLDER

FOLDER/run.json says what is measured (`settings`), which server is started or asked, and who it is (`identity`, taken
over into the summary). `serve`, of one that is started, has `argv`; `state`, the file where that program says where it
listens once it has printed `tritonserver: ready`; and whether its processes are `contained`, which we cannot see.
Load points that FOLDER/summary.json has are not measured again. That file is written after each point, so that what was
measured is never lost: on SIGINT or SIGTERM the point that runs is kept too, marked `partial`.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import asking
import exports
import measures
import prompts
from drive import Done, Load, drive, lag
from exports import Answer
from prompts import Prompt
from watch import Watch

PR_SET_PDEATHSIG = 1  # linux/prctl.h
KEY = "OPENAI_API_KEY"

Json = dict[str, Any]


class Run:
    """One run folder: what was asked, and the summary as far as it is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        asked = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        self.settings: Json = asked["settings"]
        self.serve: Json | None = asked.get("serve")
        self.gpus: list[str] = asked.get("gpus", [])  # where a server that is not ours runs on this machine
        self.path = folder / "summary.json"
        self.summary: Json = json.loads(self.path.read_text("utf-8")) if self.path.exists() else asked["identity"]
        self.summary |= {"settings": self.settings, "finished": False}
        self.summary.setdefault("points", [])

    def left(self) -> list[tuple[str, Load]]:
        """The load points, with the names of their folders, that have not been measured whole."""
        whole = {point["name"] for point in self.summary["points"] if not point["partial"]}
        return [(name, load) for name, load in points(self.settings) if name not in whole]

    def write(self, **more: Any) -> None:
        """The summary as of now; who reads it sees all of it."""
        self.summary |= more
        draft = self.path.with_suffix(".tmp")
        draft.write_text(json.dumps(self.summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        draft.replace(self.path)


def points(settings: Json) -> Iterator[tuple[str, Load]]:
    """(name, load) of every load point and repeat, repeat by repeat, so that a slow change of the machine is seen."""
    for repeat in range(1, settings["repeats"] + 1):
        for mode in ("concurrency", "request_rate"):
            for value in settings[mode]:
                count = settings["requests"]
                if count is None and settings["seconds"] is None:
                    count = max(16, round(4 * value))
                yield (
                    f"{mode}{value:g}_{repeat}",
                    Load(
                        mode=mode,
                        value=value,
                        requests=count,
                        seconds=settings["seconds"],
                        arrival="closed" if mode == "concurrency" else settings["arrival"],
                        seed=settings["seed"] + repeat,
                        timeout=settings["timeout_s"],
                        first=settings["warmup"],
                    ),
                )


def asked_prompts(settings: Json, found: Any) -> list[Prompt]:
    """The prompts of the settings, with their tokens counted where there is a tokenizer."""
    encode = prompts.encoder(found) if found else None
    if settings["prompts"]:
        read = prompts.read(Path(settings["prompts"]), settings["osl"], settings["column"])
        made = read[: settings["size"]]
    elif encode is None:
        raise prompts.Bad("made-up prompts need the model's tokenizer\n    hint: --tokenizer DIR, or --prompts FILE")
    else:
        most = max((load.requests or 1000) for _, load in points(settings)) + settings["warmup"]
        made = prompts.synthetic(settings, min(most, settings["size"] or most), encode, found)
    if encode is None:
        return made
    return [Prompt(one.text, one.max_tokens, one.expected, len(encode(one.text))) for one in made]


class Bench:
    """A server that runs, and all that is needed to put load on it."""

    def __init__(self, run: Run, server: Json) -> None:
        self.run, self.server = run, server
        self.settings = run.settings | {name: server[name] for name in ("grpc", "http", "model")}
        found = prompts.tokenizer(Path(folder) if (folder := self.settings["tokenizer"]) else None)
        self.encode = prompts.encoder(found) if found else None
        self.prompts = asked_prompts(run.settings, found)
        self.protocol = asking.protocol(self.settings, os.environ.get(KEY, ""))
        self.bodies = [self.protocol.body(one) for one in self.prompts]
        source = f"file:{self.settings['prompts']}" if self.settings["prompts"] else "synthetic"
        expected = any(one.expected is not None for one in self.prompts)
        digest = prompts.digest(self.prompts)
        known = {"source": source, "digest": digest, "count": len(self.prompts), "expected": expected}
        run.write(prompts=known)
        inputs = [{name: [value] for name, value in self.protocol.asked(one).items()} for one in self.prompts]
        exports.write(run.folder / "inputs.json", {"data": inputs})

    def measure(self, name: str, load: Load) -> bool:
        """Warms up, measures a load point and keeps it. Returns whether a signal cut it short."""
        if self.settings["warmup"]:
            warm = Load(mode="concurrency", value=min(max(load.value, 1), 64), requests=self.settings["warmup"],
                        seconds=None, timeout=load.timeout)  # fmt: skip
            if self._drive(f"{name} warm-up", warm).interrupted:
                return True
        started, began = datetime.now(timezone.utc), time.monotonic()
        watch = Watch(self.server["metrics"], self.server["pid"], self.server["gpus"])
        done = self._drive(name, load, watch)
        seconds = time.monotonic() - began
        server, peak = watch.found(), watch.peak()
        wall = time.time_ns() - time.monotonic_ns()
        answers = [self._answer(one) for one in done.sent]
        point = self._point(answers, load, peak) | {
            "name": name,
            "folder": name,
            "repeat": int(name.rpartition("_")[2]),
            "started": started.isoformat(timespec="seconds"),
            "seconds": round(seconds, 3),
            "partial": done.interrupted or self.ended(),
            "server": server,
            "client": self._client(done, seconds),
        }
        self._keep(point, answers, load, wall)
        return done.interrupted

    def ended(self) -> bool:
        """Whether a server of ours is gone."""
        return self.server["ended"]() is not None

    def _drive(self, name: str, load: Load, watch: Watch | None = None) -> Done:
        began, of = time.monotonic(), f" of {load.requests}" if load.requests else ""

        def heard(answered: int, failed: int) -> bool:
            if watch:
                watch.look()
            errors = f", {failed} failed" if failed else ""
            say(f"{name}: {answered}{of} answered{errors}, {time.monotonic() - began:.0f} s")
            return self.ended()

        say(f"{name}: begins")
        return drive(self.protocol, self.bodies, load, self.settings["processes"], heard)

    def _answer(self, one: Any) -> Answer:
        """Reads texts off the bytes, counts tokens."""
        prompt, heard = self.prompts[one.prompt], self.protocol.hear(one)
        error = one.error or (("server: error", heard.error) if heard.error else None)
        if error is None and not heard.texts and not one.cancelled:
            error = ("empty", "an answer without text")
        tokens, counted = self._tokens(heard)
        timing = measures.Timing(
            sent=one.sent,
            times=heard.times,
            input_tokens=prompt.input_tokens if prompt.input_tokens is not None else heard.input_tokens,
            output_tokens=tokens,
            error=error[0] if error else "",
            cancelled=one.cancelled,
            streamed=self.settings["stream"],
        )
        inputs = {"text_input": prompt.text, **self.protocol.asked(prompt)}
        return Answer(
            timing=timing, prompt=one.prompt, inputs=inputs, texts=heard.texts,
            expected=prompt.expected, message=error[1] if error else "", code=one.code, finish=heard.finish,
            worker=one.worker, counted=counted, server_input_tokens=heard.input_tokens,
        )  # fmt: skip

    def _tokens(self, heard: asking.Heard) -> tuple[int | None, str]:
        """How many an answer has, and who says so."""
        if self.encode and self.settings["counting"] == "tokenizer":
            return len(self.encode("".join(heard.texts))), "tokenizer"
        if heard.output_tokens is not None:
            return heard.output_tokens, "server"
        return (len(heard.texts) if self.settings["stream"] else None), "chunks"

    def _point(self, answers: Sequence[Answer], load: Load, peak: float | None) -> Json:
        timings, slo = [one.timing for one in answers], slo_metrics(self.settings["slo"])
        found = measures.summarise(timings, slo)
        done = [one for one in timings if one.usable]
        failed = sum(bool(one.error) for one in timings)
        counts = {
            "requests": len(timings),
            "ok": len(done),
            "errors": failed,
            "cancelled": sum(one.cancelled for one in timings),
            "good": sum(measures.good(one, slo) for one in done) if slo else None,
            "responses": sum(len(one.times) for one in done),
            "input_tokens": sum(one.input_tokens or 0 for one in done),
            "output_tokens": sum(one.output_tokens or 0 for one in done),
            "server_input_tokens": sum(one.server_input_tokens or 0 for one in answers if one.timing.usable),
        }
        return {
            "load": {
                "mode": load.mode, "value": load.value, "arrival": load.arrival, "requests": load.requests,
                "seconds": load.seconds, "warmup": self.settings["warmup"],
            },
            "counts": counts,
            "errors": measures.errors(timings),
            "error_message": next((one.message for one in answers if one.timing.error), ""),
            "token_counting": next((one.counted for one in answers if one.timing.usable), "chunks"),
            "metrics": found,
            "figures": measures.figures(found, len(timings), failed, peak),
        }  # fmt: skip

    def _client(self, done: Done, seconds: float) -> Json:
        processes = self.settings["processes"]
        busy = done.cpu_seconds / seconds / processes if seconds else 0.0
        late = lag(done.sent)
        return {"cpu_seconds": round(done.cpu_seconds, 3), "processes": processes, "busy": round(busy, 3), **late}

    def _keep(self, point: Json, answers: Sequence[Answer], load: Load, wall: int) -> None:
        folder = self.run.folder / point["folder"]
        if folder.exists():  # cut short once: kept beside
            folder.rename(folder.with_name(f"{folder.name}.partial-{time.time_ns()}"))
        folder.mkdir()
        with (folder / "profile_export.jsonl").open("w", encoding="utf-8") as file:
            for row in exports.records(answers, wall, slo_metrics(self.settings["slo"])):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        exports.write(folder / "profile_export.json", exports.perf_analyzer(answers, load.mode, load.value, wall))
        summary = folder / "profile_export_genai_perf.json"
        exports.write(summary, exports.genai_perf(point["metrics"], self.settings))
        exports.genai_perf_csv(summary.with_suffix(".csv"), point["metrics"], streamed=self.settings["stream"])
        others = [one for one in self.run.summary["points"] if one["name"] != point["name"]]
        self.run.write(points=[*others, point])
        say(line(point))


def say(text: str) -> None:
    """A line for whoever started us; when they were killed, what is measured is kept all the same."""
    with contextlib.suppress(BrokenPipeError):
        print(text, flush=True)


def slo_metrics(slo: Mapping[str, float]) -> dict[str, float]:
    """`ttft_ms` and so on as the metrics they limit."""
    names = {"ttft_ms": "time_to_first_token", "itl_ms": "inter_token_latency", "latency_ms": "request_latency"}
    return {names[name]: limit for name, limit in slo.items()}


def line(point: Json) -> str:
    """A load point for a person."""
    found, counts = point["figures"], point["counts"]
    parts = [f"{counts['ok']} requests"] + ([f"{counts['errors']} failed"] if counts["errors"] else [])
    wanted = (
        ("ttft_p50_ms", "TTFT p50 {:.1f}"), ("ttft_p99_ms", "p99 {:.1f} ms"), ("itl_p50_ms", "ITL p50 {:.2f} ms"),
        ("latency_p50_ms", "latency p50 {:.0f} ms"), ("output_tokens_per_s", "{:.1f} output tokens/s"),
        ("input_tokens_per_s", "{:.1f} input tokens/s"), ("requests_per_s", "{:.2f} requests/s"),
        ("goodput_per_s", "goodput {:.2f}/s"),
    )  # fmt: skip
    parts += [text.format(found[name]) for name, text in wanted if name in found]
    return f"{point['name']}: {', '.join(parts)}{' (partial)' if point['partial'] else ''}"


@contextlib.contextmanager
def served(run: Run) -> Iterator[Json]:
    """The server: started here until the end, or the one at the URL. Raises Unasked when it does not start."""
    settings = run.settings
    if run.serve is None:
        there = {name: settings[name] for name in ("grpc", "http", "metrics", "model")}
        yield there | {"pid": 0, "gpus": run.gpus, "ended": lambda: None}
        return
    state, began = Path(run.serve["state"]), time.monotonic()
    die_too = partial(ctypes.CDLL(None).prctl, PR_SET_PDEATHSIG, signal.SIGTERM)
    argv, pipe = run.serve["argv"], subprocess.PIPE
    process = subprocess.Popen(argv, stdout=pipe, text=True, preexec_fn=die_too, start_new_session=True)  # noqa: PLW1509
    try:
        for said in process.stdout or ():
            say(said.rstrip("\n"))
            if said == "tritonserver: ready\n":
                break
        if not state.is_file():
            raise asking.Unasked("the server did not start")
        run.write(server={"gpus": run.serve["gpus"], "ready_s": round(time.monotonic() - began, 3)})
        yield listening(run, json.loads(state.read_text()), process)
    finally:
        process.terminate()
        process.wait()


def listening(run: Run, state: Json, process: subprocess.Popen[str]) -> Json:
    """Where a server of ours is asked, and whether it has `ended`."""
    host = state["host"]
    return {
        "grpc": f"{host}:{state['grpc_port']}",
        "http": f"http://{host}:{state['http_port']}",
        "metrics": f"http://{host}:{state['metrics_port']}/metrics",
        "model": run.settings["model"],
        "pid": 0 if run.serve and run.serve["contained"] else process.pid,
        "gpus": run.serve["gpus"] if run.serve else [],
        "ended": process.poll,
    }


def on_signal(_number: int, _frame: FrameType | None) -> None:
    """Ends the program once."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def sweep(run: Run) -> bool:
    """Measures what is left of a run. Returns whether a signal cut it short."""
    began = time.monotonic() - run.summary.get("seconds", 0.0)
    left = run.left()
    try:
        with served(run) as server:
            bench = Bench(run, server)
            for name, load in left:
                cut = bench.measure(name, load)
                if bench.ended():
                    raise asking.Unasked("the server ended while it was measured")
                if cut:
                    return True
        return False
    finally:
        run.write(seconds=round(time.monotonic() - began, 3), finished=not run.left())


def main() -> int:
    """Exit 1 when the server or the prompts cannot be used; 130 when a signal cut it short. What there is, is kept."""
    parser = argparse.ArgumentParser(description="Measures a server under load.")
    parser.add_argument("--run", type=lambda text: Path(text).absolute(), required=True, metavar="FOLDER")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    try:
        return 130 if sweep(Run(parser.parse_args().run)) else 0
    except (asking.Unasked, prompts.Bad) as reason:
        print(f"error: {reason}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: what was measured is kept", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
