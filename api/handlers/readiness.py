"""The readiness check: whether a binary cache answers. The check runs in the background."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait

from narcore.concurrency.background import call_in_background
from narcore.errors import NarcoreError

log = logging.getLogger("api")

# If the last result is at least this old, in seconds, a request starts a new check. This request still gets the last result, so it
# does not wait for a store. Any number of requests cause at most one check per REFRESH_SECONDS.
REFRESH_SECONDS = 5.0

# A result of this age, in seconds, is not used any more: the request waits for a new result. Load balancers check more often.
STALE_SECONDS = 30.0

# How long a request waits for the first result, or for a new result if the last one is stale. By default, Kubernetes gives up
# after 1 s.
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
