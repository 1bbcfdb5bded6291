"""A circuit breaker: a store that keeps failing is not asked again for a while."""

import logging
import threading
from collections.abc import Callable

log = logging.getLogger("narcore.lookup")

# The store is checked after this many failures in a row, each of another file or of a connection. If the check fails, the circuit
# breaker opens. Each failed attempt after a pause doubles the next pause.
FAILURES = 3
PAUSE_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 300.0


class CircuitBreaker:
    """Decides whether a store may be asked, so that requests do not all wait for the timeout of a failing store. Thread-safe.

    One broken file does not open the breaker: repeated failures of one file count once, and the caller checks the store itself
    before the breaker opens. The breaker logs a line when it opens and when it closes, with ``url`` as the name of the store.
    ``clock`` returns seconds.
    """

    def __init__(self, url: str, clock: Callable[[], float]) -> None:
        self._url = url
        self._clock = clock
        self._lock = threading.Lock()
        self._failed_files: set[str] = set()  # at most FAILURES
        self._unreached = 0
        self._has_opened = False
        self._pause = PAUSE_SECONDS
        self._open_until = 0.0
        self._on_trial = False
        self._is_checking = False

    @property
    def is_open(self) -> bool:
        """Whether the store must not be asked now."""
        with self._lock:
            return self._has_opened and self._clock() < self._open_until

    def allows_call(self) -> bool:
        """Return whether to ask the store. After the pause, one caller may ask it, as a trial."""
        with self._lock:
            if not self._has_opened:
                return True
            if self._clock() < self._open_until:
                return False
            self._on_trial = True
            # If the trial reports no result in this time, another trial is allowed.
            self._open_until = self._clock() + self._pause
            return True

    def succeeded(self) -> None:
        """Report that the store answered a call or a check: the breaker closes."""
        with self._lock:
            was_open = self._has_opened
            self._failed_files.clear()
            self._unreached, self._pause = 0, PAUSE_SECONDS
            self._has_opened = self._on_trial = self._is_checking = False
        if was_open:
            log.info("%s answers again: circuit breaker closes", self._url)

    def failed(self, file: str | None) -> bool:
        """Report a failed call. ``file`` is the requested file, or None if no connection to the store was possible.

        Returns True after FAILURES failures in a row, and after a failed trial. The caller must then check the store, and call
        `succeeded` or `check_failed`.
        """
        with self._lock:
            if self._is_checking or not self._is_suspect(file):
                return False
            self._is_checking = True
            return True

    def _is_suspect(self, file: str | None) -> bool:
        if self._has_opened:
            # Calls that began before the breaker opened may still fail: only the trial counts.
            is_trial, self._on_trial = self._on_trial, False
            return is_trial
        if file is None:
            self._unreached += 1
        elif len(self._failed_files) < FAILURES:
            self._failed_files.add(file)
        return self._unreached + len(self._failed_files) >= FAILURES

    def check_failed(self) -> None:
        """Report that the check failed: the breaker opens, unless a call has succeeded since the check began."""
        with self._lock:
            if not self._is_checking:
                return
            pause, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE_SECONDS)
            self._open_until = self._clock() + pause
            self._has_opened, self._is_checking = True, False
        log.warning("%s keeps failing: circuit breaker opens; not asking it for %g s", self._url, pause)
