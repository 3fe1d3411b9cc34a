"""Runs tasks of lm-evaluation-harness on a served variant. Needs an environment with `lm_eval`, and nothing of ours.

    python rules/tools/harness.py --url localhost:8000 --tasks gsm8k [--include DIR] [--limit N] [--out FILE]

Only tasks that generate: Triton's `generate` does not return the log-probabilities of a prompt's tokens, so a task that
ranks given answers is refused by name before anything is asked. Prints the scores as JSON; OUT also gets each sample.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

Json = dict[str, Any]

TIMEOUT_SECONDS = 600
SPEAK_SECONDS = 5.0
ASKED = {"temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "repetition_penalty": "repetition_penalty"}
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens")
HARMLESS = ("until", "do_sample", *LENGTHS)


class Refused(Exception):
    """Something the user can mend; its text is what they read."""


def body(context: str, wanted: Json, limit: int) -> Json:
    """The request for one instance; greedy unless `do_sample`. Raises Refused for what the server cannot be asked."""
    unknown = sorted(set(wanted) - {*ASKED, *HARMLESS})
    if unknown:
        raise Refused(f"generation_kwargs {', '.join(unknown)} cannot be asked of this server")
    length = next((wanted[name] for name in LENGTHS if name in wanted), limit)
    sampled = {ASKED[name]: wanted[name] for name in ASKED if name in wanted} if wanted.get("do_sample") else {}
    stops = {"stop_words": untils(wanted)} if untils(wanted) else {}
    asked = {"text_input": context, "max_tokens": min(int(length), limit), "exclude_input_in_output": True}
    return {**asked, **sampled, **stops}


def untils(wanted: Json) -> list[str]:
    """The strings at which an answer ends."""
    given = wanted.get("until") or []
    return [given] if isinstance(given, str) else [text for text in given if text]


def cut(text: str, stops: list[str]) -> str:
    """Up to the first of the strings; the server has cut already where it knows stop words."""
    return text[: min((place for place in map(text.find, stops) if place >= 0), default=len(text))]


def generate(url: str, model: str, asked: Json) -> str:
    """One answer. Raises Refused with what the server said instead."""
    host, _, port = url.rpartition(":")
    connection = HTTPConnection(host, int(port), timeout=TIMEOUT_SECONDS)
    try:
        connection.request("POST", f"/v2/models/{model}/generate", json.dumps(asked))
        response = connection.getresponse()
        status, text = response.status, response.read().decode("utf-8")
    except (OSError, HTTPException) as error:
        raise Refused(f"{url} does not answer\n    reason  {error}") from None
    finally:
        connection.close()
    if status != 200:
        hint = "--max-tokens and the prompt must fit the engine's shape"
        raise Refused(f"{model} answered HTTP {status}\n    reason  {text[:500]}\n    hint: {hint}")
    return str(json.loads(text)["text_output"])


def adapter(url: str, model: str, limit: int, concurrency: int) -> Any:
    """An `lm_eval.api.model.LM` of the served model."""
    from lm_eval.api.model import LM

    class Served(LM):  # type: ignore[misc]
        """Asks over HTTP; every call is of a whole task."""

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:  # noqa: ARG002, FBT001, FBT002
            """The answers, in the order of the requests."""
            with ThreadPoolExecutor(concurrency) as pool:
                return list(told(pool.map(self._answer, requests), len(requests)))

        def _answer(self, request: Any) -> str:
            context, wanted = request.args
            text = generate(url, model, body(context, wanted, limit))
            return cut(text, untils(wanted))

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            """Never: refused before."""
            raise Refused(unrankable({str(request.task_name) for request in requests}))

        loglikelihood_rolling = loglikelihood

    return Served()


def told(answers: Any, count: int) -> Any:
    """The answers as they come, with a line on stderr every few seconds."""
    spoke = time.monotonic()
    for number, answer in enumerate(answers, 1):
        if time.monotonic() - spoke > SPEAK_SECONDS or number == count:
            spoke = time.monotonic()
            print(f"  {number} of {count} answered", file=sys.stderr, flush=True)
        yield answer


def unrankable(names: set[str]) -> str:
    """What is told of tasks that do not generate."""
    what = f"{', '.join(sorted(names))}: ranks given answers, which needs the log-probabilities of a prompt's tokens"
    return f"{what}\n    hint: take a task with output_type generate_until; this server returns none for prompts"


def run(args: argparse.Namespace) -> Json:
    """The harness's results of the tasks. Raises Refused."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=args.include)
    names = args.tasks.split(",")
    try:
        tasks = manager.load(names)["tasks"]
    except (KeyError, ValueError) as error:
        raise Refused(f"tasks {args.tasks} cannot be loaded\n    reason  {error}") from None
    ranked = {name for name, task in tasks.items() if task.get_config("output_type") != "generate_until"}
    if ranked:
        raise Refused(unrankable(ranked))
    model = adapter(args.url, args.model, args.max_tokens, args.concurrency)
    found: Json = simple_evaluate(model, tasks=names, limit=args.limit, task_manager=manager, bootstrap_iters=0)
    return found


def main() -> int:
    """Exit 1 with what is wrong."""
    parser = argparse.ArgumentParser(description="lm-evaluation-harness on a served variant.")
    for name, preset in (("--url", "localhost:8000"), ("--model", "ensemble"), ("--tasks", ""), ("--include", None)):
        parser.add_argument(name, default=preset, required=name == "--tasks")
    for name, count in (("--limit", None), ("--max-tokens", 256), ("--concurrency", 8)):
        parser.add_argument(name, type=int, default=count)
    parser.add_argument("--out", type=Path, help="a JSON file for all of it")
    args = parser.parse_args()
    try:
        found = run(args)
    except Refused as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as missing:
        print(f"error: {missing.name} is not installed here\n    hint: pip install lm_eval", file=sys.stderr)
        return 1
    if args.out:
        args.out.write_text(json.dumps(found, indent=1, default=str, ensure_ascii=False), encoding="utf-8")
    print(json.dumps(found["results"], indent=1, default=str))
    return 0


if __name__ == "__main__":
    sys.exit(main())
