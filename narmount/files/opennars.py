"""Cached NARs that stay open, so that a read takes one system call."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from narcore.nars.opennar import OpenNar

# Each open NAR takes a descriptor (256 are a quarter of the default limit). An evicted NAR takes up disk space while it is open.
OPEN_MAX = 256
IDLE_SECONDS = 30.0


@dataclass(slots=True)
class _Entry:
    nar: OpenNar
    used: float
    users: int = 0
    dropped: bool = False


class OpenNars:
    """Open NARs by their row in `PathNumbers`. Thread-safe. A dropped NAR is closed when its last reader has released it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[int, _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def acquire(self, row: int) -> _Entry | None:
        """Return the open NAR of a row, or None. The caller has to `release` it."""
        with self._lock:
            entry = self._entries.get(row)
            if entry is not None:
                entry.users += 1
                entry.used = self._clock()
                self._entries.move_to_end(row)
            return entry

    def release(self, entry: _Entry) -> None:
        with self._lock:
            entry.users -= 1
            self._close_if_done(entry)

    def put(self, row: int, nar: OpenNar) -> None:
        entry = _Entry(nar, self._clock())
        with self._lock:
            self._drop(row)
            self._entries[row] = entry
            while len(self._entries) > OPEN_MAX:
                self._drop(next(iter(self._entries)))

    def drop(self, row: int) -> None:
        with self._lock:
            self._drop(row)

    def sweep(self) -> None:
        """Close NARs that were evicted or not read for a while. Marks the other NARs as used in the disk cache."""
        with self._lock:
            oldest = self._clock() - IDLE_SECONDS
            for row, entry in list(self._entries.items()):
                if entry.used < oldest or entry.nar.is_evicted:
                    self._drop(row)
                else:
                    entry.nar.touch()

    def close(self) -> None:
        with self._lock:
            for row in list(self._entries):
                self._drop(row)

    def _drop(self, row: int) -> None:
        entry = self._entries.pop(row, None)
        if entry is not None:
            entry.dropped = True
            self._close_if_done(entry)

    @staticmethod
    def _close_if_done(entry: _Entry) -> None:
        if entry.dropped and not entry.users:
            entry.nar.drop_pages()
            entry.nar.close()
