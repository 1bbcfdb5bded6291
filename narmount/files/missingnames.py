"""Names that were looked up and that no store has. They are looked up again at intervals, since they may be published at any time.

An overlay on top of the mount remembers missing names indefinitely and never looks them up again. So the mount tells the
program that mounts overlays when one of the missing names appears.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

# If a test run waits for a path, the path is published within minutes after its first lookup. A mistyped name is never published.
NAMES_MAX = 256
FIRST_SECONDS = 5.0
LONGEST_SECONDS = 300.0
GIVE_UP_SECONDS = 24 * 3600.0


@dataclass(slots=True)
class _MissingName:
    since: float
    due: float
    pause: float


class MissingNames:
    """The most recent missing names. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._names: OrderedDict[str, _MissingName] = OrderedDict()

    def __len__(self) -> int:
        return len(self._names)

    def add(self, name: str) -> None:
        """Remember a name that no store has."""
        with self._lock:
            if name not in self._names:
                now = self._clock()
                self._names[name] = _MissingName(now, now + FIRST_SECONDS, FIRST_SECONDS)
            if len(self._names) > NAMES_MAX:
                self._names.popitem(last=False)

    def discard(self, name: str) -> bool:
        """Forget a name that a store has. Returns whether it was missing."""
        with self._lock:
            return self._names.pop(name, None) is not None

    def due(self) -> list[str]:
        """Return the names to look up again now. The interval between two lookups of a name doubles each time."""
        now = self._clock()
        with self._lock:
            for name in [name for name, missing in self._names.items() if now - missing.since > GIVE_UP_SECONDS]:
                del self._names[name]
            found = [name for name, missing in self._names.items() if missing.due <= now]
            for name in found:
                missing = self._names[name]
                missing.pause = min(2 * missing.pause, LONGEST_SECONDS)
                missing.due = now + missing.pause
        return found
