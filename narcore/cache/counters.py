"""Counts of cache events, summed over all processes that share the directory. Counts survive restarts."""

import json
import os
import threading
import time
from contextlib import suppress

from narcore.cache.layout import Layout
from narcore.cache.locks import locked, replacing

NAMES = ("hit", "miss", "join", "fill", "evict", "failure")
FLUSH_SECONDS = 1.0  # a killed process loses the events of at most this period


class Counters:
    """Counts in memory, and writes the sums to the directory at most once per FLUSH_SECONDS. Thread-safe."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._lock = threading.Lock()
        self._pending = dict.fromkeys(NAMES, 0)
        self._flushed = 0.0

    def add(self, name: str, count: int = 1) -> None:
        with self._lock:
            self._pending[name] += count
            if time.monotonic() - self._flushed < FLUSH_SECONDS:
                return
        self.flush()

    def flush(self) -> None:
        """Write the counts. If writing fails, a later flush writes them: counting must not cause errors."""
        with self._lock, suppress(OSError):
            self._flushed = time.monotonic()
            with locked(self._layout.lock):
                sums = self.read()
                self._write({name: sums[name] + self._pending[name] for name in NAMES})
            self._pending = dict.fromkeys(NAMES, 0)

    def read(self) -> dict[str, int]:
        """Return the sums in the directory, by name."""
        try:
            written = json.loads(self._layout.counters.read_text())
            return {name: int(written.get(name, 0)) for name in NAMES}
        except (OSError, ValueError, AttributeError, TypeError):  # no file yet, or an invalid one: start from 0
            return dict.fromkeys(NAMES, 0)

    def _write(self, sums: dict[str, int]) -> None:
        with replacing(self._layout.counters) as fd:
            os.write(fd, json.dumps(sums).encode())
