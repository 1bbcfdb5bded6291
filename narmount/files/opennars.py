"""The NARs on disk that are held open, so that a read takes one system call."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from narcore.nars.cachednar import OpenNar

# Each takes a descriptor (256 are a quarter of what a process may have), and keeps the space on disk of one that was evicted.
OPEN_MAX = 256
IDLE_SECONDS = 30.0


class _Held:
    __slots__ = ("dropped", "nar", "used", "users")

    def __init__(self, nar: OpenNar) -> None:
        self.nar = nar
        self.users = 0
        self.used = 0.0
        self.dropped = False


class OpenNars:
    """By row. Thread-safe: what is dropped is closed when the last who reads from it has released it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._held: OrderedDict[int, _Held] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def acquire(self, row: int) -> _Held | None:
        """To be released."""
        with self._lock:
            held = self._held.get(row)
            if held is not None:
                held.users += 1
                held.used = self._clock()
                self._held.move_to_end(row)
            return held

    def release(self, held: _Held) -> None:
        with self._lock:
            held.users -= 1
            self._close_if_done(held)

    def put(self, row: int, nar: OpenNar) -> None:
        held = _Held(nar)
        held.used = self._clock()
        with self._lock:
            self._drop(row)
            self._held[row] = held
            while len(self._held) > OPEN_MAX:
                self._drop(next(iter(self._held)))

    def drop(self, row: int) -> None:
        with self._lock:
            self._drop(row)

    def sweep(self) -> None:
        """Let go of those that were evicted or that nobody has read from for a while; those that stay count as used."""
        with self._lock:
            oldest = self._clock() - IDLE_SECONDS
            for row, held in list(self._held.items()):
                if held.used < oldest or held.nar.is_evicted:
                    self._drop(row)
                else:
                    held.nar.touch()

    def close(self) -> None:
        with self._lock:
            for row in list(self._held):
                self._drop(row)

    def _drop(self, row: int) -> None:
        held = self._held.pop(row, None)
        if held is not None:
            held.dropped = True
            self._close_if_done(held)

    @staticmethod
    def _close_if_done(held: _Held) -> None:
        if held.dropped and not held.users:
            held.nar.drop_pages()
            held.nar.close()
