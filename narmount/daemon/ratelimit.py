"""A limit for the number of log lines: a process that looks up many names could otherwise fill the log."""

import logging
import threading
import time
from collections.abc import Callable

LINES = 20
SECONDS = 10.0


class LogRateLimit(logging.Filter):
    """Lets at most LINES records pass in SECONDS; errors always pass. The next record that passes says how many were left out."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._lock = threading.Lock()
        self._until = 0.0
        self._passed = self._held_back = 0

    def filter(self, record: logging.LogRecord) -> bool:
        with self._lock:
            now = self._clock()
            if now >= self._until:
                self._until, self._passed = now + SECONDS, 0
            if self._passed >= LINES and record.levelno < logging.ERROR:
                self._held_back += 1
                return False
            self._passed += 1
            if self._held_back:
                record.msg, record.args = f"{record.getMessage()} ({self._held_back} more messages were left out)", ()
                self._held_back = 0
            return True
