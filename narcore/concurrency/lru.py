"""A cache with a limit on its total weight. The least recently used entry is evicted first; entries may expire."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LruMemory(Generic[K, V]):
    """An LRU cache. Thread-safe. A value heavier than ``max_weight`` is also cached, but alone: it evicts all other entries."""

    def __init__(self, max_weight: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_weight = max_weight
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[K, tuple[V, int, float]] = OrderedDict()
        self._weight = 0

    def get(self, key: K) -> V | None:
        """Return the value of ``key``; None if ``key`` has no value or the value has expired."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            value, _weight, deadline = entry
            if self._clock() >= deadline:
                self._drop(key)
                return None
            self._entries.move_to_end(key)
            return value

    def put(self, key: K, value: V, *, weight: int = 1, seconds: float = float("inf")) -> None:
        with self._lock:
            self._drop(key)
            self._entries[key] = (value, weight, self._clock() + seconds)
            self._weight += weight
            while self._weight > self._max_weight and len(self._entries) > 1:
                self._drop(next(iter(self._entries)))

    def discard(self, key: K) -> None:
        with self._lock:
            self._drop(key)

    def _drop(self, key: K) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._weight -= entry[1]
