"""Concurrent calls with the same key share one call."""

import copy
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class SingleFlight(Generic[K, V]):
    """Calls with the same key that overlap in time share one call. Nothing is remembered after it has ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[K, Future[V]] = {}

    def do(self, key: K, call: Callable[[], V]) -> V:
        """The result of ``call``, or of the one that is under way for ``key``; its error is raised for everyone."""
        with self._lock:
            flight = self._flights.get(key)
            leads = flight is None
            if flight is None:
                flight = self._flights[key] = Future()
        if leads:
            self._fly(key, flight, call)
            return flight.result()
        error = flight.exception()
        if error is not None:
            raise copy.copy(error)  # each its own: a shared one would collect the traceback of each
        return flight.result()

    def _fly(self, key: K, flight: Future[V], call: Callable[[], V]) -> None:
        try:
            result = call()
        except BaseException as error:
            self._land(key)
            flight.set_exception(error)
            if not isinstance(error, Exception):
                raise
        else:
            self._land(key)
            flight.set_result(result)

    def _land(self, key: K) -> None:
        with self._lock:
            del self._flights[key]
