"""Notices clients that have gone, for requests whose next response may be far away."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

PERIOD_S = 0.1


class Canceller:
    """Asks, while there are requests, which were cancelled, and calls `stop(name)` once for each."""

    def __init__(self, stop: Callable[[str], None]) -> None:
        self._stop = stop
        self._watched: dict[str, Callable[[], bool]] = {}
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def watching(self, name: str, is_cancelled: Callable[[], bool]) -> Iterator[None]:
        """Watch one request for as long as the block lasts; it must end before the final response is sent.

        Triton frees what `is_cancelled` asks together with that response, and a question after it ends the server.
        """
        with self._wake:
            self._watched[name] = is_cancelled
            self._wake.notify_all()
        try:
            yield
        finally:
            with self._wake:
                self._watched.pop(name, None)

    def close(self) -> None:
        """End the thread."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing:
            with self._wake:
                while not (self._watched or self._closing):
                    self._wake.wait()
                gone = [name for name, is_cancelled in self._watched.items() if is_cancelled()]
                for name in gone:
                    del self._watched[name]
            for name in gone:
                self._stop(name)
            time.sleep(PERIOD_S)
