"""What the cache has done so far, counted over all processes that share the directory and over their restarts."""

import json
import os
import threading
import time
from contextlib import suppress

from narcore.cache.layout import Layout
from narcore.cache.locks import locked, replacing

NAMES = ("hit", "miss", "join", "fill", "evict", "failure")
FLUSH_SECONDS = 1.0  # what a process that is killed may lose


class Counters:
    """Adds up in memory, and writes the sums to the directory once a second at most."""

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
        """Counting is no reason to fail: what can't be written now is written later."""
        with self._lock, suppress(OSError):
            self._flushed = time.monotonic()
            with locked(self._layout.lock):
                sums = self.read()
                self._write({name: sums[name] + self._pending[name] for name in NAMES})
            self._pending = dict.fromkeys(NAMES, 0)

    def read(self) -> dict[str, int]:
        """The sums that were written, by name."""
        try:
            written = json.loads(self._layout.counters.read_text())
            return {name: int(written.get(name, 0)) for name in NAMES}
        except (OSError, ValueError, AttributeError, TypeError):  # none yet, or spoiled: count anew
            return dict.fromkeys(NAMES, 0)

    def _write(self, sums: dict[str, int]) -> None:
        with replacing(self._layout.counters) as fd:
            os.write(fd, json.dumps(sums).encode())
