"""Concurrent calls with the same key share one call."""

import copy
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


Wait = Callable[[Future[V], Callable[[], int | None]], object]


class SingleFlight(Generic[K, V]):
    """Shares one call among concurrent calls with the same key. Results are not cached.

    ``wait`` is called with the Future of the running call, and with a function that returns the ID of the thread that runs the
    call. It waits for the Future. An error that ``wait`` raises goes only to the caller that was waiting.
    """

    def __init__(self, *, wait: Wait[V] = lambda future, _thread: future.exception()) -> None:
        self._wait = wait
        self._lock = threading.Lock()
        self._calls: dict[K, tuple[Future[V], int]] = {}

    def do(self, key: K, call: Callable[[], V]) -> V:
        """Return the result of ``call``, or of the running call for ``key``. An error is raised in all callers."""
        with self._lock:
            running = self._calls.get(key)
            future, thread = self._calls[key] = running or (Future(), threading.get_ident())
        if running is None:
            self._run(key, future, call)
            return future.result()
        self._wait(future, lambda: thread)
        error = future.exception()
        if error is not None:
            raise copy.copy(error)  # a copy per caller: a shared error would collect the tracebacks of all callers
        return future.result()

    def _run(self, key: K, future: Future[V], call: Callable[[], V]) -> None:
        try:
            result = call()
        except BaseException as error:
            self._remove(key)
            future.set_exception(error)
            if not isinstance(error, Exception):
                raise
        else:
            self._remove(key)
            future.set_result(result)

    def _remove(self, key: K) -> None:
        with self._lock:
            del self._calls[key]
