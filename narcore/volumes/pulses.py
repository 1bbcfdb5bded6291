"""Whether the mounts answer. The kernel asks one when it becomes the lower layer of an overlay, and waits for it without an end.

So each is asked before, at its control socket, by one caller at a time. That it does not answer holds for a moment: a mount that
hangs then costs all who wait for it as long as one of them, and does not take the threads of those who want another one.
"""

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from narcore.errors import MountError
from narcore.mount.control import read_status
from narcore.volumes.errors import CacheDead

ANSWER_SECONDS = 5.0  # a worker that was killed is replaced sooner
HOLDS_SECONDS = 1.0


@dataclass(slots=True)
class _Pulse:
    lock: threading.Lock = field(default_factory=threading.Lock)
    missed: float = float("-inf")  # when it did not answer, by time.monotonic()


class Pulses:
    """Of the mounts of ``caches``. Thread-safe."""

    def __init__(self, caches: Iterable[str]) -> None:
        self._pulses = {cache: _Pulse() for cache in caches}

    def feel(self, cache: str, control: Path) -> None:
        """``control`` is its control socket; where there is none, nobody can be asked. Raises CacheDead."""
        if not control.exists():
            return
        pulse = self._pulses[cache]
        with pulse.lock:
            if time.monotonic() - pulse.missed < HOLDS_SECONDS:
                raise CacheDead(f"the mount of the cache {cache} does not answer")
            try:
                read_status(control, ANSWER_SECONDS)
            except MountError as error:
                pulse.missed = time.monotonic()
                raise CacheDead(f"the cache {cache}: {error}") from error
