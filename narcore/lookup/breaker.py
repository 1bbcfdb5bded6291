"""A circuit breaker: a store that keeps failing is not asked again for a while."""

import logging
import threading
from collections.abc import Callable

log = logging.getLogger("narcore.lookup")

# The circuit breaker opens after this many failures in a row. Each failed attempt after a pause doubles the next pause.
FAILURES = 3
PAUSE_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 300.0


class CircuitBreaker:
    """Decides whether a store may be asked, so that requests do not all wait for the timeout of a failing store. Thread-safe.

    ``url`` names the store in the log, which gets a line when the breaker opens and when it closes. ``clock`` returns seconds.
    """

    def __init__(self, url: str, clock: Callable[[], float]) -> None:
        self._url = url
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._pause = PAUSE_SECONDS
        self._open_until = 0.0
        self._on_trial = False

    @property
    def is_open(self) -> bool:
        """Whether the store must not be asked now."""
        with self._lock:
            return self._failures >= FAILURES and self._clock() < self._open_until

    def allows_call(self) -> bool:
        """Whether to ask the store. After the pause one caller is allowed, as a trial."""
        with self._lock:
            if self._failures < FAILURES:
                return True
            if self._clock() < self._open_until:
                return False
            self._on_trial = True
            self._open_until = self._clock() + self._pause  # if the trial never reports, another is allowed then
            return True

    def succeeded(self) -> None:
        """Report a call that the store answered: the breaker closes."""
        with self._lock:
            was_open = self._failures >= FAILURES
            self._failures, self._pause, self._on_trial = 0, PAUSE_SECONDS, False
        if was_open:
            log.info("%s answers again: circuit breaker closes", self._url)

    def failed(self) -> None:
        """Report a failed call: the breaker opens after FAILURES in a row, and after each failed trial."""
        with self._lock:
            was_open = self._failures >= FAILURES
            self._failures += 1
            # Calls that began before the breaker opened may still fail: they must not extend the pause.
            if self._failures < FAILURES or (was_open and not self._on_trial):
                return
            pause, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE_SECONDS)
            self._open_until = self._clock() + pause
            self._on_trial = False
        log.warning("%s keeps failing: circuit breaker opens; not asking it for %g s", self._url, pause)
