"""`doit bench`: a typed load, a server that is not ours, and baselines."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rules.commands.bench import BenchCommand, changes
from rules.errors import Misconfigured
from tests.space import Space
from tests.tools.load.conftest import stub

DEFAULTS = {option["name"]: option["default"] for option in BenchCommand.cmd_options}


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[str, int]]:
    yield from stub("--gap", "2")


def _typed(workspace: Space, ports: dict[str, int], *more: str, scheme: str = "grpc") -> list[str]:
    workspace.write("p.jsonl", '{"text": "What do bees make?"}\n')
    url = f"--url={scheme}://127.0.0.1:{ports[scheme]}"
    return ["bench", url, "--prompts=p.jsonl", "--isl=8", "--osl=4", "--requests=6", "--warmup=0", *more]


def test_what_is_typed_replaces_the_entrys_table() -> None:
    typed = {"concurrency": "1,8", "request_rate": "2.5", "seconds": "3", "natural": True, "prompts": "p.jsonl"}
    assert changes(DEFAULTS | typed) == {
        "concurrency": [1, 8], "request_rate": [2.5], "seconds": 3.0, "requests": None, "fixed": False,
        "prompts": f"file:{Path('p.jsonl').absolute()}",
    }  # fmt: skip
    assert changes(DEFAULTS) == {}
    assert changes(DEFAULTS | {"request_rate": "2"})["concurrency"] == []


def test_every_word_that_is_no_number_is_told() -> None:
    with pytest.raises(Misconfigured) as told:
        changes(DEFAULTS | {"concurrency": "1,x", "seconds": "soon"})
    assert [problem.what.split(":")[0] for problem in told.value.problems] == ["--concurrency", "--seconds"]


@pytest.mark.parametrize(("scheme", "endpoint"), [("grpc", "grpc"), ("http", "http"), ("http", "chat")])
def test_a_server_that_somebody_else_runs_is_measured(
    workspace: Space, ports: dict[str, int], scheme: str, endpoint: str
) -> None:
    out = workspace.build(*_typed(workspace, ports, "--concurrency=1,3", f"--endpoint={endpoint}", scheme=scheme))
    assert "    concurrency 3  " in out
    assert "req/s" in out
    (path,) = (workspace.root / "artifacts/bench").glob(f"url_127.0.0.1_{ports[scheme]}_ensemble/*/summary.json")
    summary = json.loads(path.read_text())
    assert (summary["axes"], summary["url"]) == (None, f"{scheme}://127.0.0.1:{ports[scheme]}")
    assert [point["counts"]["ok"] for point in summary["points"]] == [6, 6]


def test_a_baseline_of_a_revision_is_compared_with(workspace: Space, ports: dict[str, int]) -> None:
    git = ["git", "-C", str(workspace.root), "-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run([*git, "init", "-q"], check=True)
    workspace.build(*_typed(workspace, ports, "--accept"))
    (path,) = (workspace.root / "baselines").glob("*.json")
    kept = json.loads(path.read_text())
    for at, slow in (("slow", 0.1), ("fast", 1e9)):
        kept["points"]["concurrency 1"] = {"requests_per_s": [slow]}
        path.write_text(json.dumps(kept))
        subprocess.run([*git, "add", "-A"], check=True)
        subprocess.run([*git, "commit", "-qm", at], check=True)
    worse = workspace.run(*_typed(workspace, ports, "--baseline=HEAD"))
    assert worse.rc == 1
    assert "requests_per_s at concurrency 1 was 1e+09 1/s" in worse.out
    better = workspace.build(*_typed(workspace, ports, "--baseline=HEAD~1"))
    assert "no figure is more than 5 % worse than baseline" in better


def test_a_revision_of_which_nothing_is_known_is_told(workspace: Space, ports: dict[str, int]) -> None:
    result = workspace.run(*_typed(workspace, ports, "--baseline=nowhere"))
    assert result.rc == 3
    assert "'nowhere' is not a revision here" in result.err


def test_a_server_that_is_not_there_is_one_error(workspace: Space) -> None:
    result = workspace.run(*_typed(workspace, {"grpc": 9}))
    assert result.rc == 1
    assert "does not serve ensemble" in result.err
    assert "Traceback" not in result.out + result.err


@pytest.mark.parametrize("url", ["ftp://h", "localhost:8001"])
def test_a_url_of_another_kind_is_a_mistake(workspace: Space, url: str) -> None:
    result = workspace.run("bench", f"--url={url}", "--isl=1", "--osl=1")
    assert result.rc == 3
    assert "is not a URL that can be measured" in result.err
