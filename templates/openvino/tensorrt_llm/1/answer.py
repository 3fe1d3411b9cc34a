"""One sequence on its way: from new token ids to responses."""

from __future__ import annotations

from typing import Any

from cutting import Cutter, StopWords
from job import Channel, Job
from pieces import Pieces
from reply import response


class Answer:
    """What has been generated for a job and what of it has been sent. Used by the engine's thread only."""

    def __init__(self, job: Job, channel: Channel, pieces: Pieces, number: int | None = None) -> None:
        """`number` tells the streams of ensembles apart."""
        self.number = number if job.wanted.stream else None
        self.job = job
        self.channel = channel
        self.context_logits: Any = None  # float32 [n, vocabulary], where they are wanted
        self._cutter = Cutter(pieces, StopWords(job.stop_words, pieces))
        self._cutting = job.wanted.stream or bool(job.stop_words)
        self._log_probs: list[float] = []
        self._sent = 0

    @property
    def sent(self) -> int:
        """Ids sent."""
        return self._sent

    @property
    def stopped(self) -> bool:
        """A stop word was found: the engine need not go on."""
        return self._cutter.stopped

    def add(self, ids: list[int], log_probs: list[float]) -> None:
        """Take what a step generated."""
        if not self._cutting:
            self._cutter.ids += ids
            self._log_probs += log_probs
            return
        for token, log_prob in zip(ids, log_probs, strict=True):
            if token in self.job.sampling.end_ids or self.stopped:
                return
            self._cutter.add(token)
            self._log_probs.append(log_prob)

    def stream(self) -> None:
        """Send what is safe to send, as one response."""
        if self.job.wanted.stream and self._cutter.safe > self._sent:
            self.channel.answer(self._piece(self._cutter.safe))

    def end(self) -> None:
        """Send what is left. A stream that has sent all only closes; every request gets one response at least."""
        ids = self._finished_ids()
        if not self.job.wanted.stream:
            self.channel.end(self._whole([ids], [self._matching(len(ids))]))
        elif len(ids) > self._sent or not self.channel.sent:
            self.channel.end(self._piece(len(ids)))
        else:
            self.channel.end()

    def end_beams(self, beams: list[tuple[list[int], list[float]]]) -> None:
        """Send the finished beams, best first, each cut at its first stop word."""
        finished = []
        for ids, log_probs in beams:
            one = Answer(self.job, self.channel, self._cutter.pieces)
            one.add(ids, log_probs)
            kept = one._finished_ids()
            finished.append((kept, one._matching(len(kept))))
        self.channel.end(self._whole([ids for ids, _ in finished], [values for _, values in finished]))

    def _finished_ids(self) -> list[int]:
        ids = self._cutter.ids
        return ids[:-1] if ids and ids[-1] in self.job.sampling.end_ids else ids

    def _matching(self, count: int) -> list[float]:
        """A log-probability per id; ids that spell out the rest before a stop word have none of their own: 0."""
        return [*self._log_probs[:count], *[0.0] * (count - len(self._log_probs))]

    def _piece(self, end: int) -> Any:
        start, self._sent = self._sent, end
        ids, log_probs = self._cutter.ids[start:end], self._matching(end)
        return response(self.job, [ids], [log_probs], start=start, stream=self.number)

    def _whole(self, beams: list[list[int]], log_probs: list[list[float]]) -> Any:
        prompt = self.job.prompt.tolist() if self.job.wanted.include_input else []
        return response(self.job, [[*prompt, *ids] for ids in beams], log_probs, context_logits=self.context_logits)
