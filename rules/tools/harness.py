"""Runs tasks of lm-evaluation-harness on a served variant. Needs an environment with `lm_eval`, and nothing of ours.

    python rules/tools/harness.py --url localhost:8000 --tasks gsm8k,mmlu,wikitext [--max-length ISL] [--include DIR]
                                  [--limit N] [--out FILE]

Tasks that generate ask `ensemble` for text over HTTP. Tasks that rank given answers, or measure perplexity, need
log-probabilities of given text: `preprocessing` says its token ids, and the engine, `tensorrt_llm`, is sent them over
gRPC (`tritonclient`) with `return_context_logits`. What is done with the logits is the harness's definition, in
`pair`, `windows` and `scored`. Prints the scores as JSON; OUT also gets each sample.
"""

from __future__ import annotations

import argparse
import itertools
import json
import queue
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

Json = dict[str, Any]
Ids = list[int]

TIMEOUT_SECONDS = 600
SPEAK_SECONDS = 5.0
ASKED = {"temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "repetition_penalty": "repetition_penalty"}
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens")
HARMLESS = ("until", "do_sample", *LENGTHS)
GATHER = "an engine of TensorRT-LLM returns them when built so: build = { gather_context_logits = true }"
REUSED = (
    "serve it with enable_kv_cache_reuse = false: logits of tokens in the cache are left out"  # Model-Optimizer#1577
)


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


def pair(tokens: Tokens, context: str, continuation: str) -> tuple[Ids, Ids]:
    """(ids of the context, ids of the continuation), which are those that both together have beyond the context's.

    White space at the context's end belongs to the continuation. An empty context is the prefix token. Raises Refused.
    """
    bare, text = context.rstrip(), context + continuation
    if bare:
        before = tokens.ids(bare)
        after = tokens.ids(text)[len(before) :]
    else:
        before, after = [tokens.prefix], tokens.plain(text)
        after = after[1:] if after[:1] == before else after
    if not after:
        raise Refused(f"the continuation {continuation!r} has no tokens of its own")
    return before, after


def windows(ids: Ids, prefix: int, length: int) -> Iterator[tuple[Ids, Ids]]:
    """(context, continuation) pairs in which each of `ids` is continued to once, after as much as `length` ids hold.

    The engine is sent context and continuation without its last id: at most `length`.
    """
    given = [prefix, *ids]
    for start in range(0, len(ids), length):
        end = min(start + length, len(ids))
        yield given[max(end - length, 0) : start + 1], ids[start:end]


def sent(context: Ids, continuation: Ids, length: int | None) -> tuple[int, ...]:
    """The ids whose logits are wanted: the last `length` of both, without the very last. Raises Refused."""
    if length and len(continuation) > length:
        what = f"a continuation of {len(continuation)} tokens is longer than --max-length {length}"
        raise Refused(f"{what}\n    hint: take an engine with a longer isl")
    both = (*context, *continuation)[:-1]
    return both[-length:] if length else both


def scored(logits: Any, continuation: Ids) -> tuple[float, bool]:
    """(log-probability of the continuation in nats, whether greedy decoding would say it).

    `logits` is [n, vocabulary] of n ids whose last is the continuation's last but one.
    """
    import numpy as np

    rows = np.asarray(logits[-len(continuation) :], np.float64)
    highest = rows.max(-1)
    chosen = rows[np.arange(len(rows)), continuation]
    total = chosen - highest - np.log(np.exp(rows - highest[:, None]).sum(-1))
    return float(total.sum()), bool((rows.argmax(-1) == continuation).all())


def post(url: str, model: str, asked: Json, hint: str) -> Json:
    """What the model answers to `generate`. Raises Refused with what the server said instead."""
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
        raise Refused(f"{model} answered HTTP {status}\n    reason  {text[:500]}\n    hint: {hint}")
    return dict(json.loads(text))


def generate(url: str, model: str, asked: Json) -> str:
    """One answer. Raises Refused."""
    return str(post(url, model, asked, "--max-tokens and the prompt must fit the engine's shape")["text_output"])


class Tokens:
    """The served tokenizer: text to ids as `preprocessing` makes them."""

    def __init__(self, url: str, model: str, prefix: int | None) -> None:
        self._url, self._model, self._prefix = url, model, prefix
        self.ids = lru_cache(4096)(self._ids)  # one context has several continuations

    def _ids(self, text: str) -> Ids:
        return listed(self._reply(text).get("INPUT_ID", []))

    def plain(self, text: str) -> Ids:
        """Ids without the special tokens that the tokenizer puts first."""
        ids, own = self.ids(text), self._special
        return ids[len(own) :] if ids[: len(own)] == own else ids

    @cached_property
    def prefix(self) -> int:
        """What stands before a text that has no context: the tokenizer's first special token, else its end."""
        if self._prefix is not None:
            return self._prefix
        found = [*self._special[:1], *listed(self._reply("a").get("OUT_END_ID", []))]
        if not found:
            raise Refused("the tokenizer names no token to begin with\n    hint: say which, --prefix-id N")
        return int(found[0])

    @cached_property
    def _special(self) -> Ids:
        return self.ids("")

    def _reply(self, text: str) -> Json:
        hint = "a repository of five models, of `doit serve` or `doit render`, has it"
        return post(self._url, self._model, {"QUERY": text, "REQUEST_OUTPUT_LEN": 1}, hint)


def listed(value: Any) -> list[Any]:
    """Triton's `generate` writes a tensor of one element without its list."""
    return value if isinstance(value, list) else [value]


class Engine:
    """The engine's model over gRPC, asked by several threads with a connection each."""

    def __init__(self, url: str, model: str) -> None:
        self._url, self._model = url, model
        self._own, self._numbers = threading.local(), itertools.count()

    def logits(self, ids: tuple[int, ...]) -> Any:
        """Floats [n, vocabulary] of n ids. Raises Refused where the engine does not return all of them."""
        from tritonclient.grpc import InferRequestedOutput
        from tritonclient.utils import InferenceServerException

        number, (client, replies) = str(next(self._numbers)), self._connection()
        wanted = [InferRequestedOutput("context_logits")]
        client.async_stream_infer(self._model, inputs(ids), request_id=number, outputs=wanted)
        while True:
            try:
                result, error = replies.get(timeout=TIMEOUT_SECONDS)
            except queue.Empty:
                raise Refused(f"{self._model} does not answer") from None
            if error:
                reason = error.message() if isinstance(error, InferenceServerException) else error
                raise Refused(f"{self._model} gives no logits\n    reason  {reason}\n    hint: {GATHER}")
            if result.get_response().id == number and result.get_response().outputs:
                return checked(result.as_numpy("context_logits"), ids, self._model)

    def _connection(self) -> tuple[Any, queue.Queue[Any]]:
        from tritonclient.grpc import InferenceServerClient

        if not hasattr(self._own, "pair"):
            client, replies = InferenceServerClient(self._url), queue.Queue[Any]()
            client.start_stream(lambda result, error: replies.put((result, error)))
            self._own.pair = client, replies
        found: tuple[Any, queue.Queue[Any]] = self._own.pair
        return found


def inputs(ids: tuple[int, ...]) -> list[Any]:
    """The tensors of a request for context logits; one token has to be generated."""
    import numpy as np
    from tritonclient.grpc import InferInput

    values = {"input_ids": [ids], "input_lengths": [[len(ids)]], "request_output_len": [[1]]}
    arrays = {name: np.array(value, np.int32) for name, value in values.items()}
    arrays["return_context_logits"] = np.ones((1, 1), np.bool_)
    made = []
    for name, array in arrays.items():
        made.append(InferInput(name, list(array.shape), "BOOL" if array.dtype == np.bool_ else "INT32"))
        made[-1].set_data_from_numpy(array)
    return made


def checked(found: Any, ids: tuple[int, ...], model: str) -> Any:
    """[n, vocabulary] of [1, n, vocabulary]. Raises Refused for anything less than a row for each id."""
    rows, columns = (0, 0) if found is None else found.shape[-2:]
    if columns <= max(ids):
        raise Refused(f"{model} returned no context_logits\n    hint: {GATHER}")
    if rows != len(ids):
        raise Refused(f"{model} returned logits of {rows} tokens, not of all {len(ids)}\n    hint: {REUSED}")
    return found.reshape(rows, columns)


class Scores:
    """Log-likelihoods from a served engine; equal inputs of one task go to it once."""

    def __init__(self, tokens: Tokens, engine: Engine, length: int | None, concurrency: int) -> None:
        self.tokens, self.engine, self._length, self._concurrency = tokens, engine, length, concurrency

    def of_texts(self, texts: list[tuple[str, str]]) -> list[tuple[float, bool]]:
        """(log-probability, greedy) of each (context, continuation), in order."""
        with ThreadPoolExecutor(self._concurrency) as pool:
            return self.of_ids(list(pool.map(lambda text: pair(self.tokens, *text), texts)))

    def of_ids(self, pairs: list[tuple[Ids, Ids]]) -> list[tuple[float, bool]]:
        """The same of token ids."""
        asked: dict[tuple[int, ...], list[int]] = {}
        for place, (context, continuation) in enumerate(pairs):
            asked.setdefault(sent(context, continuation, self._length), []).append(place)

        def answer(ids: tuple[int, ...]) -> list[tuple[int, tuple[float, bool]]]:
            logits = self.engine.logits(ids)
            return [(place, scored(logits, pairs[place][1])) for place in asked[ids]]

        with ThreadPoolExecutor(self._concurrency) as pool:
            found = dict(itertools.chain.from_iterable(told(pool.map(answer, asked), len(asked))))
        return [found[place] for place in range(len(pairs))]

    def rolling(self, texts: list[str]) -> list[float]:
        """The log-probability of each whole text, in windows of the engine's length. Raises Refused without one."""
        if not self._length:
            raise Refused("a whole text is measured in windows\n    hint: say the engine's isl, --max-length N")
        cuts = [list(windows(self.tokens.ids(text), self.tokens.prefix, self._length)) for text in texts]
        values = iter(self.of_ids([window for cut in cuts for window in cut]))
        return [sum(value for value, _ in itertools.islice(values, len(cut))) for cut in cuts]


def adapter(args: argparse.Namespace) -> Any:
    """An `lm_eval.api.model.LM` of the served model."""
    from lm_eval.api.model import LM

    _, _, variant = args.model.partition("__")  # as serve.py names the models of several repositories
    parts = [f"{part}__{variant}" if variant else part for part in ("preprocessing", "tensorrt_llm")]
    tokens, engine = Tokens(args.url, parts[0], args.prefix_id), Engine(args.grpc_url or beside(args.url), parts[1])
    scores = Scores(tokens, engine, args.max_length, args.concurrency)

    class Served(LM):  # type: ignore[misc]
        """Every call is of a whole task."""

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:  # noqa: ARG002, FBT001, FBT002
            """The answers, in the order of the requests."""
            with ThreadPoolExecutor(args.concurrency) as pool:
                return list(told(pool.map(self._answer, requests), len(requests)))

        def _answer(self, request: Any) -> str:
            context, wanted = request.args
            text = generate(args.url, args.model, body(context, wanted, args.max_tokens))
            return cut(text, untils(wanted))

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:  # noqa: ARG002, FBT001, FBT002
            """(log-probability, greedy) of each continuation."""
            return scores.of_texts([request.args for request in requests])

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:  # noqa: ARG002, FBT001, FBT002
            """The log-probability of each text."""
            return scores.rolling([request.args[0] for request in requests])

    return Served()


def beside(url: str) -> str:
    """Where gRPC is when HTTP is at `url`: the next port, as Triton's own default has it."""
    host, _, port = url.rpartition(":")
    return f"{host}:{int(port) + 1}"


def told(answers: Any, count: int) -> Any:
    """The answers as they come, with a line on stderr every few seconds."""
    spoke = time.monotonic()
    for number, answer in enumerate(answers, 1):
        if time.monotonic() - spoke > SPEAK_SECONDS or number == count:
            spoke = time.monotonic()
            print(f"  {number} of {count} answered", file=sys.stderr, flush=True)
        yield answer


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
    ready(args, {name: str(task.get_config("output_type")) for name, task in tasks.items()})
    found: Json = simple_evaluate(adapter(args), tasks=names, limit=args.limit, task_manager=manager, bootstrap_iters=0)
    return found


def ready(args: argparse.Namespace, kinds: dict[str, str]) -> None:
    """Raises Refused, or ModuleNotFoundError, for what would else be missed after an hour. `kinds` is by task."""
    if set(kinds.values()) - {"generate_until"}:
        import tritonclient.grpc  # noqa: F401
    rolling = [name for name, kind in kinds.items() if kind == "loglikelihood_rolling"]
    if rolling and not args.max_length:
        what = f"{', '.join(rolling)}: measures whole texts in windows, whose length is not known"
        raise Refused(f"{what}\n    hint: say the engine's isl, --max-length N")


def main() -> int:
    """Exit 1 with what is wrong."""
    parser = argparse.ArgumentParser(description="lm-evaluation-harness on a served variant.")
    for name, preset in (("--url", "localhost:8000"), ("--model", "ensemble"), ("--tasks", ""), ("--include", None)):
        parser.add_argument(name, default=preset, required=name == "--tasks")
    parser.add_argument("--grpc-url", default="", help="HOST:PORT of gRPC; else the port after --url's")
    for name, count in (("--limit", None), ("--max-tokens", 256), ("--concurrency", 8)):
        parser.add_argument(name, type=int, default=count)
    parser.add_argument("--max-length", type=int, help="the engine's isl: longer contexts lose their beginning")
    parser.add_argument("--prefix-id", type=int, help="the token before a text without context; else BOS, else the end")
    parser.add_argument("--out", type=Path, help="a JSON file for all of it")
    args = parser.parse_args()
    try:
        found = run(args)
    except Refused as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as missing:
        hint = "pip install lm_eval 'tritonclient[grpc]'"
        print(f"error: {missing.name} is not installed here\n    hint: {hint}", file=sys.stderr)
        return 1
    if args.out:
        args.out.write_text(json.dumps(found, indent=1, default=str, ensure_ascii=False), encoding="utf-8")
    print(json.dumps(found["results"], indent=1, default=str))
    return 0


if __name__ == "__main__":
    sys.exit(main())
