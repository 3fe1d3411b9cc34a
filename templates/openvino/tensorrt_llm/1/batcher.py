"""The in-flight batcher: one thread owns OpenVINO GenAI's pipeline and steps it while there is work.

`execute()` of the model only hands over jobs. A job joins the running batch at the next step and leaves it when it
ends, is cancelled, or finds a stop word; its place is free at once. The thread sleeps while there is nothing to do.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from answer import Answer
from engine import Engine
from metrics import Metrics
from reply import failure
from sampling import generation_config
from settings import BLOCK, Settings

CACHE_METRICS_S = 0.2


@dataclass(kw_only=True)
class Running:
    """An answer in the making, with the pipeline's handle once it has a place in the batch."""

    answer: Answer
    handle: Any = None
    cancelled: bool = False

    @property
    def places(self) -> int:
        """Sequences that it takes in a batch."""
        return self.answer.job.sampling.beam_width


class Batcher:
    """`submit`, `cancel` and `stop` may be called from any thread; all else happens in the engine's own."""

    def __init__(self, engine: Engine, settings: Settings, metrics: Metrics, cancelled_code: Any) -> None:
        self._load = engine.load
        self._pipeline = engine.load()
        self._genai = engine.genai
        self._openvino = engine.openvino
        self._settings = settings
        self._metrics = metrics
        self._cancelled_code = cancelled_code
        self._waiting: deque[Running] = deque()
        self._batch: list[Running] = []
        self._wake = threading.Condition()
        self._stopping = False
        self._numbers = 0
        self._cache_seen = 0.0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._report()
        self._thread.start()

    def submit(self, answers: list[Answer]) -> None:
        """Queue the jobs of one request. Raises ValueError when the queue is full."""
        with self._wake:
            limit = self._settings.max_queue_size
            held = len(self._waiting) + len(self._batch)
            if limit and held + len(answers) > self._settings.max_batch_size + limit:
                raise ValueError(f"the queue is full: {held} requests in flight, {limit} may wait (max_queue_size)")
            self._waiting.extend(Running(answer=answer) for answer in answers)
            self._wake.notify_all()

    def cancel(self, request_id: str) -> None:
        """Give up every job of a request, as upstream's input `stop` does."""
        with self._wake:
            for running in (*self._waiting, *self._batch):
                running.cancelled |= running.answer.channel.request_id == request_id

    def live(self) -> list[Running]:
        """Jobs that have not ended and are not known to be cancelled; waits until there are some. Empty at the end."""
        with self._wake:
            while not (self._waiting or self._batch or self._stopping):
                self._wake.wait()
            return [] if self._stopping else [one for one in (*self._waiting, *self._batch) if not one.cancelled]

    @property
    def stopping(self) -> bool:
        """True once `stop` was called."""
        return self._stopping

    def stop(self) -> None:
        """End the threads; what is in flight is answered as cancelled."""
        with self._wake:
            self._stopping = True
            for running in (*self._waiting, *self._batch):
                running.cancelled = True
            self._wake.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while self._admit():
            try:
                if self._pipeline.has_non_finished_requests():
                    self._pipeline.step()
            except RuntimeError as reason:
                self._start_over(reason)
            self._collect()
            self._report()

    def _admit(self) -> bool:
        """Wait for work, then let jobs leave and join. False when it is time to end."""
        with self._wake:
            while not (self._waiting or self._batch or self._stopping or self._pipeline.has_non_finished_requests()):
                self._wake.wait()
            self._leave()
            self._join()
            return not self._stopping or bool(self._batch)

    def _leave(self) -> None:
        """Cancelled jobs go: those that wait at once, those in the batch at the next step."""
        for running in [running for running in self._waiting if running.cancelled]:
            self._waiting.remove(running)
            running.answer.channel.end(self._cancelled_failure())
        for running in self._batch:
            if running.cancelled:
                running.handle.cancel()

    def _join(self) -> None:
        """Those who wait take the free places, first come first served."""
        taken = sum(running.places for running in self._batch)
        while self._waiting:
            places = self._waiting[0].places
            if taken and taken + places > self._settings.max_batch_size:
                return
            running = self._waiting.popleft()
            if self._add(running):
                self._batch.append(running)
                taken += places

    def _add(self, running: Running) -> bool:
        job = running.answer.job
        prompt = self._openvino.Tensor(job.prompt.astype("int64").reshape(1, -1))
        self._numbers += 1
        try:
            config = generation_config(self._genai, job.sampling)
            running.handle = self._pipeline.add_request(self._numbers, prompt, config)
        except (RuntimeError, TypeError, ValueError) as reason:
            running.answer.channel.end(failure(f"refused by the engine: {last_line(reason)}"))
            return False
        return True

    def _collect(self) -> None:
        ended = [running for running in self._batch if self._advance(running)]
        if ended:
            with self._wake:
                self._batch = [running for running in self._batch if running not in ended]

    def _advance(self, running: Running) -> bool:
        """Read what the step brought. True when the job has ended."""
        answer, handle = running.answer, running.handle
        status = handle.get_status()
        if running.places == 1 and handle.can_read():
            for output in handle.read().values():
                answer.add(output.generated_ids, output.generated_log_probs)
        if status == self._genai.GenerationStatus.RUNNING and not answer.stopped:
            answer.stream()
            return False
        if answer.stopped:
            handle.stop()
        self._end(running, status)
        return True

    def _end(self, running: Running, status: Any) -> None:
        """Answer for the last time."""
        states, answer = self._genai.GenerationStatus, running.answer
        if running.cancelled or status in (states.CANCEL, states.STOP):
            answer.channel.end(self._cancelled_failure())
        elif status == states.IGNORED:
            tokens = len(answer.job.prompt) + answer.job.sampling.max_tokens
            cache = self._settings.kv_cache_tokens
            answer.channel.end(failure(f"{tokens} tokens do not fit the KV cache of {cache} tokens"))
        elif running.places > 1:
            beams = sorted(running.handle.read_all(), key=lambda beam: -beam.score)
            answer.end_beams([(beam.generated_ids, beam.generated_log_probs) for beam in beams])
        else:
            answer.end()

    def _start_over(self, reason: RuntimeError) -> None:
        """The pipeline failed in a step: its state is unknown, so all in it fail and a new one is loaded."""
        with self._wake:
            failed, self._batch = self._batch, []
        for running in failed:
            running.answer.channel.end(failure(f"the engine failed: {last_line(reason)}"))
        self._pipeline = self._load()

    def _cancelled_failure(self) -> Any:
        return failure("cancelled", self._cancelled_code)

    def _report(self) -> None:
        """Show the numbers that changed; the cache's at most every CACHE_METRICS_S, and when all is quiet."""
        scheduled, waiting = len(self._batch), len(self._waiting)
        limit = self._settings.max_batch_size
        self._metrics.requests(active=scheduled + waiting, scheduled=scheduled, waiting=waiting, limit=limit)
        now = time.monotonic()
        if scheduled and now - self._cache_seen < CACHE_METRICS_S:
            return
        self._cache_seen = now
        used = self._pipeline.get_metrics().cache_usage
        self._metrics.cache(blocks=self._settings.kv_blocks, used_percent=used, tokens_per_block=BLOCK)


def last_line(reason: Exception) -> str:
    """What GenAI's checks say, without the place in its sources."""
    lines = [line for line in str(reason).strip().splitlines() if line.strip()]
    return lines[-1] if lines else type(reason).__name__
