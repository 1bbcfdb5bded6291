"""How fast the bytes of a fill arrive."""

import time
from collections.abc import Callable

# A slow fill gives its slot to another fill, because almost any other fill makes better use of it. A fill is slow if it receives
# less than 64 KiB/s for a minute. A store that restarts, or a congested line, usually pauses for a shorter time.
SLOW_SECONDS = 60.0
SLOW_RATE = 64 << 10  # bytes of the NAR per second


class Pace:
    """Measures whether a fill is slow: less than SLOW_RATE over SLOW_SECONDS. ``clock`` returns seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._position = 0

    def is_slow(self, position: int) -> bool:
        """Report that the fill has ``position`` bytes. Call this method regularly.

        Once per SLOW_SECONDS, a call checks the rate since the previous check, and returns True if the rate was below SLOW_RATE.
        All other calls return False.
        """
        seconds = self._clock() - self._since
        if seconds < SLOW_SECONDS:
            return False
        slow = position - self._position < SLOW_RATE * seconds
        self._since, self._position = self._clock(), position
        return slow
