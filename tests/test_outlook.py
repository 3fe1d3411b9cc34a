"""The outlook of a build: it says what would happen, and then that happens."""

from __future__ import annotations

from pathlib import Path

from rules.action import Action, Output
from rules.outlook import Outlook, look
from tests.lab import Lab

WRITE = "(out / 'a').write_text('{}')"
COPY = "(out / 'b').write_text((places[0] / 'a').read_text())"


def chain(lab: Lab, text: str = "one") -> list[Action]:
    first = lab.action("s:first", WRITE.format(text))
    return [first, lab.action("t:second", COPY, ("first", Output(action="s:first")))]


def states(lab: Lab, actions: list[Action]) -> list[str]:
    return [one.status for one in look(lab.executor, actions)]


def test_nothing_is_made_by_looking(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    assert states(lab, chain(lab)) == ["run", "blocked"]
    assert lab.ran() == []


def test_a_key_is_unknown_only_while_an_input_has_to_run(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    first, second = look(lab.executor, chain(lab))
    assert first.key
    assert second.key is None
    assert second.reasons == ("waits for s:first",)


def test_what_was_made_is_fresh(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.make(*chain(lab))
    assert states(lab, chain(lab)) == ["fresh", "fresh"]


def test_the_reason_is_the_keyed_line_that_changed(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.make(*chain(lab))
    changed, waits = look(lab.executor, chain(lab, "two"))
    assert [line[0] for line in changed.reasons] == ["-", "+"]
    assert "'one'" in changed.reasons[0]
    assert "'two'" in changed.reasons[1]
    assert waits.status == "blocked"


def test_a_wiped_tree_comes_from_the_store_all_the_way(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.make(*chain(lab))
    for name in ("s:first", "t:second"):
        lab.executor.artifacts.clean(name)
    assert states(lab, chain(lab)) == ["local", "local"]
    assert lab.make(*chain(lab)) == ["local", "local"]


def test_an_earlier_state_comes_from_the_store(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.make(*chain(lab))
    lab.make(*chain(lab, "two"))
    assert states(lab, chain(lab)) == ["local", "local"]


def test_costs_are_those_of_the_last_run_or_of_those_like_it(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.make(lab.action("s:slow", "time.sleep(0.3); (out / 'a').write_text('12345')"))
    known: Outlook = look(lab.executor, [lab.action("s:slow", "time.sleep(0.3); (out / 'a').write_text('54321')")])[0]
    like: Outlook = look(lab.executor, [lab.action("s:new", "(out / 'a').write_text('')")])[0]
    other: Outlook = look(lab.executor, [lab.action("s:gpu", "(out / 'a').write_text('')", platform="sm90")])[0]
    assert known.seconds
    assert known.seconds >= 0.3
    assert known.size == 5
    assert like.seconds == known.seconds
    assert other.seconds is None


def test_an_action_that_takes_two_things_of_another_waits_for_it_once(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    first, _ = chain(lab)
    both = lab.action("t:both", COPY, ("first", Output(action="s:first")), ("again", Output(action="s:first")))
    assert look(lab.executor, [first, both])[1].reasons == ("waits for s:first",)
