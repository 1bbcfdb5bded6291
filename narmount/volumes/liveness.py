"""Checks that a mount answers before the kernel uses it.

When a mount becomes the lower layer of an overlay, the kernel sends it a request and waits for the response without a time limit.
So the control socket of the mount is asked first. One caller at a time asks, and a negative answer stays valid for a moment. So,
if a mount hangs, many callers together wait as long as one caller.

A mount may answer at its control socket and still hang in the kernel. So the number of threads that use one mount is limited.
This leaves threads for the other mounts.
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

ANSWER_SECONDS = 5.0  # a worker that was killed is replaced in less time
VALID_SECONDS = 1.0  # how long a negative answer stays valid
AT_ONCE = 16  # threads for one mount; if it does not hang, a thread takes milliseconds


@dataclass(slots=True)
class _Cache:
    free: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(AT_ONCE))
    asking: threading.Lock = field(default_factory=threading.Lock)
    failed_at: float = float("-inf")  # by time.monotonic()


class Liveness:
    """Checks whether the mounts of ``caches`` answer. Thread-safe."""

    def __init__(self, caches: Iterable[str]) -> None:
        self._caches = {name: _Cache() for name in caches}

    @contextmanager
    def checked(self, name: str, control: Path) -> Iterator[None]:
        """Enter a ``with`` block in which the kernel may use the mount of a cache. ``control`` is the control socket of the mount.

        Raises CacheDead if the mount does not answer, or if too many threads use it already.
        """
        cache = self._caches[name]
        if not cache.free.acquire(timeout=ANSWER_SECONDS):
            raise CacheDead(
                f"the mount of the cache {name} does not answer, and {AT_ONCE} calls are waiting for it already"
            )
        try:
            _ask(cache, name, control)
            yield
        finally:
            cache.free.release()


def _ask(cache: _Cache, name: str, control: Path) -> None:
    if not control.exists():  # the mount has no socket to ask
        return
    with cache.asking:
        if time.monotonic() - cache.failed_at < VALID_SECONDS:
            raise CacheDead(f"the mount of the cache {name} does not answer")
        try:
            read_status(control, ANSWER_SECONDS)
        except MountError as error:
            cache.failed_at = time.monotonic()
            raise CacheDead(f"the cache {name}: {error}") from error
