"""Flushes the overlays of a mount when a name appears in the mount, since an overlay caches missing names indefinitely."""

import logging
import random
import threading

from narcore.errors import MountError
from narmount.daemon.control import watch
from narmount.volumes.volumes import Volumes

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 30.0  # seconds between two attempts to connect to the mount
FLUSH_PAUSE = 0.5  # seconds between two flushes: names appear in bursts, and each flush remounts every overlay

# After a name has appeared, the kernel and lookups in progress may report it as missing for this long (twice MISSING_SECONDS of
# narmount.files.storepaths). If a program looks up the name in this time, an overlay caches it as missing, without a time
# limit. So overlays are flushed once more afterwards.
SETTLE_SECONDS = 5.0

log = logging.getLogger("narmount.volumes")


class OverlayFlusher:
    """Flushes the overlays of one mount whenever the mount reports new names, until `close`. Restarts of the worker don't matter.

    One thread listens to the mount, and another flushes the overlays.
    """

    def __init__(self, volumes: Volumes, cache: str) -> None:
        self._volumes = volumes
        self._cache = cache
        self._closing = threading.Event()
        self._news = threading.Event()
        self._threads = [
            threading.Thread(target=run, name=f"{what}-{cache}", daemon=True)
            for what, run in (("watch", self._listen), ("flush", self._flush))
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop flushing. The thread that listens ends with its connection, or with the process."""
        self._closing.set()
        self._news.set()
        self._threads[1].join()

    def _flush(self) -> None:
        while True:
            self._news.wait()
            self._news.clear()
            if self._closing.is_set():
                return
            self._volumes.flush(self._cache)
            if self._closing.wait(FLUSH_PAUSE):
                return
            if not self._news.wait(SETTLE_SECONDS):
                self._volumes.flush(self._cache)

    def _listen(self) -> None:
        pause = FIRST_PAUSE
        while not self._closing.is_set():
            if self._follow():
                pause = FIRST_PAUSE
            self._closing.wait(pause * random.uniform(0.5, 1))  # noqa: S311  spreads the load after an upgrade of many nodes
            pause = min(2 * pause, LONGEST_PAUSE)

    def _follow(self) -> bool:
        """Listen until the connection breaks. Returns whether there was a connection."""
        was_connected = False
        try:
            for names in watch(self._volumes.control(self._cache)):
                if self._closing.is_set():
                    break
                if names:
                    log.info("cache %s: %s appeared", self._cache, " ".join(names[:10]))
                # When the connection begins, names may have appeared that were not reported.
                if names or not was_connected:
                    self._news.set()
                was_connected = True
        except (MountError, OSError) as error:
            log.debug("cache %s: %s", self._cache, error)
        return was_connected
