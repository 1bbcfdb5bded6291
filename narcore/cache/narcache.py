"""The disk cache: NARs, unpacked and verified, in a directory that any number of processes may share."""

import atexit
import hashlib
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path

from narcore.cache import memo
from narcore.cache.counters import Counters
from narcore.cache.eviction import Entry, entries, make_room, remove_entry
from narcore.cache.fill import Fill
from narcore.cache.layout import THIS_BOOT, Layout, NarKey, is_verified, mark
from narcore.cache.listings import file_chunks, load_listing
from narcore.cache.locks import try_lock
from narcore.cache.lru import LruMemory
from narcore.cache.part import Fetch, Part, disk_trouble
from narcore.cache.slots import Slots
from narcore.errors import CacheFailure, CapacityError, NarcoreError
from narcore.formats import nixbase32
from narcore.formats.listing import NarListing
from narcore.trace import Trace, silent

log = logging.getLogger("narcore.cache")

CHUNK = 256 * 1024
LEFT_SECONDS = 60.0  # a partial file without a lock is written within moments; one this old was left


class CachedNar:
    """One complete NAR, open. Give it to one reader, or close it."""

    def __init__(self, fd: int, status: os.stat_result, discard: Callable[[], None]) -> None:
        self.fd = fd
        self._status = status
        self._discard = discard

    def read(self, start: int, stop: int) -> "CachedBytes":
        return CachedBytes(self, start, stop)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def check_untouched(self) -> None:
        """Raises CacheFailure if the file has been written to since it was opened."""
        now = os.fstat(self.fd)
        if (now.st_size, is_verified(now)) != (self._status.st_size, True):
            self._discard()
            raise CacheFailure("a NAR in the cache was changed while it was read")


class CachedBytes:
    """Some bytes of a cached NAR; closing it closes the NAR."""

    def __init__(self, nar: CachedNar, start: int, stop: int) -> None:
        self.length = stop - start
        self._nar = nar
        self._chunks = self._read(start, stop)

    def _read(self, start: int, stop: int) -> Generator[bytes]:
        try:
            while start < stop:
                data = os.pread(self._nar.fd, min(CHUNK, stop - start), start)
                start += len(data)
                if start == stop or not data:  # before the answer is complete: is it still what was verified?
                    self._nar.check_untouched()
                yield data
        finally:
            self._nar.close()

    def __iter__(self) -> Generator[bytes]:
        return self._chunks

    def close(self) -> None:
        self._chunks.close()
        self._nar.close()


class NarCache:
    """NARs by their hash. Thread-safe, and safe among processes.

    ``size`` gives the limit in bytes for the directory, once it is there. A directory that can't be used raises CacheFailure,
    here or whenever it turns out.
    """

    def __init__(
        self,
        directory: Path,
        *,
        size: Callable[[Path], int],
        max_fills: int,
        patience: float = 10.0,
        trace: Trace = silent,
    ) -> None:
        self.layout = Layout(directory)
        self.counters = Counters(self.layout)
        self._trace = trace
        self._slots = Slots(self.layout, max_fills, patience=patience)
        self._lock = threading.Lock()
        self._fills: dict[NarKey, Fill] = {}
        self._failed: LruMemory[NarKey, NarcoreError] = LruMemory(1000)
        self._said: LruMemory[str, bool] = LruMemory(100)
        with disk_trouble():
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            check_private(directory)
            self.limit = size(directory)
            self.clean()
        atexit.register(self.counters.flush)

    def close(self) -> None:
        self.counters.flush()
        atexit.unregister(self.counters.flush)

    # --- complete NARs

    def open(self, key: NarKey) -> CachedNar | None:
        """The NAR, if it is here whole. One that was written to by somebody else is hashed first, and removed if it is wrong."""
        path = self.layout.nar(key.digits)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._say_once(f"{path} can't be opened: {error.strerror}")
            return None
        try:
            status = self._verified_status(fd, key)
        except BaseException:
            os.close(fd)
            raise
        if status is None:
            os.close(fd)
            self._remove_bad(key)
            return None
        with suppress(OSError):  # read-only: then who goes first in an eviction does not matter either
            os.utime(fd, ns=(time.time_ns(), status.st_mtime_ns))
        return CachedNar(fd, status, lambda: self._remove_bad(key))

    def contains(self, key: NarKey) -> bool:
        """Whether the NAR seems to be here whole; ``open`` is the one to tell for sure."""
        return self.layout.nar(key.digits).exists()

    def listing(self, key: NarKey) -> NarListing | None:
        """The listing of a NAR that is here whole."""
        nar = self.open(key)
        if nar is None:
            return None
        try:
            return load_listing(self.layout, key, nar.fd)
        except (OSError, NarcoreError) as error:
            self._say_once(f"the listing of {key.digits} can't be read or written: {error}")
            return None
        finally:
            nar.close()

    def _verified_status(self, fd: int, key: NarKey) -> os.stat_result | None:
        """The file's status if it is the NAR, else None."""
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size != key.size:
            return None
        if is_verified(status):
            return status
        if not has_digest(fd, key.digits):
            return None
        mark(fd, THIS_BOOT)
        return os.fstat(fd)

    def _remove_bad(self, key: NarKey) -> None:
        log.warning("the NAR %s in the cache is not what it should be, and is removed", key.digits)
        with suppress(OSError):
            remove_entry(self.layout, key.digits)

    # --- NARs on their way

    def joinable(self, key: NarKey) -> Fill | None:
        """The fill of that NAR that is under way here, with the caller counted in as a reader, who has to leave it."""
        with self._lock:
            fill = self._fills.get(key)
        if fill is None or not fill.join():
            return None
        self._note("join", key)
        return fill

    def fill(self, key: NarKey, fetch: Fetch) -> Fill:
        """The fill of that NAR, begun with ``fetch`` if there is none, with the caller counted in as a reader, who has to leave it.

        Raises CacheFailure if the NAR is larger than the whole cache, or what the last fill failed with seconds ago.
        """
        if key.size > self.limit:
            raise CacheFailure(f"a NAR of {key.size} bytes is larger than the cache")
        remembered = self._failed.get(key) or memo.recall(self.layout.error(key))
        if remembered is not None:
            raise remembered
        with self._lock:
            fill = self._fills.get(key)
            if fill is not None and fill.join():
                self._note("join", key)
                return fill
            part = Part(self.layout, key, limit=self.limit, slots=self._slots, on_evict=self._evicted)
            fill = self._fills[key] = Fill(part, fetch, on_end=self._ended)
            fill.join()
        self._note("miss", key)
        fill.start()
        return fill

    def _ended(self, fill: Fill, error: BaseException | None) -> None:
        key = fill.part.key
        with self._lock:
            if self._fills.get(key) is fill:
                del self._fills[key]
        if error is None:
            self._note("fill", key)
            return
        self._note("failure", key)
        if isinstance(error, CacheFailure):
            self._say_once(str(error))
        elif isinstance(error, NarcoreError) and not isinstance(error, CapacityError):
            self._failed.put(key, error, seconds=memo.SECONDS)

    def _evicted(self, evicted: list[Entry]) -> None:
        for entry in evicted:
            self._note("evict", NarKey(entry.digits, entry.size))

    # --- upkeep

    def clean(self) -> int:
        """Remove what processes that died have left; how many files. What a living one holds stays."""
        removed = 0
        for path in self.layout.leftovers(older_than=time.time() - LEFT_SECONDS):
            with suppress(FileNotFoundError):
                removed += _remove_if_free(path)
        return removed

    def collect(self) -> list[Entry]:
        """Evict until the cache is below its limit, and clean; the entries that went."""
        self.clean()
        evicted = make_room(self.layout, NarKey("", 0), self.limit) or []
        self._evicted(evicted)
        return evicted

    def clear(self) -> list[Entry]:
        """Remove every entry; those that went."""
        gone = entries(self.layout)
        for entry in gone:
            remove_entry(self.layout, entry.digits)
        self.clean()
        return gone

    def _note(self, event: str, key: NarKey) -> None:
        self.counters.add(event)
        self._trace(f"cache.{event}", {"nar_hash": key.digits, "nar_size": key.size})

    def _say_once(self, message: str) -> None:
        """A full disk is told once an hour, not once a request."""
        if not self._said.get(message):
            self._said.put(message, True, seconds=3600)
            log.warning("%s; nothing is kept until that is mended, and everything is served all the same", message)


def has_digest(fd: int, digits: str) -> bool:
    """Whether the open file's SHA-256 is the one with these nix32 digits."""
    sha256 = hashlib.sha256()
    for chunk in file_chunks(fd):
        sha256.update(chunk)
    return nixbase32.encode(sha256.digest()) == digits


def check_private(directory: Path) -> None:
    """Raises CacheFailure for a directory that others may write to: in a temp dir, anybody could have made it before us."""
    status = directory.stat()
    if status.st_uid not in (os.geteuid(), 0) or status.st_mode & stat.S_IWOTH:
        raise CacheFailure("the cache directory is another user's, or everybody may write to it")


def _remove_if_free(path: Path) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if try_lock(fd):
            path.unlink()
            return True
        return False
    finally:
        os.close(fd)
