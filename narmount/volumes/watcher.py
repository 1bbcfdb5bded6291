"""Overlays learn what was published after they had looked for it: their cache of names is dropped when a mount has news."""

import logging
import random
import threading

from narcore.errors import MountError
from narmount.daemon.control import watch
from narmount.volumes.volumes import Volumes

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 30.0  # seconds between two tries to reach the mount
FLUSH_PAUSE = 0.5  # news come in bursts, and each flush remounts every overlay

# The kernel, and look-ups that are under way, may deny a name for so long after it is there (narmount.files.storepaths:
# MISSING_SECONDS, twice). Who looks for it all the time makes an overlay believe that, for ever; so it is flushed once more.
SETTLE_SECONDS = 5.0

log = logging.getLogger("narmount.volumes")


class Watcher:
    """Follows one cache's mount, over restarts of its worker, until it is closed. In two threads: one hears, one flushes."""

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
        """Nothing is flushed after this. The thread that hears ends with its connection, or with the process."""
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
            self._closing.wait(pause * random.uniform(0.5, 1))  # noqa: S311  many nodes, one upgrade
            pause = min(2 * pause, LONGEST_PAUSE)

    def _follow(self) -> bool:
        """Until the connection breaks; whether there was one."""
        was_there = False
        try:
            for names in watch(self._volumes.control(self._cache)):
                if self._closing.is_set():
                    break
                if names:
                    log.info("cache %s: %s appeared", self._cache, " ".join(names[:10]))
                if names or not was_there:  # what appeared before the connection was there may have been missed
                    self._news.set()
                was_there = True
        except (MountError, OSError) as error:
            log.debug("cache %s: %s", self._cache, error)
        return was_there
