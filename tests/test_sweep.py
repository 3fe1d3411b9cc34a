"""A sweep asks the executor only about what is in doubt, and what needs something stale is stale."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from rules.action import Output
from rules.freshness import Freshness
from rules.index import Index
from rules.sweep import Swept, sweep
from tests.lab import Lab


class Chain:
    """A chain a -> b -> c and a loner d, and what a sweep of it asks."""

    def __init__(self, root: Path) -> None:
        self.lab = Lab(root)
        text = "(out / 'f').write_text({!r})"
        a = self.lab.action("source:a", text.format("a"))
        b = self.lab.action("engine:b", text.format("b"), ("from", Output(action=a.name)))
        c = self.lab.action("build:c", text.format("c"), ("from", Output(action=b.name)))
        d = self.lab.action("build:d", text.format("d"))
        self.lab.make(a, b, c, d)
        self.names = {"source": {"a": [a.name]}, "engine": {"b": [b.name]}, "build": {"c": [c.name], "d": [d.name]}}
        self.asked: list[str] = []

    def sweep(self, *targets: str) -> Swept | None:
        """In a new process."""
        self.asked = []
        executor = self.lab.executor

        def ask(name: str, *, here: bool) -> bool:
            self.asked.append(name if here else f"{name} without its bytes")
            return executor.fresh(self.lab.graph[name], here=here)

        needs = {name: action.needs() for name, action in self.lab.graph.items()}
        index = Index(default=("build:d",), names=self.names, needs=needs, identities={name: name for name in needs})
        return sweep(index, Freshness(executor.artifacts), targets, ask)

    def stale(self, *targets: str) -> list[str]:
        """The stale ones."""
        swept = self.sweep(*targets)
        assert swept is not None
        return list(swept.stale)


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return Chain(tmp_path_factory.mktemp("sweep"))


@pytest.fixture
def chain(once: Chain, monkeypatch: pytest.MonkeyPatch) -> Chain:
    """All fresh, and known to be; ten seconds later than it is, so that no test waits for files to settle."""
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + 10**10)
    once.lab.make(*once.lab.graph.values())
    once.sweep("build")
    return once


def test_what_is_known_is_not_asked_for(chain: Chain) -> None:
    assert chain.sweep("build") == Swept(stale=(), fresh=4, members={"build": []})
    assert chain.asked == []


def test_only_what_the_targets_need_is_swept(chain: Chain) -> None:
    swept = chain.sweep("engine:b", "_default")
    assert swept
    assert (swept.fresh, swept.members) == (3, {"engine:b": [], "_default": []})


def test_a_word_that_is_not_ours_is_left_to_doit(chain: Chain) -> None:
    assert chain.sweep("build", "lint") is None
    assert chain.sweep("build:*") is None


def test_what_needs_something_stale_is_stale_without_being_asked_for(chain: Chain) -> None:
    file = chain.lab.file("source/a/f")
    file.chmod(0o644)
    file.write_text("other")
    swept = chain.sweep("build")
    assert swept == Swept(stale=("source:a", "engine:b", "build:c"), fresh=1, members={"build": ["build:c"]})
    assert [name for name in chain.asked if "source" not in name] == []


def test_a_member_of_a_stale_chain_is_stale_even_when_it_is_not_asked_for_by_name(chain: Chain) -> None:
    chain.lab.file("engine/b.receipt.json").unlink()
    assert chain.stale("engine") == ["engine:b"]
    assert chain.stale("build:c") == ["engine:b", "build:c"]
    assert chain.stale("build:d") == []


def test_rebuilding_an_input_alone_leaves_nobody_fresh_by_memory(chain: Chain) -> None:
    """The row of c is from before; b gets other outputs, and a row of its own."""
    b = chain.lab.graph["engine:b"]
    other = chain.lab.action("engine:b", "(out / 'f').write_text('new')", *b.inputs)
    try:
        chain.lab.make(other)
        assert chain.stale("engine:b") == []
        assert chain.stale("build:c") == ["build:c"]
    finally:
        chain.lab.graph["engine:b"] = b


def test_touched_bytes_are_asked_for_until_they_lie_sealed_and_then_known(chain: Chain) -> None:
    chain.lab.file("build/d/f").touch()
    for asked in (["build:d"], ["build:d"], []):
        assert chain.stale("build") == []
        assert chain.asked == asked


def test_a_result_without_its_bytes_is_fresh_until_they_are_wanted(chain: Chain) -> None:
    record = chain.lab.file("engine/b.record.json")
    record.write_text(record.read_text().replace('"here": true', '"here": false'))
    for _ in range(2):
        assert chain.stale("build:c") == []
        assert chain.asked == ["engine:b", "engine:b without its bytes"]
        assert chain.stale("engine:b") == ["engine:b"]
