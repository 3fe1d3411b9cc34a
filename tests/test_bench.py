"""`bench:X` as a task: real doit, the real load tool, and a server without a model in serve.py's place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rules import bench
from rules.errors import StepFailed
from tests.fakes import PROJECT
from tests.space import HEAD, Space
from tests.test_evaluation import SCORE

NAME = "m_int8_wo_isl256_osl64_bs8"
SERVE = '''"""serve.py's part, played by benchmarks/stub.py."""
import json, signal, subprocess, sys
from pathlib import Path
given = dict(word[2:].split("=", 1) for word in sys.argv[1:])
with open(Path(__file__).parent / "starts", "a") as file:
    file.write("start\\n")
argv, pipe = [sys.executable, {stub!r}, "--gap", "20"], subprocess.PIPE
stub = subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True)
signal.signal(signal.SIGTERM, lambda *_: (stub.kill(), sys.exit(0)))
ports = json.loads(stub.stdout.readline())
state = {{"host": "127.0.0.1", "http_port": ports["http"], "grpc_port": ports["grpc"], "metrics_port": ports["http"]}}
Path(given["state"]).write_text(json.dumps(state))
print("tritonserver: ready", flush=True)
signal.pause()
'''
MODEL = """
[models.m]
source = "tiny:qwen2"
toolchain = "cpu"
precisions = [{precisions}]
shapes = [{{ batch = 8, isl = 256, osl = 64 }}]
bench = {{ prompts = "file:p.jsonl", osl = 2, concurrency = [1, 2], requests = 6, warmup = 0, counting = "server" }}
gates = {{ {gates} }}
"""


@pytest.fixture
def space(tmp_path: Path, own_site: Path) -> Iterator[Space]:
    """One variant that can be measured in a second."""
    (own_site / "rules/tools/serve.py").write_text(SERVE.format(stub=str(PROJECT / "benchmarks" / "stub.py")))
    made = Space(tmp_path / "space", own_site)
    made.write("p.jsonl", '{"text": "What do bees make?", "expected": "honey"}\n')
    _model(made)
    yield made
    shutil.rmtree(made.root, ignore_errors=True)


def _model(space: Space, gates: str = "", precisions: str = '"int8_wo"') -> None:
    space.write("models.toml", HEAD + MODEL.format(gates=gates, precisions=precisions))


def _summaries(space: Space, name: str = NAME) -> list[dict[str, Any]]:
    folder = space.root / "artifacts/bench" / name
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*/summary.json"))]


def _starts(space: Space) -> int:
    return (space.site / "rules/tools/starts").read_text().count("start")


def test_failures_are_told_with_their_kinds_and_repeats_as_their_median() -> None:
    point = {"load": {"mode": "concurrency", "value": 8}, "partial": False, "client": {}}
    counts = {"requests": 64, "errors": 0}
    one = {
        **point,
        "figures": {"output_tokens_per_s": 100.0},
        "counts": {**counts, "errors": 3},
        "errors": {"empty": 3},
    }
    other = {**point, "figures": {"output_tokens_per_s": 300.0}, "counts": counts, "errors": {}}
    _, told = bench.lines({"points": [one, other], "gates": []})
    assert told.startswith("concurrency 8         200.0  ")
    assert told.endswith("2 repeats, 3 of 128 failed (empty)")


def test_a_broken_gate_of_one_variant_stops_no_other(space: Space) -> None:
    _model(space, "output_tokens_per_s = 1e12", '"int8_wo", "fp32"')
    result = space.run("bench:m")
    assert result.rc == 1
    assert "2 failed" in result.out
    assert all(_summaries(space, name)[0]["finished"] for name in (NAME, NAME.replace("int8_wo", "fp32")))


def test_every_load_point_is_measured_by_one_server_and_each_run_is_kept(space: Space) -> None:
    out = space.build(f"bench:{NAME}")
    told = out[out.index(f"bench:{NAME}  measured in") :].splitlines()
    assert told[1].split()[:3] == ["load", "output", "tok/s"]
    assert [line.split()[:2] for line in told[2:4]] == [["concurrency", "1"], ["concurrency", "2"]]
    assert len({len(line) for line in told[1:4]}) == 1  # columns are aligned
    assert f"bench:{NAME}  measured in" in out
    assert _starts(space) == 1
    space.build(f"bench:{NAME}")
    first, second = _summaries(space)
    assert first["started"] <= second["started"]
    assert [point["counts"]["ok"] for point in second["points"]] == [6, 6]
    keys = {stage: space.record(f"{stage}:{NAME}")["key"] for stage in ("engine", "build")}
    assert first["keys"] == keys
    assert (first["finished"], first["axes"]["precision"], first["versions"]["client"] != "") == (True, "int8_wo", True)
    assert first["prompts"] | {"digest": ""} == {
        "source": f"file:{space.root}/p.jsonl", "digest": "", "count": 1, "expected": True,
    }  # fmt: skip


def test_a_broken_gate_is_red_with_a_line_and_the_run_is_kept(space: Space) -> None:
    _model(space, "ttft_p50_ms = 0.001, error_rate = 0.0, requests_per_s = 1e6")
    result = space.run(f"bench:{NAME}")
    assert result.rc == 1
    assert f"bench:{NAME} breaks 2 of 3 gates" in result.out
    assert "must be at most 0.001 ms (concurrency" in result.out
    assert "must be at least 1e+06 1/s (concurrency" in result.out
    assert "\n    concurrency 1  " in result.out  # all figures are told, too
    assert [gate["holds"] for gate in _summaries(space)[0]["gates"]] == [False, True, False]


@pytest.mark.parametrize("arguments", [(f"bench:{NAME}",), ("bench", NAME)], ids=["task", "command"])
def test_answers_to_the_entrys_questions_are_scored_in_the_same_pass(space: Space, arguments: tuple[str, ...]) -> None:
    _model(space, "exact_match = 0.5")
    space.write(
        "models.toml", space.read("models.toml") + 'eval = { data = "file:p.jsonl", metrics = ["exact_match"] }\n'
    )
    space.write("control/score.py", SCORE)
    space.write("control/figures", '{"exact_match": 0.25}')
    result = space.run(*arguments)
    assert result.rc == 1
    assert f"eval:{NAME} breaks 1 of 1 gates" in result.out + result.err
    assert [point["counts"]["ok"] for point in _summaries(space)[0]["points"]] == [6, 6]
    (answers,) = (space.root / "artifacts/eval" / NAME).glob("*/answers.jsonl")
    assert [json.loads(line)["expected"] for line in answers.read_text().splitlines()] == ["honey"]


def test_a_run_that_was_cut_short_is_gone_on_with(space: Space) -> None:
    space.build(f"bench:{NAME}")
    path = next((space.root / "artifacts/bench" / NAME).glob("*/summary.json"))
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({**whole, "finished": False, "points": whole["points"][:1]}))
    space.build(f"bench:{NAME}")
    (again,) = _summaries(space)
    assert again["finished"]
    assert again["points"][0] == whole["points"][0]
    assert again["points"][1]["started"] >= whole["points"][1]["started"]


def test_a_series_goes_on_where_it_stopped(space: Space) -> None:
    _model(space, precisions='"fp32", "int8_wo"')
    space.write("control/openvino_quantize.py", "raise SystemExit(1)")
    first = space.run("--continue", "bench:m")
    assert first.rc == 1
    assert (len(_summaries(space)), len(_summaries(space, NAME.replace("int8_wo", "fp32")))) == (0, 1)
    (space.root / "control/openvino_quantize.py").unlink()
    space.build("bench:m")
    assert (len(_summaries(space)), len(_summaries(space, NAME.replace("int8_wo", "fp32")))) == (1, 1)
    space.build("bench:m")  # it was whole: this is a new one
    assert (len(_summaries(space)), len(_summaries(space, NAME.replace("int8_wo", "fp32")))) == (2, 2)


def test_a_server_that_does_not_start_is_told_with_its_last_words(space: Space) -> None:
    (space.site / "rules/tools/serve.py").write_text("raise SystemExit('error: no port is free')")
    result = space.run(f"bench:{NAME}")
    assert result.rc == 1
    assert "no port is free" in result.out
    assert "Traceback" not in result.out + result.err


@pytest.mark.parametrize(
    ("ours", "theirs", "told"),
    [(512, 500, False), (512, 560, False), (8, 60, False), (512, 3, True), (512, 900, True), (512, None, False)],
)
def test_a_tokenizer_that_is_not_the_servers_is_told(ours: int, theirs: int | None, *, told: bool) -> None:
    """A chat template adds tokens of its own; a server that counts 3 where 512 were meant has another tokenizer."""
    counts = {"errors": 0, "requests": 1, "ok": 1, "input_tokens": ours, "server_input_tokens": theirs}
    point = {
        "counts": counts,
        "errors": {},
        "client": {},
        "partial": False,
        "figures": {},
        "load": {"mode": "concurrency", "value": 1},
    }
    said = "\n".join(bench.lines({"points": [point], "gates": []}))
    assert (f"the server counts {theirs} input tokens, the tokenizer {ours}" in said) == told


def test_gpus_are_watched_only_where_the_server_is() -> None:
    urls = ("http://127.0.0.1:8000", "http://[::1]:1", "http://other:8000")
    assert [bench.Place(url=url).gpus(("0", "1")) for url in urls] == [["0", "1"], ["0", "1"], []]


def test_what_the_server_said_is_told_when_no_request_was_answered() -> None:
    point = {
        "counts": {"ok": 0}, "errors": {"server: error": 3}, "error_message": "the prompt cannot be empty",
        "load": {"mode": "concurrency", "value": 1},
    }  # fmt: skip
    with pytest.raises(StepFailed, match=r"server: error +3\n +the first +the prompt cannot be empty"):
        bench.require({"variant": "v", "gates": [], "points": [point], "folder": "f"})
