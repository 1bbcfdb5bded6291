"""How fast the bytes of a fill arrive."""

import time
from collections.abc import Callable

# A slow fill gives its slot to another one. Almost any other download uses a slot better than one with
# less than 64 KiB/s. A minute is longer than the pauses of a store that restarts, or of a congested line.
SLOW_SECONDS = 60.0
SLOW_RATE = 64 << 10  # bytes of the NAR per second


class Pace:
    """Measures whether a fill is slow: less than SLOW_RATE over SLOW_SECONDS. ``clock`` returns seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._position = 0

    def is_slow(self, position: int) -> bool:
        """Report that the fill has ``position`` bytes. Returns True if it was slow until now, once per SLOW_SECONDS."""
        seconds = self._clock() - self._since
        if seconds < SLOW_SECONDS:
            return False
        slow = position - self._position < SLOW_RATE * seconds
        self._since, self._position = self._clock(), position
        return slow
