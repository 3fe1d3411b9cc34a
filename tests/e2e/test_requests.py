"""What clients may ask of a served engine, and what they may not, against the real Triton server.

Three repositories in one server: `bytes` (byte-level tokenizer, streams), `marks` (SentencePiece style tokenizer,
streams, the BLS accumulates) and `once` (not decoupled).
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("openvino_genai")
pytest.importorskip("tritonclient.grpc")

from tests.e2e.served import LIMITS, OUTPUT_LEN, Client, repository, tensor, tokenizer, tool, without_end
from tests.made import Made, shape_words
from tests.serving import Server, until
from tests.tools.test_harness import HARNESS, PYTHON
from tests.tools.test_harness import tool as harness

pytestmark = pytest.mark.server

PATHS = ("ensemble", "tensorrt_llm_bls")
TEXT = "def 你好 🙂("
LONG: dict[str, Any] = {"text_input": TEXT, "max_tokens": 1800, "end_id": -1}
ENDLESS = {**LONG, "max_tokens": OUTPUT_LEN["llama"]}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, source: Made, converted: Made, make: Made) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("served")
    checkpoints = {"gpt2": converted("gpt2"), "llama": without_end(converted("llama"), folder / "llama")}

    def served(name: str, architecture: str, **settings: str) -> Path:
        limits = shape_words(**LIMITS, output_len=OUTPUT_LEN[architecture])
        made = make("openvino_compile", "--checkpoint", checkpoints[architecture], "--precision=fp32", *limits)
        words = tokenizer(source(architecture), folder / "tokenizers" / name)
        return repository(made, words, folder / "repositories" / name, **settings)

    repositories = {
        "bytes": served("bytes", "gpt2"),
        "marks": served("marks", "llama", accumulate_tokens="true"),
        "once": served("once", "gpt2", decoupled_mode="false", exclude_input_in_output="false"),
    }
    server = Server(_folder(folder / "server"), **repositories)
    yield Client(server)
    server.end(signal.SIGTERM)


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _text(events: list[dict[str, Any]]) -> str:
    return "".join(event["text_output"] for event in events)


@pytest.fixture(params=[f"{path}__{variant}" for path in PATHS for variant in ("bytes", "marks")])
def model(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_stream_adds_up_to_the_answer(client: Client, model: str, seed: int) -> None:
    sampled = {"text_input": TEXT, "max_tokens": 40, "top_p": 1.0, "temperature": 2.0, "seed": seed, "end_id": -1}
    whole = client.generate(model, **sampled)["text_output"]
    events = client.stream(model, **sampled)
    accumulates = model == "tensorrt_llm_bls__marks"
    assert (events[-1]["text_output"] if accumulates else _text(events)) == whole
    assert len(events) > 5


def test_nested_parameters_mean_the_same(client: Client, model: str) -> None:
    flat = client.generate(model, text_input=TEXT, max_tokens=6, random_seed=4, top_k=50)
    nested = client.generate(model, text_input=TEXT, parameters={"max_tokens": 6, "random_seed": 4, "top_k": 50})
    assert "text_output" in flat
    assert flat == nested


def test_only_what_was_asked_for_comes_back(client: Client, model: str) -> None:
    plain = client.generate(model, text_input=TEXT, max_tokens=4)
    more = {"return_log_probs": True, "return_num_input_tokens": True, "return_num_output_tokens": True}
    full = client.generate(model, text_input=TEXT, max_tokens=4, end_id=-1, **more)
    extra = {"cum_log_probs", "output_log_probs", "num_input_tokens", "num_output_tokens"}
    assert set(full) - set(plain) == extra
    assert full["num_output_tokens"] == len(full["output_log_probs"]) == 4
    assert full["cum_log_probs"] == pytest.approx(sum(full["output_log_probs"]), rel=1e-5)
    assert all(value <= 0 for value in full["output_log_probs"])


def test_the_prompt_is_in_the_answer_unless_it_is_excluded(client: Client, model: str) -> None:
    alone = client.generate(model, text_input="abc", max_tokens=4)["text_output"]
    echoed = client.generate(model, text_input="abc", max_tokens=4, exclude_input_in_output=False)["text_output"]
    assert echoed.startswith("abc")
    assert echoed.endswith(alone.strip())


def test_text_ends_before_a_stop_word(client: Client, model: str) -> None:
    asked = {"text_input": TEXT, "max_tokens": 24, "end_id": -1, "temperature": 1.5, "top_p": 1.0, "seed": 11}
    whole = client.generate(model, **asked)["text_output"]
    word = whole[len(whole) // 2 :][:3]
    for stop in (word, ["never seen", "", word]):
        assert client.generate(model, **asked, stop_words=stop)["text_output"] == whole[: whole.index(word)]
        streamed = client.stream(model, **asked, stop_words=stop)
        text = streamed[-1]["text_output"] if model == "tensorrt_llm_bls__marks" else _text(streamed)
        assert text == whole[: whole.index(word)]


def test_beams_are_answered_best_first(client: Client, model: str) -> None:
    answer = client.generate(model, text_input=TEXT, max_tokens=6, beam_width=3, return_log_probs=True)
    assert len(answer["text_output"]) == 3
    assert answer["cum_log_probs"] == sorted(answer["cum_log_probs"], reverse=True)


def test_a_batch_of_prompts_streams_under_its_indices(client: Client, model: str) -> None:
    events = client.stream(model, text_input=["abc", TEXT], max_tokens=[3, 3], stream=[False, False])
    alone = [client.generate(model, text_input=text, max_tokens=3)["text_output"] for text in ("abc", TEXT)]
    assert {event["batch_index"]: event["text_output"] for event in events} == dict(enumerate(alone))


def test_a_seed_gives_the_same_text_in_company(client: Client) -> None:
    asked = {"text_input": TEXT, "max_tokens": 16, "top_p": 1.0, "seed": 5, "end_id": -1}
    alone = client.generate("ensemble__bytes", **asked)["text_output"]
    found: list[str] = []
    ask = [{**asked, "seed": seed} for seed in (5, 6, 5, 7, 5)]
    threads = [
        threading.Thread(target=lambda one=one: found.append(client.generate("ensemble__bytes", **one)["text_output"]))
        for one in ask
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 3
    assert found.count(alone) == 3


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"temprature": 0.5}, "temprature (did you mean temperature?)"),
        ({"parameters": {"top_n": 3}}, "top_n"),
        ({"bad_words": ["x"]}, "bad_words"),
        ({"embedding_bias_words": ["a"], "embedding_bias_weights": [1.0]}, "embedding_bias_words"),
        ({"num_return_sequences": 2}, "num_return_sequences"),
        ({"return_generation_logits": True}, "return_generation_logits"),
        ({"guided_decoding_guide_type": "json", "guided_decoding_guide": "{}"}, "guided_decoding_guide"),
        ({"lora_task_id": 1}, "lora_task_id"),
        ({"text_input": "x " * 500_000}, "tokens, the engine takes 120 (max_input_len)"),
        ({"max_tokens": -1}, "max_tokens is -1"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_tokens": 100_000}, "100000, the engine makes at most"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"beam_width": 0}, "beam_width is 0"),
        ({"beam_width": 9}, "beam_width is 9"),
        ({"end_id": 10_000_000}, "end_id is 10000000"),
        ({"stop_words": ["ab"] * 5000}, "stop_words"),
        ({"max_tokens": "many"}, "Unable to parse"),  # Triton's own words, before any model is asked
        ({"max_tokens": [1, 2]}, ""),
        ({"text_input": []}, ""),
    ],
)
def test_what_cannot_be_is_one_requests_error_that_names_the_field(
    client: Client, model: str, fields: dict[str, Any], words: str
) -> None:
    answer = client.generate(model, **{"text_input": TEXT, "max_tokens": 4, **fields})
    assert words in answer.get("error", "no error"), answer
    assert client.generate(model, text_input=TEXT, max_tokens=2)["text_output"]


def test_empty_text_is_an_error_only_where_it_gives_no_token(client: Client) -> None:
    assert "text_input is empty" in client.generate("ensemble__bytes", text_input="", max_tokens=4)["error"]
    assert client.generate("ensemble__marks", text_input="", max_tokens=4)["text_output"], "<s> is a beginning"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"text_input": b"\xff\xfe bad"}, "text_input is not UTF-8"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf, "top_p": 0.5}, "temperature is inf"),
        ({"max_tokens": 4.5}, "max_tokens"),
        ({"stop_words": [b"\xc3"]}, "stop_words is not UTF-8"),
    ],
)
def test_broken_tensors_over_grpc_are_errors(client: Client, path: str, arrays: dict[str, Any], words: str) -> None:
    request = {"text_input": TEXT.encode(), "max_tokens": 4, **arrays}
    *_, last = client.over_grpc(f"{path}__bytes", **request)
    assert isinstance(last, Exception)
    assert words in str(last)


def test_grpc_streams_the_same_text(client: Client) -> None:
    asked = {"text_input": TEXT.encode(), "max_tokens": 20, "end_id": -1}
    pieces = [one.as_numpy("text_output").item() for one in client.over_grpc("ensemble__bytes", **asked, stream=True)]
    whole = client.generate("ensemble__bytes", text_input=TEXT, max_tokens=20, end_id=-1)["text_output"]
    assert b"".join(pieces).decode() == whole


def test_requests_join_a_running_batch(client: Client) -> None:
    threads = [threading.Thread(target=client.generate, args=("ensemble__marks",), kwargs=LONG) for _ in range(8)]
    for thread in threads:
        thread.start()
    seen = 0.0
    while any(thread.is_alive() for thread in threads):
        seen = max(seen, client.gauge("tensorrt_llm__marks", "scheduled"))
    assert seen == 8
    assert client.idle("tensorrt_llm__marks", 120)


@pytest.fixture(scope="module")
def company(client: Client) -> Iterator[float]:
    """Seven clients that always have a request in flight; how long an endless eighth would take, in seconds."""
    ids = {"input_ids": [5, 6, 7], "input_lengths": 3, "request_output_len": ENDLESS["max_tokens"], "end_id": -1}
    with ExitStack() as seven:
        for _ in range(7):
            seven.enter_context(client.busy("tensorrt_llm__marks", **ids))
        assert until(lambda: client.gauge("tensorrt_llm__marks", "active") == 7, 120)
        began = time.monotonic()
        client.generate("ensemble__marks", **{**ENDLESS, "max_tokens": 200})
        yield (time.monotonic() - began) / 200 * ENDLESS["max_tokens"]
    assert client.idle("tensorrt_llm__marks", 120)


def _leaves(client: Client, company: float) -> bool:
    """Whether the eighth is gone well before it could have ended."""
    return until(lambda: _most(client) <= 7, company * 0.8)


def _most(client: Client) -> float:
    """The most requests seen active in a while: one of the company may just be between two of its own."""
    seen = []
    for _ in range(5):
        seen.append(client.gauge("tensorrt_llm__marks", "active"))
        time.sleep(0.02)
    return max(seen)


def _cancelled(client: Client, model: str, arrays: dict[str, Any]) -> None:
    """Begin a request over gRPC and, once the engine has it, cancel it."""
    with client.grpc() as connection:
        connection.start_stream(lambda result, error: None)
        connection.async_stream_infer(model, [tensor(*item) for item in arrays.items()])
        assert until(lambda: client.gauge("tensorrt_llm__marks", "active") == 8, 120)
        connection.stop_stream(cancel_requests=True)


@pytest.mark.parametrize("path", PATHS)
def test_a_client_that_hangs_up_frees_its_place(client: Client, company: float, path: str) -> None:
    client.abandon_http(f"/v2/models/{path}__marks/generate_stream", 1, stream=True, **ENDLESS)
    assert _leaves(client, company)


@pytest.mark.parametrize(
    ("path", "stream"), [("ensemble", True), ("tensorrt_llm_bls", True), ("tensorrt_llm_bls", False)]
)
def test_a_cancelled_grpc_request_frees_its_place(client: Client, company: float, path: str, stream: bool) -> None:
    _cancelled(client, f"{path}__marks", {**ENDLESS, "text_input": TEXT.encode(), "stream": stream})
    assert _leaves(client, company)


@pytest.mark.parametrize("path", PATHS)
def test_a_long_stream_in_company_is_complete(client: Client, company: float, path: str) -> None:
    events = client.stream(f"{path}__marks", **LONG, return_num_output_tokens=True)
    assert events[-1].get("num_output_tokens") == LONG["max_tokens"], "taken for one whose client has gone?"


def test_the_engine_itself_notices_a_cancelled_request(client: Client, company: float) -> None:
    ids = {"input_ids": [5, 6, 7], "input_lengths": 3, "request_output_len": ENDLESS["max_tokens"], "end_id": -1}
    arrays = {**ids, "streaming": True}
    _cancelled(client, "tensorrt_llm__marks", arrays)
    assert _leaves(client, company)


def test_the_engines_own_stream_carries_new_ids_and_their_number(client: Client) -> None:
    arrays = {"input_ids": [5, 6, 7], "input_lengths": 3, "request_output_len": 6, "end_id": -1, "streaming": True}
    responses = list(client.over_grpc("tensorrt_llm__bytes", **arrays))
    shapes = [(one.as_numpy("output_ids").shape, one.as_numpy("sequence_length").tolist()) for one in responses]
    assert all(shape == (1, 1, lengths[0][0]) and len(lengths[0]) == 1 for shape, lengths in shapes)
    assert sum(lengths[0][0] for _, lengths in shapes) == 6


def test_an_engine_that_is_not_decoupled_answers_once_and_refuses_streams(client: Client) -> None:
    for path in PATHS:
        answer = client.generate(f"{path}__once", text_input="abc", max_tokens=4)
        assert answer["text_output"].startswith("abc")
        refusal = client.generate(f"{path}__once", text_input="abc", max_tokens=4, stream=True)
        assert "stream is true, but the model is not decoupled" in json.dumps(refusal)


def test_an_evaluation_gets_the_answers_with_their_token_ids_and_log_probs(client: Client, tmp_path: Path) -> None:
    data = tmp_path / "questions.jsonl"
    data.write_text(
        "".join(json.dumps({"input": text, "expected": " bees"}) + "\n" for text in (TEXT, "a")), encoding="utf-8"
    )
    more = [f"--data={data}", "--model=ensemble__bytes", "--max-tokens=9", "--likelihood", f"--out={tmp_path}"]
    tool("ask", f"--url={client.at('http')}", f"--grpc-url={client.at('grpc')}", *more)
    for row in map(json.loads, (tmp_path / "answers.jsonl").read_text("utf-8").splitlines()):
        asked = {"text_input": row["input"], "max_tokens": 9, "exclude_input_in_output": True, "return_log_probs": True}
        whole = client.generate("ensemble__bytes", **asked)
        assert row["text"] == whole["text_output"]
        assert row["log_probs"] == pytest.approx(whole["output_log_probs"], abs=1e-3)
        assert len(row["ids"]) == len(row["log_probs"]) > 1
        likely = row["likely"]
        ((value, _),) = client.scores("bytes").of_texts([(row["input"], " bees")])
        assert value == pytest.approx(sum(likely["log_probs"]), abs=1e-4)
        assert len(likely["ids"]) == len(likely["top"]) > 1
        assert [len(top) for top in likely["top"]] == [64] * len(likely["ids"])
        assert all(top[0][1] >= value for top, value in zip(likely["top"], likely["log_probs"], strict=True))


def test_logits_of_the_prompt_come_beside_the_text(client: Client, model: str) -> None:
    asked = {"text_input": TEXT, "max_tokens": 4, "end_id": -1, "return_num_input_tokens": True}
    plain, found = client.generate(model, **asked), client.generate(model, **asked, return_context_logits=True)
    logits = np.array(found.pop("context_logits")).reshape(found["num_input_tokens"], -1)
    assert found == plain
    assert logits.shape[1] > 256
    one = client.generate(model, **{**asked, "max_tokens": 1}, return_context_logits=True, return_log_probs=True)
    best = logits[-1].max()
    assert one["context_logits"] == pytest.approx(logits.ravel().tolist(), abs=1e-4)
    assert one["cum_log_probs"] == pytest.approx(best - np.log(np.exp(logits[-1] - best).sum()) - best, abs=1e-4)


def test_of_a_batch_those_prompts_have_logits_that_ask_for_them(client: Client, model: str) -> None:
    both = {"text_input": ["abc", TEXT], "max_tokens": [1, 1], "stream": [False, False]}
    events = client.stream(model, **both, return_context_logits=[True, False])
    assert {event["batch_index"]: "context_logits" in event for event in events} == {0: True, 1: False}


@pytest.mark.parametrize("variant", ["bytes", "once"])
def test_given_text_is_as_likely_as_pytorch_says(client: Client, source: Made, variant: str) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    reference = transformers.AutoModelForCausalLM.from_pretrained(source("gpt2"), dtype=torch.float32)
    scores = client.scores(variant)
    context, continuation = harness.pair(scores.tokens, TEXT, " bees")
    with torch.no_grad():
        said = reference.generate(torch.tensor([context]), max_new_tokens=3, min_new_tokens=3, do_sample=False)
        greedy = said[0, len(context) :].tolist()
        pairs = [(context, continuation), (context, greedy), (context, [*greedy[:2], (greedy[2] + 1) % 256])]
        wanted = []
        for before, after in pairs:
            rows = reference(torch.tensor([[*before, *after]])).logits[0, len(before) - 1 : -1].log_softmax(-1)
            wanted.append(sum(float(row[token]) for row, token in zip(rows, after, strict=True)))
    found = scores.of_ids(pairs)
    assert [value for value, _ in found] == pytest.approx(wanted, abs=1e-3)
    assert [is_greedy for _, is_greedy in found] == [False, True, False]
    assert scores.of_texts([(TEXT, " bees")]) == [found[0]]


def test_an_engine_that_refuses_a_prompt_is_quoted(client: Client) -> None:
    engine = client.scores("marks").engine
    with pytest.raises(harness.Refused, match="the engine takes 120"):
        engine.logits((5,) * 121)
    assert engine.logits((5, 6)).shape[0] == 2, "the connection is of use afterwards"


@pytest.mark.skipif(not PYTHON, reason="no environment with lm_eval: set ENGINES_LM_EVAL to its Python")
def test_the_harness_ranks_answers_and_measures_perplexity(client: Client, tmp_path: Path) -> None:
    row = {"text": TEXT, "choices": ["abc", "x"], "gold": 1}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    data = (
        f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path / 'rows.jsonl'}}}}}\ntest_split: test\n"
    )
    ranked = (
        'output_type: multiple_choice\ndoc_to_text: "{{text}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: gold\n'
    )
    whole = 'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{text}}"\n'
    for name, body, metric in (("ranked", ranked, "acc"), ("whole", whole, "byte_perplexity")):
        (tmp_path / f"{name}.yaml").write_text(f"task: {name}\n{data}{body}metric_list: [{{metric: {metric}}}]\n")
    argv = [PYTHON, "-I", str(HARNESS), f"--url={client.at('http')}", f"--grpc-url={client.at('grpc')}"]
    argv += ["--model=ensemble__bytes", "--tasks=ranked,whole", "--max-length=4", f"--include={tmp_path}"]
    env = {**os.environ, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(argv, capture_output=True, text=True, env=env, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["ranked"]["acc,none"] in (0, 1)
    assert found["whole"]["byte_perplexity,none"] > 1
