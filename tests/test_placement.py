"""Servers get GPUs of their own, and whatever does not fit is told before anything starts."""

from __future__ import annotations

import pytest

from rules.errors import Misconfigured
from rules.gpu import Card
from rules.placement import Demand, place, shared

GIB = 1 << 30
H100 = [Card(device=str(n), sm=90, total=80 * GIB, free=79 * GIB, name="H100") for n in range(8)]


def demand(name: str, ranks: int = 1, weights: int = 15, fraction: float = 0.9, sm: int = 90) -> Demand:
    return Demand(name=name, sm=sm, ranks=(weights * GIB,) * ranks, request=GIB // 4, fraction=fraction)


def told(*args: object) -> list[str]:
    with pytest.raises(Misconfigured) as problems:
        place(*args)  # type: ignore[arg-type]
    return [str(problem) for problem in problems.value.problems]


def test_servers_get_gpus_of_their_own_in_order() -> None:
    placed = place([demand("a", 4), demand("b"), demand("c", 2)], H100, ())
    assert placed == [("0", "1", "2", "3"), ("4",), ("5", "6")]
    assert not shared(placed)


def test_more_ranks_than_free_gpus_is_one_error_with_the_numbers() -> None:
    (text,) = told([demand("a", 8), demand("b", 2)], H100, ())
    assert text.startswith("10 GPUs are needed, 8 are free")
    assert "a                 8 GPUs" in text


def test_gpus_that_the_user_names_are_taken_as_named() -> None:
    assert place([demand("a", 2), demand("b", 2)], H100, [("6", "7"), ("0", "1")]) == [("6", "7"), ("0", "1")]


def test_who_names_none_gets_what_nobody_named() -> None:
    assert place([demand("a", 2), demand("b", 2)], H100, [(), ("0", "2")]) == [("1", "3"), ("0", "2")]
    (text,) = told([demand("a", 7), demand("b", 2)], H100, [(), ("0", "2")])
    assert text.startswith("7 GPUs are needed, 6 are free")


def test_every_mistake_of_named_gpus_is_told_at_once() -> None:
    texts = told([demand("a", 2), demand("b", 2)], H100, [("0", "9"), ("3", "3")])
    assert [text.splitlines()[0] for text in texts] == ["there is no GPU 9", "b: needs one GPU for each rank"]
    assert "2 lists of GPUs for 1 servers" in told([demand("a")], H100, [("0",), ("1",)])[0]


def test_the_world_size_is_the_engines() -> None:
    (text,) = told([demand("a", 4)], H100, [("0", "1")])
    assert "world size  4, of the engine" in text


def test_an_engine_of_another_architecture_is_refused() -> None:
    (text,) = told([demand("a", sm=80)], H100, ())
    assert text.startswith("a: the engine is for another GPU")
    assert "GPU 0      SM 90, H100" in text


def test_one_gpu_may_be_shared_when_the_sum_fits() -> None:
    placed = place([demand("a", fraction=0.4), demand("b", fraction=0.4)], H100, [("0",), ("0",)])
    assert shared(placed)


def test_who_comes_second_has_only_what_the_first_left() -> None:
    # 79 - 15 = 64 GiB, of which 0.9 are the first one's KV cache: 6.4 GiB are left for 15 GiB of weights
    (text,) = told([demand("a"), demand("b")], H100, [("0",), ("0",)])
    assert text.startswith("b: does not fit into GPU 0")
    assert "free         6.4 of 80.0 GiB" in text


def test_a_gpu_that_others_have_filled_is_refused() -> None:
    full = [Card(device="0", sm=90, total=80 * GIB, free=10 * GIB, name="H100")]
    assert "a: does not fit into GPU 0" in told([demand("a")], full, ())[0]


def test_what_the_driver_does_not_tell_is_not_held_against_the_gpu() -> None:
    assert place([demand("a")], [Card(device="0", sm=90, total=0, free=0, name="GB200")], ()) == [("0",)]
