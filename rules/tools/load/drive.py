"""The load itself: so many requests at once (closed loop), or at given moments (open loop), from worker processes.

A closed loop keeps `concurrency` requests in flight; an open loop sends at its moments, whatever is still in flight.
The two are never to be compared. On SIGINT or SIGTERM workers stop and hand over what they have.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import multiprocessing as mp
import os
import random
import resource
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from types import FrameType
from typing import Any, cast

from asking import Protocol
from wire import Connection, Refused, Sent

START_NS = 200_000_000  # from the last worker's readiness to the first request
SIGNALS = (signal.SIGINT, signal.SIGTERM)
_MILLION = 1_000_000_000


@dataclass(frozen=True)
class Load:
    """One load: `mode` is concurrency or request_rate (per second), until `requests` or `seconds` are over.

    Request i takes prompt (first + i) modulo their number. `arrival` of an open loop is poisson or constant.
    """

    mode: str
    value: float
    requests: int | None
    seconds: float | None
    arrival: str = "closed"
    seed: int = 0
    timeout: float = 300.0
    first: int = 0

    def moments(self) -> list[int]:
        """When an open loop sends, in ns from its beginning; the same for the same seed."""
        chosen, now = random.Random(self.seed), 0.0
        found: list[int] = []
        while (self.requests is None or len(found) < self.requests) and (self.seconds is None or now < self.seconds):
            found.append(round(now * _MILLION))
            now += chosen.expovariate(self.value) if self.arrival == "poisson" else 1 / self.value
        return found


@dataclass
class Done:
    """What was sent, in the order of sending; `interrupted` when a signal cut it short; CPU seconds of the client."""

    sent: list[Sent] = field(default_factory=list)
    interrupted: bool = False
    cpu_seconds: float = 0.0


def drive(
    protocol: Protocol,
    bodies: Sequence[bytes],
    load: Load,
    processes: int,
    heard: Callable[[int, int], bool],
) -> Done:
    """Runs a load with `processes` workers. `heard` gets (answered, failed) twice a second; True cuts it short."""
    context = mp.get_context("fork")  # prompts are shared, and nothing of gRPC has been started here
    shares = [_Share(load=load, number=number, of=processes) for number in range(processes)]
    pipes, workers = [], []
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with _deaf() as asked:
        for share in shares:
            ours, theirs = context.Pipe()
            worker = context.Process(target=_work, args=(protocol, bodies, share, theirs))
            worker.start()
            theirs.close()
            pipes.append(ours)
            workers.append(worker)
        done = _gather(pipes, workers, asked, heard)
        for worker in workers:
            worker.join()
        done.interrupted |= bool(asked)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    done.cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    done.sent.sort(key=lambda one: one.sent)
    return done


def _gather(pipes: list[Pipe], workers: list[Any], asked: list[int], heard: Callable[[int, int], bool]) -> Done:
    """Starts the workers together and hears them out; a worker that died is a failure of ours."""
    done, counts = Done(), {}
    for pipe in pipes:
        pipe.recv()
    told = False
    begin = time.monotonic_ns() + START_NS
    for pipe in pipes:
        pipe.send(begin)
    open_pipes: list[Any] = list(pipes)
    while open_pipes:
        if asked and not told:  # a signal that was meant for us alone, or came before they could hear it
            told = True
            for worker in workers:
                os.kill(worker.pid, signal.SIGTERM)
        for pipe in cast("list[Pipe]", wait(open_pipes, timeout=0.2)):
            try:
                kind, value = pipe.recv()
            except EOFError as error:
                raise RuntimeError("BUG: a load worker died") from error
            if kind == "count":
                counts[pipe] = value
                if heard(sum(ok for ok, _ in counts.values()), sum(bad for _, bad in counts.values())):
                    asked.append(signal.SIGTERM)
                continue
            sent, interrupted = value
            done.sent += sent
            done.interrupted |= interrupted
            open_pipes.remove(pipe)
    return done


@dataclass(frozen=True)
class _Share:
    """What worker `number` of `of` does of a load."""

    load: Load
    number: int
    of: int

    def users(self) -> int:
        """Requests that it keeps in flight."""
        total = int(self.load.value)
        return total // self.of + (self.number < total % self.of)

    def numbers(self) -> Iterator[int]:
        """The requests of a closed loop that are its own."""
        number = self.number
        while self.load.requests is None or number < self.load.requests:
            yield number
            number += self.of


def _work(protocol: Protocol, bodies: Sequence[bytes], share: _Share, pipe: Pipe) -> None:
    """A worker process."""
    worker = _Worker(protocol, bodies, share)
    interrupted = asyncio.run(worker.run(pipe))
    for one in worker.sent:
        one.worker = share.number
    pipe.send(("sent", (worker.sent, interrupted)))


class _Worker:
    def __init__(self, protocol: Protocol, bodies: Sequence[bytes], share: _Share) -> None:
        self.sent: list[Sent] = []
        self._protocol, self._bodies, self._share, self._load = protocol, bodies, share, share.load
        self._idle: list[Connection] = []
        self._stopped = asyncio.Event()

    async def run(self, pipe: Pipe) -> bool:
        """Sends its share. Returns whether a signal ended it."""
        stopped = self._stopped = _on_signals()
        pipe.send("ready")
        begin = pipe.recv()
        gc.collect()
        gc.freeze()
        gc.disable()  # a pause of the collector would be a latency of the server's
        teller = asyncio.create_task(self._tell(pipe))
        await asyncio.sleep(max(0, begin - time.monotonic_ns()) / _MILLION)
        work = asyncio.create_task(self._open(begin) if self._load.mode == "request_rate" else self._closed(begin))
        stop = asyncio.create_task(stopped.wait())
        await asyncio.wait((work, stop), return_when=asyncio.FIRST_COMPLETED)
        for task in (stop, teller, *(() if work.done() else (work,))):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work
        for connection in self._idle:
            await connection.close()
        return stopped.is_set()

    async def _tell(self, pipe: Pipe) -> None:
        while True:
            await asyncio.sleep(0.5)
            failed = sum(one.error is not None for one in self.sent)
            answered = sum(bool(one.times) and one.error is None for one in self.sent)
            pipe.send(("count", (answered, failed)))

    async def _closed(self, begin: int) -> None:
        numbers = self._share.numbers()
        end = None if self._load.seconds is None else begin + round(self._load.seconds * _MILLION)
        await asyncio.gather(*(self._user(numbers, end) for _ in range(self._share.users())))

    async def _user(self, numbers: Iterator[int], end: int | None) -> None:
        connection = self._protocol.connection()
        try:
            for number in numbers:
                over = end is not None and time.monotonic_ns() >= end
                if over or self._stopped.is_set():  # wait_for may lose a cancellation when a request ends just then
                    break
                await self._ask(connection, number, 0)
        finally:
            await connection.close()

    async def _open(self, begin: int) -> None:
        moments, tasks = self._load.moments(), []
        try:
            for number in range(self._share.number, len(moments), self._share.of):
                due = begin + moments[number]
                await asyncio.sleep(max(0, due - time.monotonic_ns()) / _MILLION)
                tasks.append(asyncio.create_task(self._once(number, due)))
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _once(self, number: int, due: int) -> None:
        connection = self._idle.pop() if self._idle else self._protocol.connection()
        await self._ask(connection, number, due)
        self._idle.append(connection)

    async def _ask(self, connection: Connection, number: int, due: int) -> None:
        """One request, whatever comes of it."""
        prompt = (self._load.first + number) % len(self._bodies)
        one = Sent(prompt=prompt, sent=time.monotonic_ns(), due=due)
        self.sent.append(one)
        try:
            await asyncio.wait_for(connection.ask(self._bodies[prompt], one), self._load.timeout)
        except (TimeoutError, asyncio.TimeoutError):
            one.error = ("timeout", f"no end within {self._load.timeout:g} s")
        except asyncio.CancelledError:
            one.cancelled = True
            raise
        except Refused as error:
            one.error, one.code = (error.kind, str(error)), error.code
        except OSError as error:
            one.error = (f"connection: {type(error).__name__}", str(error))


@contextlib.contextmanager
def _deaf() -> Iterator[list[int]]:
    """Signals are only noted here meanwhile: the workers hear them too, and hand over what they have."""
    asked: list[int] = []
    before = {number: signal.signal(number, lambda number, _: asked.append(number)) for number in SIGNALS}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _on_signals() -> asyncio.Event:
    """Is set by a signal. Not by the loop's own handlers: those are gone while results are handed over."""
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(stopped.set)

    for number in SIGNALS:
        signal.signal(number, end)
    return stopped


def lag(sent: Sequence[Sent]) -> Mapping[str, float]:
    """How late an open loop sent, in ms: when that is much, the client was the limit. {} for a closed loop."""
    import numpy as np

    late = [(one.sent - one.due) / 1e6 for one in sent if one.due]
    return {"lag_p50_ms": float(np.median(late)), "lag_p99_ms": float(np.percentile(late, 99))} if late else {}
