"""The upkeep of a mount: periodic tasks of its worker, which run in threads of their own so that no request waits for them."""

import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress

from narcore.errors import NarcoreError
from narmount.daemon.controlserver import ControlServer
from narmount.files.filesystem import FileSystem
from narmount.files.storepaths import StorePaths
from narmount.fuse.server import FuseServer

log = logging.getLogger("narmount")

TICK_SECONDS = 1.0
SWEEP_TICKS = 5
LOOKUPS_PER_TICK = 16  # of missing names, which are looked up again


class Appeared:
    """Names that have appeared in a store. One thread takes the names, and any thread may add names."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._earlier: list[str] = []
        self._lock = threading.Lock()

    def add(self, name: str) -> None:
        with self._lock:
            self._names.append(name)

    def take(self) -> list[str]:
        """Return the names that were added before the last call. By now, the kernel has read all answers from before that call."""
        with self._lock:
            names, self._earlier, self._names = self._earlier, self._names, []
        return names


class Upkeep:
    """Threads that, at every tick, replace a dead holder, announce names, sweep files, and look missing names up again.

    ``holder`` is the process id of the holder. If the holder is no longer the parent, ``replace_holder`` is called. ``tick`` is in
    seconds.
    """

    def __init__(
        self,
        *,
        holder: int,
        replace_holder: Callable[[], None],
        paths: StorePaths,
        appeared: Appeared,
        files: FileSystem,
        server: FuseServer,
        control: ControlServer,
        tick: float = TICK_SECONDS,
    ) -> None:
        self._holder = holder
        self._replace_holder = replace_holder
        self._paths = paths
        self._appeared = appeared
        self._files = files
        self._server = server
        self._control = control
        self._tick = tick
        self._ticks = 0
        self._closed = threading.Event()

    def start(self) -> None:
        """Start a thread for each task: a task that waits for a store or the disk must not delay the check of the holder."""
        for task in (self._watch_holder, self.maintain, self._look_up_missing):
            threading.Thread(target=self._every_tick, args=(task,), name=task.__name__, daemon=True).start()

    def close(self) -> None:
        """Start no further task. Does not wait for running tasks."""
        self._closed.set()

    def _every_tick(self, do: Callable[[], None]) -> None:
        while not self._closed.wait(self._tick):
            try:
                do()
            except Exception:
                log.exception("upkeep of the mount failed; trying again")

    def _watch_holder(self) -> None:
        if os.getppid() != self._holder:
            log.warning("the holder of the mount has died; this worker becomes the holder")
            self._replace_holder()

    def maintain(self) -> None:
        """Tell watchers which names had appeared by the last tick, and sweep files at every SWEEP_TICKS-th call."""
        names = self._appeared.take()
        if names:
            log.info("appeared in a store: %s", " ".join(names))
            self._control.announce(names)
        self._ticks += 1
        # While a request waits, sweep more often: the request may need disk space that evicted files still occupy.
        if self._ticks % SWEEP_TICKS == 0 or self._server.waiting:
            self._files.sweep()

    def _look_up_missing(self) -> None:
        for name in self._paths.missing_names.due()[:LOOKUPS_PER_TICK]:
            with suppress(NarcoreError, OSError):  # a store does not answer; the name is looked up again later
                self._paths.look_for(name)
