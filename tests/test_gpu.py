"""Leases of GPUs: all or none, across processes, and freed by a killed one."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rules.errors import StepFailed
from rules.gpu import Gpus, cards, machine
from tests.standins import triton

FOUR = ("0", "1", "2", "3")
HOLDER = """
import sys, time
from pathlib import Path
from rules.gpu import Gpus
with Gpus(("0", "1", "2", "3"), Path(sys.argv[1])).lease(int(sys.argv[2]), print) as lease:
    print("held", *lease.devices, flush=True)
    time.sleep(60)
"""


def hold(locks: Path, count: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(locks), str(count)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("held")
    return process


def free(gpus: Gpus) -> int:
    for count in (4, 3, 2, 1):
        held = gpus._try(count)
        for file in held.values():
            file.close()
        if held:
            return count
    return 0


def test_more_than_the_machine_has_fails_at_once_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match=r"not enough GPUs[\s\S]*asked for +8[\s\S]*4: 0, 1, 2, 3"):
        Gpus(FOUR, tmp_path).lease(8, print).__enter__()


def test_an_action_without_gpus_leases_none_and_waits_for_nobody(tmp_path: Path) -> None:
    with Gpus((), tmp_path).lease(0, print) as lease:
        assert lease.devices == ()


def test_two_leases_never_share_a_gpu(tmp_path: Path) -> None:
    gpus = Gpus(FOUR, tmp_path)
    with gpus.lease(2, print) as one, gpus.lease(2, print) as two:
        assert sorted(one.devices + two.devices) == list(FOUR)


def test_a_killed_process_frees_its_gpus(tmp_path: Path) -> None:
    process = hold(tmp_path, 4)
    told: list[str] = []

    def hear(text: str) -> None:
        told.append(text)
        process.kill()

    with Gpus(FOUR, tmp_path).lease(4, hear) as lease:
        assert lease.devices == FOUR
    assert told == ["waiting for 4 of 4 GPUs"]
    process.communicate()


def test_the_lease_outlives_us_while_the_command_that_inherited_it_runs(tmp_path: Path) -> None:
    gpus = Gpus(FOUR, tmp_path)
    with gpus.lease(4, print) as lease:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=lease.descriptors)
    assert free(gpus) == 0
    child.communicate(b"\n")
    assert free(gpus) == 4


def test_a_request_that_waits_for_all_is_not_starved_by_requests_for_one(tmp_path: Path) -> None:
    gpus = Gpus(FOUR, tmp_path)
    first = gpus.lease(1, print)
    first.__enter__()
    order: list[str] = []
    waiting = threading.Event()

    def want(count: int, name: str) -> None:
        with gpus.lease(count, lambda _: waiting.set()):
            order.append(name)

    big = threading.Thread(target=want, args=(4, "all"))
    big.start()
    assert waiting.wait(60)
    small = threading.Thread(target=want, args=(1, "one"))
    small.start()
    time.sleep(0.3)  # three GPUs are free: without a queue it would have one of them by now
    assert order == []
    first.__exit__(None, None, None)
    big.join(60)
    small.join(60)
    assert order == ["all", "one"]


def test_held_gpus_stay_held_until_their_holder_and_what_it_started_have_ended(tmp_path: Path) -> None:
    gpus = Gpus(FOUR, tmp_path)
    gpus.hold(["1", "3"])
    assert Gpus(FOUR, tmp_path).idle() == ("0", "2")
    with pytest.raises(StepFailed, match="GPU 3 is in use by another doit"):
        Gpus(FOUR, tmp_path).hold(["2", "3"])
    assert Gpus(FOUR, tmp_path).idle() == ("0", "2"), "a refusal takes nothing"
    child = subprocess.Popen(["/bin/sh", "-c", "read _"], stdin=subprocess.PIPE, close_fds=False)
    gpus.let_go()
    assert Gpus(FOUR, tmp_path).idle() == ("0", "2"), "the child has them"
    child.communicate(b"\n")
    assert Gpus(FOUR, tmp_path).idle() == FOUR


def test_cards_are_those_that_may_be_used_in_the_order_in_which_cuda_sees_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    triton.install(tmp_path / "standins", tmp_path / "path", gpus=4, free=1024)
    monkeypatch.setenv("PATH", str(tmp_path / "path"), prepend=":")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-2,0")
    machine.cache_clear()
    try:
        first, second = cards()
        assert (first.device, second.device) == ("GPU-2", "0")
        assert (first.sm, first.free, first.name) == (90, 1 << 30, "NVIDIA H100 80GB HBM3")
    finally:
        machine.cache_clear()


def test_what_the_driver_cannot_tell_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    triton.install(tmp_path / "standins", tmp_path / "path", gpus=1, sm="[N/A]")
    monkeypatch.setenv("PATH", str(tmp_path / "path"), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    machine.cache_clear()
    try:
        assert [card.sm for card in cards()] == [0]
    finally:
        machine.cache_clear()
