"""A load point in the files of the tools that people already read: AIPerf, perf_analyzer and GenAI-Perf.

Shapes as their sources have them: AIPerf's record of `profile_export.jsonl`, perf_analyzer's `profile_export.json` of
the service kind `triton`, and GenAI-Perf 0.0.16's JSON and CSV (its numbers have thousands separators and two
decimals).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measures import Metrics, Timing, good, unit

ROWS = (
    ("time_to_first_token", "Time To First Token (ms)"),
    ("time_to_second_token", "Time To Second Token (ms)"),
    ("request_latency", "Request Latency (ms)"),
    ("inter_token_latency", "Inter Token Latency (ms)"),
    ("output_token_throughput_per_user", "Output Token Throughput Per User (tokens/sec/user)"),
    ("output_sequence_length", "Output Sequence Length (tokens)"),
    ("input_sequence_length", "Input Sequence Length (tokens)"),
)
SYSTEM = (
    ("output_token_throughput", "Output Token Throughput (tokens/sec)"),
    ("request_throughput", "Request Throughput (per sec)"),
    ("request_goodput", "Request Goodput (per sec)"),
    ("request_count", "Request Count (count)"),
)
STATISTICS = ("avg", "min", "max", "p99", "p95", "p90", "p75", "p50", "p25", "p10", "p5", "p1")
STREAMED_ONLY = {ROWS[0][0], ROWS[1][0], ROWS[3][0], ROWS[4][0]}
_OURS = ("time_per_output_token", "inter_chunk_latency", "input_token_throughput")  # GenAI-Perf knows no such rows

Json = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """One request with what was asked and said; `prompt` is its number in the prompt list.

    `counted` says who counted its output tokens: tokenizer, server, or chunks (a response is taken for a token).
    `server_input_tokens` are the prompt's with its chat template, where the server says so.
    """

    timing: Timing
    prompt: int
    inputs: Json
    texts: Sequence[str]
    expected: str | None
    message: str
    code: int | None
    finish: str | None
    worker: int
    counted: str
    server_input_tokens: int | None = None

    @property
    def text(self) -> str:
        """The whole answer."""
        return "".join(self.texts)


def records(answers: Iterable[Answer], wall: int, slo: Mapping[str, float]) -> Iterator[Json]:
    """AIPerf's records, in order; `wall` is what has to be added to a monotonic time to give Unix nanoseconds."""
    for number, one in enumerate(answers):
        timing = one.timing
        end = timing.times[-1] if timing.times else timing.sent
        metadata = {
            "session_num": number,
            "x_request_id": f"request-{number}",
            "conversation_id": f"prompt-{one.prompt}",
            "turn_index": 0,
            "request_start_ns": timing.sent + wall,
            "request_ack_ns": None,
            "request_end_ns": end + wall,
            "worker_id": str(one.worker),
            "record_processor_id": "0",
            "benchmark_phase": "profiling",
            "was_cancelled": timing.cancelled,
            "cancellation_time_ns": None,
        }
        values = {name: {"value": value, "unit": unit(name)} for name, value in timing.values.items()}
        failure = {"code": one.code, "type": timing.error, "message": one.message} if timing.error else None
        met = good(timing, slo) if slo else None
        own = {"prompt": one.prompt, "text_input": one.inputs.get("text_input"), "text": one.text}
        own |= {"expected": one.expected, "good": met, "finish": one.finish}
        yield {"metadata": metadata, "metrics": values, "error": failure, "engines": own}


def perf_analyzer(answers: Iterable[Answer], mode: str, value: float, wall: int) -> Json:
    """perf_analyzer's profile export: what GenAI-Perf computes from. Requests without an answer are left out."""
    requests: list[Json] = [
        {
            "timestamp": one.timing.sent + wall,
            "request_inputs": one.inputs,
            "response_timestamps": [time + wall for time in one.timing.times],
            "response_outputs": [{"text_output": text} for text in one.texts],
        }
        for one in answers
        if one.timing.usable
    ]
    times = [moment for one in requests for moment in (one["timestamp"], *one["response_timestamps"])]
    experiment = {
        "experiment": {"mode": mode, "value": value},
        "requests": requests,
        "window_boundaries": [min(times), max(times)] if times else [],
    }
    return {"service_kind": "triton", "endpoint": "", "version": "", "experiments": [experiment]}


def genai_perf(found: Metrics, settings: Json) -> Json:
    """GenAI-Perf's summary: its metrics at the top level, then what was asked for."""
    return {**{name: value for name, value in found.items() if name not in _OURS}, "input_config": settings}


def genai_perf_csv(path: Path, found: Metrics, *, streamed: bool) -> None:
    """GenAI-Perf's table: a row per metric of requests, an empty line, and the metrics of the whole."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("Metric", *STATISTICS))
        for name, title in ROWS:
            if streamed or name not in STREAMED_ONLY:
                writer.writerow((title, *(_cell(found, name, of) for of in STATISTICS)))
        writer.writerow(())
        writer.writerow(("Metric", "Value"))
        for name, title in SYSTEM:
            if name in found or name != "request_goodput":
                writer.writerow((title, _cell(found, name, "avg")))


def write(path: Path, data: Json) -> None:
    """Compact: an export of 10,000 streams is large enough."""
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")


def _cell(found: Metrics, name: str, of: str) -> str:
    return f"{found[name][of]:,.2f}" if name in found else "N/A"
