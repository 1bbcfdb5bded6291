"""The event loop of a worker: sockets that become ready, calls from other threads, and timeouts, all handled in one thread."""

import os
import selectors
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, TypeVar

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE

# How many seconds of one turn are spent on writing to connections. The remaining writable connections wait for the next turn, which
# handles readable connections first. So /healthz waits only milliseconds, even if thousands of clients download files.
WRITE_SECONDS = 0.01

# How many seconds of one turn are spent on the functions passed to ``call_later``. They end the responses to clients that are gone:
# each takes a fraction of a millisecond for the access log and the metrics. Thousands of clients may vanish at the same time.
LATER_SECONDS = 0.005

T = TypeVar("T")


class Timeouts(Generic[T]):
    """Items that all have the same timeout. Their deadlines are therefore in the order in which the items were started.

    ``expired`` is called with each item whose time has run out. All times are in seconds of one clock.
    """

    def __init__(self, seconds: float, expired: Callable[[T], None]) -> None:
        self._seconds = seconds
        self._expired = expired
        self._deadlines: dict[T, float] = {}

    def __len__(self) -> int:
        return len(self._deadlines)

    def __contains__(self, item: T) -> bool:
        return item in self._deadlines

    def first(self) -> T | None:
        """Return the item that was started first, or None."""
        return next(iter(self._deadlines), None)

    def start(self, item: T, now: float) -> None:
        """Start or restart the timeout of an item."""
        self._deadlines.pop(item, None)
        self._deadlines[item] = now + self._seconds

    def stop(self, item: T) -> None:
        self._deadlines.pop(item, None)

    def shorten(self, seconds: float, now: float) -> None:
        """Let each started item time out at most ``seconds`` from now, and each later item at most ``seconds`` after its start."""
        self._seconds = min(self._seconds, seconds)
        for item, deadline in self._deadlines.items():
            self._deadlines[item] = min(deadline, now + seconds)

    def next(self) -> float | None:
        """Return the earliest deadline, or None."""
        return next(iter(self._deadlines.values()), None)

    def run(self, now: float) -> None:
        """Remove the items whose time has run out, and call ``expired`` with each."""
        while (deadline := self.next()) is not None and deadline <= now:
            item = next(iter(self._deadlines))
            del self._deadlines[item]
            self._expired(item)


class Loop:
    """One turn waits for events and handles them. ``now`` is the time of the current turn.

    ``call_soon`` may be called from any thread and ``wake`` also from a signal handler; all other methods belong to the thread that
    calls ``turn``.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.now = clock()
        self._selector = selectors.DefaultSelector()
        self._timeouts: list[Timeouts[Any]] = []
        self._calls: deque[Callable[[], None]] = deque()
        self._later: deque[Callable[[], None]] = deque()
        self._writable: dict[Callable[[], None], None] = {}  # an ordered set
        self._is_woken = False
        self._reading, self.wakeup_descriptor = os.pipe()
        for descriptor in (self._reading, self.wakeup_descriptor):
            os.set_blocking(descriptor, False)
        self._selector.register(self._reading, READ, self._drain_pipe)

    def watch(self, descriptor: int, events: int, ready: Callable[[], None]) -> None:
        """Call ``ready`` when the descriptor is readable (READ) or writable (WRITE), until ``forget``.

        ``ready`` may be called once more after ``forget``. It may also be called although the descriptor is not ready.
        """
        self._selector.register(descriptor, events, ready)

    def watch_for(self, descriptor: int, events: int, ready: Callable[[], None]) -> None:
        """Change the events of a watched descriptor."""
        self._selector.modify(descriptor, events, ready)

    def forget(self, descriptor: int) -> None:
        """Stop watching a descriptor. It must still be open."""
        self._selector.unregister(descriptor)

    def timeouts(self, seconds: float, expired: Callable[[T], None]) -> Timeouts[T]:
        """Return new timeouts, which are checked in every turn."""
        timeouts = Timeouts(seconds, expired)
        self._timeouts.append(timeouts)
        return timeouts

    def call_soon(self, call: Callable[[], None]) -> None:
        """Call ``call`` in the next turn."""
        self._calls.append(call)
        if not self._is_woken:
            self._is_woken = True
            self.wake()

    def call_later(self, call: Callable[[], None]) -> None:
        """Call ``call`` when the loop has time for it: in each turn at the end, for LATER_SECONDS."""
        self._later.append(call)

    def wake(self) -> None:
        """End the wait of the current turn."""
        with suppress(BlockingIOError):  # a full pipe wakes the loop too
            os.write(self.wakeup_descriptor, b"\0")

    def turn(self, seconds: float) -> None:
        """Wait at most ``seconds`` for an event, then handle events, calls and timeouts that are due."""
        ready = self._selector.select(max(0.0, self._wait(seconds)))
        self.now = self.clock()
        # Calls first: a client may have sent its next request before the loop was told that the response is complete.
        self._is_woken = False
        for _ in range(len(self._calls)):
            self._calls.popleft()()
        for key, events in ready:
            if events & READ:
                key.data()
            else:
                self._writable[key.data] = None
        self._write()
        self._call_later()
        for timeouts in self._timeouts:
            timeouts.run(self.now)

    def close(self) -> None:
        self._selector.close()
        os.close(self._reading)
        os.close(self.wakeup_descriptor)

    def _write(self) -> None:
        """Handle writable connections, from the one that has waited longest."""
        # Measured from now: the turn may have begun more than WRITE_SECONDS ago.
        until = self.clock() + WRITE_SECONDS
        while self._writable and self.clock() < until:
            ready = next(iter(self._writable))
            del self._writable[ready]
            ready()

    def _call_later(self) -> None:
        until = self.clock() + LATER_SECONDS
        while self._later and self.clock() < until:
            self._later.popleft()()

    def _wait(self, seconds: float) -> float:
        if self._calls or self._writable or self._later:
            return 0.0
        deadlines = [deadline for timeouts in self._timeouts if (deadline := timeouts.next()) is not None]
        return min(seconds, min(deadlines) - self.clock()) if deadlines else seconds

    def _drain_pipe(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._reading, 4096)
