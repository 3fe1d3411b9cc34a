"""Other people's load clients, asked for the same load as ours: perf_analyzer over gRPC, AIPerf over HTTP.

What they export is read as timings, so that the figures of all come from one definition (rules/tools/load/measures.py).
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Asked", "Broken", "Peer", "Times", "aiperf", "perf_analyzer", "records", "requests"]

LIMIT_S = 300  # of one run
TEMPLATE = (  # of generate_stream, for AIPerf
    '{"text_input": {{ text|tojson }}, "max_tokens": %d, "min_tokens": %d, "stream": true, '
    '"exclude_input_in_output": true}'
)
Times = list[tuple[int, list[int]]]  # of each request: its sending, its responses, in ns


class Broken(Exception):
    """A run whose export cannot be read: to be done again, with other prompts.

    perf_analyzer 2.50 reads outputs that a response does not have (log-probs that nobody asked for) from anywhere in
    memory; where one is no number (inferred) its JSON writer stops in the middle, and the exit status is 0.
    """


@dataclass(frozen=True)
class Asked:
    """One load: prompts whose answers have `osl` tokens, so many at once; the first `warmup` do not count."""

    grpc: str
    http: str
    texts: list[str]
    concurrency: int
    osl: int
    warmup: int


@dataclass(frozen=True)
class Peer:
    """A client, how we ask for the same (`endpoint`), whether it can warm up, and what runs it."""

    name: str
    endpoint: str
    warms: bool
    run: Callable[[Path, Asked], Times]


def perf_analyzer(program: Path, libraries: str) -> Peer:
    """The C++ one, over ModelStreamInfer; `libraries` is its LD_LIBRARY_PATH."""

    def run(folder: Path, asked: Asked) -> Times:
        inputs = {
            "max_tokens": [asked.osl],
            "min_tokens": [asked.osl],
            "stream": [True],
            "exclude_input_in_output": [True],
        }
        data = {"data": [{"text_input": [text], **inputs} for text in asked.texts]}
        (folder / "in.json").write_text(json.dumps(data))
        argv = [str(program), "-m", "ensemble", "-u", asked.grpc, "-i", "grpc", "--async", "--streaming", "-b", "1"]
        argv += [f"--input-data={folder / 'in.json'}", "--service-kind=triton"]
        argv += [f"--concurrency-range={asked.concurrency}", f"--request-count={len(asked.texts)}"]
        execute([*argv, f"--profile-export-file={folder / 'export.json'}"], folder, {"LD_LIBRARY_PATH": libraries})
        try:
            return list(requests(folder / "export.json"))
        except json.JSONDecodeError as error:
            raise Broken(f"perf_analyzer's export breaks off: {error}") from error

    return Peer("perf_analyzer", "grpc", warms=False, run=run)


def aiperf(program: Path, tokenizer: Path, endpoint: str) -> Peer:
    """OpenAI's chat by its own endpoint type, Triton's generate_stream (`http`) by a template; tokens are counted."""

    def run(folder: Path, asked: Asked) -> Times:
        (folder / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in asked.texts))
        argv = [str(program), "profile", "-m", "ensemble", "--url", asked.http, "--streaming", "--ui", "none"]
        argv += [f"--input-file={folder / 'in.jsonl'}", "--custom-dataset-type=single_turn"]
        argv += ["--dataset-sampling-strategy=sequential", "--no-gpu-telemetry", "--no-server-metrics"]
        argv += [f"--concurrency={asked.concurrency}", f"--warmup-request-count={asked.warmup}"]
        argv += [f"--request-count={len(asked.texts) - asked.warmup}"]
        argv += [f"--tokenizer={tokenizer}", f"--artifact-dir={folder}", "--workers-max=1"]
        if endpoint == "chat":
            argv += ["--endpoint-type=chat", "--extra-inputs", f"max_tokens:{asked.osl}"]
        else:
            template = folder / "template.json"
            template.write_text(TEMPLATE % (asked.osl, asked.osl))
            argv += ["--endpoint-type=template", "--custom-endpoint=/v2/models/ensemble/generate_stream"]
            argv += ["--extra-inputs", f"payload_template:{template}", "--extra-inputs", "response_field:text_output"]
        execute(argv, folder, {"HOME": str(folder)})
        return list(records(folder / "profile_export.jsonl"))

    return Peer("AIPerf", endpoint, warms=True, run=run)


def requests(export: Path) -> Iterator[tuple[int, list[int]]]:
    """perf_analyzer's, and ours in its shape."""
    for one in json.loads(export.read_text())["experiments"][0]["requests"]:
        yield one["timestamp"], one["response_timestamps"]


def records(path: Path) -> Iterator[tuple[int, list[int]]]:
    """AIPerf's records as moments: its first token and its chunks, set down one after the other."""
    for line in path.read_text().splitlines():
        record: dict[str, Any] = json.loads(line)
        if record["metadata"]["benchmark_phase"] != "profiling":
            continue
        sent, found = record["metadata"]["request_start_ns"], record["metrics"]
        gaps = [found["time_to_first_token"]["value"], *found["inter_chunk_latency"]["value"]]
        yield sent, [sent + round(late * 1e6) for late in itertools.accumulate(gaps)]


def execute(argv: list[str], folder: Path, env: dict[str, str]) -> None:
    """Runs a client; what it says is told when it fails, or does not end."""
    log = folder / "said.txt"
    try:
        with log.open("wb") as said:
            subprocess.run(
                argv, check=True, env=os.environ | env, stdout=said, stderr=subprocess.STDOUT, timeout=LIMIT_S
            )
    except subprocess.SubprocessError as error:
        raise SystemExit(f"{error}\n{log.read_text(errors='replace')[-3000:]}") from error
