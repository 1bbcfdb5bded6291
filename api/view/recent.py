"""The store paths that were last opened on this instance, for the landing page."""

import threading
from collections import deque


class RecentPaths:
    """The last ``size`` store paths that were opened, without duplicates, in memory. Thread-safe."""

    def __init__(self, size: int = 8) -> None:
        self._lock = threading.Lock()
        self._paths: deque[str] = deque(maxlen=size)

    def add(self, store_path: str) -> None:
        if self._paths and self._paths[0] == store_path:  # the common case: the requests of one page
            return
        with self._lock:
            if store_path in self._paths:
                self._paths.remove(store_path)
            self._paths.appendleft(store_path)

    def latest_first(self) -> list[str]:
        with self._lock:
            return list(self._paths)
