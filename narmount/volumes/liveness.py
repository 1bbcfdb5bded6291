"""Whether the mounts answer. The kernel asks one when it becomes the lower layer of an overlay, and waits for it without an end.

So each is asked before, at its control socket, by one caller at a time. That it does not answer holds for a moment: a mount that
hangs then costs all who wait for it as long as one of them. And only so many may be in the kernel for one of them, in case that
it answers there and nowhere else: the other threads are for those who want another one.
"""

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from narcore.errors import MountError
from narmount.daemon.control import read_status
from narmount.volumes.errors import CacheDead

ANSWER_SECONDS = 5.0  # a worker that was killed is replaced sooner
HOLDS_SECONDS = 1.0
AT_ONCE = 16  # for a mount that does not hang, one takes milliseconds


@dataclass(slots=True)
class _Pulse:
    free: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(AT_ONCE))
    asking: threading.Lock = field(default_factory=threading.Lock)
    missed: float = float("-inf")  # when it did not answer, by time.monotonic()


class Pulses:
    """Of the mounts of ``caches``. Thread-safe."""

    def __init__(self, caches: Iterable[str]) -> None:
        self._pulses = {cache: _Pulse() for cache in caches}

    @contextmanager
    def taken(self, cache: str, control: Path) -> Iterator[None]:
        """The kernel may be let ask it in here. ``control`` is its control socket. Raises CacheDead."""
        pulse = self._pulses[cache]
        if not pulse.free.acquire(timeout=ANSWER_SECONDS):
            raise CacheDead(f"the mount of the cache {cache} does not answer, and {AT_ONCE} wait for it already")
        try:
            _ask(pulse, cache, control)
            yield
        finally:
            pulse.free.release()


def _ask(pulse: _Pulse, cache: str, control: Path) -> None:
    if not control.exists():  # nobody can be asked
        return
    with pulse.asking:
        if time.monotonic() - pulse.missed < HOLDS_SECONDS:
            raise CacheDead(f"the mount of the cache {cache} does not answer")
        try:
            read_status(control, ANSWER_SECONDS)
        except MountError as error:
            pulse.missed = time.monotonic()
            raise CacheDead(f"the cache {cache}: {error}") from error
