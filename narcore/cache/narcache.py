"""The disk cache: decompressed, verified NARs in a directory that any number of processes may share."""

import atexit
import copy
import logging
import os
import stat
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from narcore.cache import failures, unpacked, upkeep
from narcore.cache.cached import CachedNar, Verifier, has_digest
from narcore.cache.counters import Counters
from narcore.cache.errors import LeaderGaveUp, NoReadersLeft, as_cache_failure
from narcore.cache.eviction import Entry, RecentEvictions, entries, make_room, remove
from narcore.cache.fill import Fill
from narcore.cache.layout import FileKey, Layout, NarKey, is_verified, touch
from narcore.cache.listings import load_listing
from narcore.cache.openfiles import OpenFiles
from narcore.cache.part import Fetch, PartFile
from narcore.cache.reserve import Reserve
from narcore.cache.slots import Slots
from narcore.cache.upkeep import remove_bad
from narcore.concurrency.lru import LruMemory
from narcore.concurrency.singleflight import SingleFlight
from narcore.errors import CacheFailure, CapacityError, NarcoreError
from narcore.formats.listing import NarListing
from narcore.stores.waits import StoreWaits
from narcore.trace import Trace, silent

log = logging.getLogger("narcore.cache")

CLEAN_SECONDS = 600.0  # the time between two removals of the files that dead processes left
STOP_SECONDS = 2.0  # how long a process that exits waits for its downloads to end

FILL_PATIENCE = 10.0  # how many seconds a fill waits for a slot and for room; its readers wait too

UNPACK_TRIES = 3  # how many times to unpack a file that is evicted before it can be opened


class NarCache:
    """NARs by their hash. Thread-safe, and safe to use from several processes.

    ``size`` is called with the directory, after its creation, and returns the size limit of the cache in bytes. ``waits`` limits
    how many readers wait for a store that sends nothing; further readers get StoreUnresponsive. The constructor and all methods
    raise CacheFailure if the directory can't be used.
    """

    def __init__(
        self,
        directory: Path,
        *,
        size: Callable[[Path], int],
        max_fills: int,
        patience: float = FILL_PATIENCE,
        trace: Trace = silent,
        waits: StoreWaits | None = None,
    ) -> None:
        self._waits = waits or StoreWaits()
        self.layout = Layout(directory)
        self.counters = Counters(self.layout)
        self._trace = trace
        self._slots = Slots(self.layout, max_fills, patience=patience)
        self._verifier = Verifier()
        self._files = OpenFiles()
        self._lock = threading.Lock()
        # The fills by NAR and source. Fills of one NAR from several sources share a part file, like fills in several processes.
        self._fills: dict[tuple[NarKey, str], Fill] = {}
        # All running fills. If new readers can't join a fill any more, a second fill of the same NAR may run at the same time.
        self._running: set[Fill] = set()
        self._fetched = 0  # how many bytes all ended fills received
        self._failed: LruMemory[tuple[NarKey, str], NarcoreError] = LruMemory(1000)
        self._unpacking: SingleFlight[FileKey, None] = SingleFlight()
        self._warned: LruMemory[str, bool] = LruMemory(100)
        self._cleaned = time.monotonic()
        with as_cache_failure():
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            check_private(directory)
            self.limit = size(directory)
            self._reserve = Reserve(self.layout, self.limit)
            self.clean()
        atexit.register(self.close)

    def close(self) -> None:
        """End the downloads of this process. Other processes that read from them continue the downloads."""
        atexit.unregister(self.close)
        deadline = time.monotonic() + STOP_SECONDS
        with self._lock:
            fills = list(self._fills.values())
        for fill in fills:
            fill.stop()
        for fill in fills:
            fill.join_thread(max(0.0, deadline - time.monotonic()))
        self._reserve.close()
        self.counters.flush()

    # --- complete NARs

    def open(self, key: NarKey) -> CachedNar | None:
        """Return the NAR, or None if it is not cached. A file without the mark is hashed first; a wrong file is removed."""
        nar = self._open(key)
        if nar is None:
            return None
        touch(nar.fd)
        self._note("hit", key)
        return nar

    def is_cached(self, key: NarKey) -> bool:
        """Return whether the cache has a file with the name of the NAR. Only ``open`` verifies the file."""
        return os.path.exists(self.layout.nar(key.digits))  # noqa: PTH110  Path.exists raises for a directory that can't be read

    def listing(self, key: NarKey) -> NarListing | None:
        """Return the listing of a cached NAR, or None if it is not cached or its listing can't be read."""
        nar = self._open(key)
        if nar is None:
            return None
        try:
            return self.listing_of(key, nar)
        except CacheFailure as error:
            self._warn_once(str(error))
            return None
        finally:
            nar.close()

    def listing_of(self, key: NarKey, nar: CachedNar) -> NarListing:
        """Return the listing of an open NAR. Raises CacheFailure."""
        with as_cache_failure():
            return load_listing(self.layout, key, nar.fd)

    def _open(self, key: NarKey) -> CachedNar | None:
        path = self.layout.nar(key.digits)
        try:
            file = self._files.open(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._warn_once(f"{path} can't be opened: {error.strerror}")
            return None
        try:
            status = self._verifier.status(file.fd, key)
        except OSError as error:  # for example a bad sector
            self._warn_once(f"{path} can't be read: {error.strerror}")
            status = None
        except BaseException:
            self._files.close(file)
            raise
        if status is None:
            if not _has_other_size(key.digits, file.fd):
                remove_bad(self.layout, key, file.fd)
            self._files.close(file)
            return None
        self._files.share(file)
        return CachedNar(
            file.fd,
            status,
            discard=partial(remove_bad, self.layout, key, file.fd),
            close=partial(self._files.close, file),
        )

    # --- unpacked files

    def open_unpacked(self, file: FileKey, nar: CachedNar) -> int:
        """Return a descriptor of an unpacked file of an open NAR, for the caller to close. Unpacks the file if it does not exist.

        Raises CacheFailure.
        """
        for _ in range(UNPACK_TRIES):
            fd = unpacked.open_unpacked(self.layout, file)
            if fd is not None:
                touch(fd)
                return fd
            self._unpacking.do(file, partial(self._unpack, file, nar))
        raise CacheFailure(
            "an unpacked file was evicted several times before it could be opened; the cache is too small"
        )

    def _unpack(self, file: FileKey, nar: CachedNar) -> None:
        with as_cache_failure():
            unpacked.unpack(self.layout, file, nar, reserve=self._reserve, on_evict=self._evicted)

    # --- fills

    def joinable(self, key: NarKey, *, source: str = "") -> Fill | None:
        """Return this process's running fill of a NAR from ``source``, or None. Adds a reader: the caller must call ``leave``."""
        with self._lock:
            fill = self._fills.get((key, source))
            if fill is None or not fill.join():
                return None
        self._note("join", key)
        return fill

    def fill(
        self,
        key: NarKey,
        fetch: Fetch,
        *,
        source: str = "",
        store: str = "",
        on_filled: Callable[[], None] | None = None,
    ) -> Fill:
        """Return the fill of a NAR; start a fill with ``fetch`` if none runs. Adds a reader: the caller must call ``leave``.

        ``source`` names the file that ``fetch`` reads, ``store`` is the URL of its store. If this file is damaged, a fill from
        another source can still succeed. ``on_filled`` is called in the thread of the fill once the NAR is cached. Raises
        CacheFailure if the NAR is larger than the whole cache. If a fill from the same source failed a few seconds ago, raises the
        error of that fill.
        """
        if key.size > self.limit:
            raise CacheFailure(f"a NAR of {key.size} bytes is larger than the cache")
        remembered = self._failed.get((key, source)) or failures.recall(self.layout.error(key), source)
        if remembered is not None:
            raise copy.copy(remembered)
        self._reserve.release_for(key.size)
        fill, begun = self._join_or_make(key, fetch, source, store, on_filled)
        self._note("miss" if begun else "join", key)
        if begun:
            fill.start()
        return fill

    def bytes_fetched(self, key: NarKey) -> int:
        """Return how many bytes of a NAR have arrived, in this or another process; 0 if this process has no fill of the NAR."""
        with self._lock:
            return max((fill.available for (nar, _source), fill in self._fills.items() if nar == key), default=0)

    def total_bytes_fetched(self) -> int:
        """Return how many bytes all fills of this process have received. The number grows as long as bytes arrive."""
        with self._lock:
            return self._fetched + sum(fill.available for fill in self._running)

    def _join_or_make(
        self, key: NarKey, fetch: Fetch, source: str, store: str, on_filled: Callable[[], None] | None
    ) -> tuple[Fill, bool]:
        with self._lock:
            fill = self._fills.get((key, source))
            if fill is not None and fill.join():
                return fill, False
            part = PartFile(
                self.layout, key, source=source, limit=self.limit, slots=self._slots, on_evict=self._evicted
            )
            on_end = partial(self._ended, on_filled)
            fill = self._fills[key, source] = Fill(part, fetch, store=store, waits=self._waits, on_end=on_end)
            self._running.add(fill)
            fill.join()
            return fill, True

    def _ended(self, on_filled: Callable[[], None] | None, fill: Fill, error: BaseException | None) -> None:
        key = fill.part.key
        if isinstance(error, NarcoreError) and not isinstance(error, CapacityError):
            # A copy: the traceback of the original would keep the chunks that were being read.
            self._failed.put((key, fill.part.source), copy.copy(error), seconds=failures.SECONDS)
        with self._lock:
            self._running.discard(fill)
            self._fetched += fill.available
            if self._fills.get((key, fill.part.source)) is fill:
                del self._fills[key, fill.part.source]
        if isinstance(error, CacheFailure) and not isinstance(error, NoReadersLeft | LeaderGaveUp):
            self._warn_once(str(error))
        if not isinstance(error, NoReadersLeft):
            self._note("failure" if error else "fill", key)
        if on_filled is not None and error is None:
            on_filled()
        if time.monotonic() - self._cleaned > CLEAN_SECONDS:
            self.clean()

    def _evicted(self, evicted: list[Entry]) -> None:
        for entry in evicted:
            if entry.file is None:  # unpacked files are not reported: they can be made again without a download
                self._note("evict", NarKey(entry.digits, entry.size))

    # --- upkeep

    def entries(self) -> list[Entry]:
        """Return every complete NAR and unpacked file, least recently used first. Raises CacheFailure."""
        with as_cache_failure():
            return entries(self.layout)

    def clean(self) -> int:
        """Remove the files that dead processes left; return how many. Files of running processes stay."""
        self._cleaned = time.monotonic()
        return upkeep.clean(self.layout)

    def collect(self) -> list[Entry]:
        """Call `clean`, and evict entries until the cache is below its limit; return the evicted entries. Raises CacheFailure."""
        self.clean()
        recent = RecentEvictions()
        with as_cache_failure():
            evicted = make_room(self.layout, NarKey("", 0), self.limit, recent=recent) or recent.take_unreported()
        self._evicted(evicted)
        return evicted

    def clear(self) -> list[Entry]:
        """Remove every entry; return the removed entries. Raises CacheFailure."""
        removed = self.entries()
        with as_cache_failure():
            for entry in removed:
                remove(self.layout, entry)
        self.clean()
        return removed

    def _note(self, event: str, key: NarKey) -> None:
        self.counters.add(event)
        self._trace(f"cache.{event}", {"nar_hash": key.digits, "nar_size": key.size})

    def _warn_once(self, message: str) -> None:
        """Log a warning once an hour, not once per request."""
        if not self._warned.get(message):
            self._warned.put(message, True, seconds=3600)
            log.warning("%s; the affected NARs are not cached until this is fixed", message)


def _has_other_size(digits: str, fd: int) -> bool:
    """Return whether the file has the right hash but not the size in the narinfo. In this case the narinfo is wrong."""
    try:
        return is_verified(os.fstat(fd)) and has_digest(fd, digits)
    except OSError:
        return False


def check_private(directory: Path) -> None:
    """Raise CacheFailure if other users or a group may write to the directory: in /tmp, any user could have created it before."""
    for status in (directory.lstat(), directory.stat()):  # a symlink has an owner, too
        if status.st_uid not in (os.geteuid(), 0):
            raise CacheFailure("the cache directory belongs to another user; use a directory of your own")
    if status.st_mode & stat.S_IWOTH:
        raise CacheFailure("all users may write to the cache directory; run chmod go-w on it")
    if status.st_mode & stat.S_IWGRP:
        raise CacheFailure("a group may write to the cache directory; run chmod g-w on it")
