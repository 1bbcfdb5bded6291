"""Names that were looked up and are in no store: asked for again now and then, since they may be published any moment.

An overlay on top of the mount remembers that a name is not there for as long as it likes, and never asks again. So whoever mounts
such overlays has to be told when one of these names has appeared.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

# What a test run waits for is published in the minutes after it was first looked for; what was a mistake never is.
NAMES_MAX = 256
FIRST_SECONDS = 5.0
LONGEST_SECONDS = 300.0
GIVE_UP_SECONDS = 24 * 3600.0


class _Denied:
    __slots__ = ("due", "pause", "since")

    def __init__(self, now: float) -> None:
        self.since = now
        self.pause = FIRST_SECONDS
        self.due = now + self.pause


class DeniedNames:
    """Thread-safe; the names that were denied last are remembered."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._names: OrderedDict[str, _Denied] = OrderedDict()

    def __len__(self) -> int:
        return len(self._names)

    def add(self, name: str) -> None:
        """It was not there just now."""
        with self._lock:
            if name not in self._names:
                self._names[name] = _Denied(self._clock())
            if len(self._names) > NAMES_MAX:
                self._names.popitem(last=False)

    def discard(self, name: str) -> bool:
        """It is there; whether it had been denied."""
        with self._lock:
            return self._names.pop(name, None) is not None

    def due(self) -> list[str]:
        """Those to ask for now. Each is due again later, after twice the time."""
        now = self._clock()
        with self._lock:
            for name in [name for name, denied in self._names.items() if now - denied.since > GIVE_UP_SECONDS]:
                del self._names[name]
            found = [name for name, denied in self._names.items() if denied.due <= now]
            for name in found:
                denied = self._names[name]
                denied.pause = min(2 * denied.pause, LONGEST_SECONDS)
                denied.due = now + denied.pause
        return found
