"""Prefetching closures in the background: a store path, its references, their references, and so on."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

from narcore.errors import NarcoreError
from narcore.lookup.pathinfo import PathInfo

log = logging.getLogger("narmount")

THREADS = 2  # only a few, so that prefetching does not delay processes that are waiting for a store path
PATHS_MAX = 100_000  # the most store paths of all closures together; the largest NixOS systems have about 10,000

Fetch = Callable[[str], PathInfo | None]


class Prefetch:
    """A queue of store paths, and threads that fetch them. ``fetch`` fetches a store path by its base name. Thread-safe."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._changed = threading.Condition()
        self._queue: deque[str] = deque()
        self._seen: set[str] = set()  # store paths added since the queue was empty
        self._busy = 0
        self._threads = 0

    @property
    def pending(self) -> int:
        """The number of store paths that still have to be fetched, as far as known."""
        return len(self._queue) + self._busy

    def add(self, base_names: Sequence[str]) -> None:
        """Add these store paths and their closures to the queue. Returns immediately."""
        with self._changed:
            for name in base_names:
                self._add(name)
            for number in range(self._threads, THREADS):
                threading.Thread(target=self._run, name=f"prefetch-{number}", daemon=True).start()
            self._threads = THREADS
            self._changed.notify_all()

    def _add(self, name: str) -> None:
        if name in self._seen:
            return
        if len(self._seen) >= PATHS_MAX:
            log.warning("%s: %d store paths are waiting; not prefetching it", name, PATHS_MAX)
            return
        self._seen.add(name)
        self._queue.append(name)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._queue:
                    self._changed.wait()
                name = self._queue.popleft()
                self._busy += 1
            references = self._references(name)
            with self._changed:
                self._busy -= 1
                for reference in references:
                    self._add(reference)
                if not self.pending:
                    self._seen.clear()
                self._changed.notify_all()

    def _references(self, name: str) -> Sequence[str]:
        """Fetch the store path, and return its references."""
        try:
            info = self._fetch(name)
        except (NarcoreError, OSError) as error:
            log.warning("%s: %s; not prefetching it", name, error)
            return ()
        if info is None:
            log.warning("%s: no store has it; not prefetching it", name)
            return ()
        return info.narinfo.references
