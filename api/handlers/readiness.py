"""The readiness check: whether a binary cache answers, known from a check in the background."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait

from narcore.concurrency.background import call_in_background
from narcore.errors import NarcoreError

log = logging.getLogger("api")

# How old a result may be before a request starts the next check. A request gets the previous result, so it does not wait for a
# store, and any number of requests cause one check in this time.
REFRESH_SECONDS = 5.0

# After this time without a check, a result says nothing: the request waits for a new one. Load balancers ask more often.
STALE_SECONDS = 30.0

# How long a request waits for the first check, or for one after a long pause. Kubernetes gives up after 1 s by default.
WAIT_SECONDS = 2.0


class Readiness:
    """Runs ``check``, which raises NarcoreError, at most every REFRESH_SECONDS. Thread-safe."""

    def __init__(self, check: Callable[[], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._check = check
        self._clock = clock
        self._lock = threading.Lock()
        self._running: Future[None] | None = None
        self._is_ready = False
        self._checked: float | None = None  # when the last check ended

    def is_ready(self) -> bool:
        """Return the result of the last check. Waits at most WAIT_SECONDS, and only if there is no recent result."""
        with self._lock:
            if self._age() >= REFRESH_SECONDS and self._running is None:
                self._running = call_in_background(self._refresh)
            running, is_stale = self._running, self._age() >= STALE_SECONDS
        if running is not None and is_stale:
            wait([running], WAIT_SECONDS)
        return self._is_ready and self._age() < STALE_SECONDS

    def _age(self) -> float:
        return float("inf") if self._checked is None else self._clock() - self._checked

    def _refresh(self) -> None:
        is_ready = False
        try:
            self._check()
            is_ready = True
        except NarcoreError as error:
            log.warning("not ready, no cache answers: %s", error)
        finally:
            with self._lock:
                self._is_ready, self._checked, self._running = is_ready, self._clock(), None
