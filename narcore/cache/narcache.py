"""The disk cache: NARs, unpacked and verified, in a directory that any number of processes may share."""

import atexit
import copy
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

from narcore.cache import failures, unpacked
from narcore.cache.cached import CachedNar, Verifier, has_digest
from narcore.cache.counters import Counters
from narcore.cache.eviction import Entry, Held, entries, make_room, remove, remove_entry
from narcore.cache.fill import Fill
from narcore.cache.layout import THIS_BOOT, FileKey, Layout, NarKey, is_verified, touch
from narcore.cache.listings import load_listing
from narcore.cache.locks import READ_FLAGS, is_still_at, remove_if_free
from narcore.cache.part import Fetch, GivenUp, Part, Unwanted, disk_trouble
from narcore.cache.reserve import Spare
from narcore.cache.slots import Slots
from narcore.cache.unpacked import UnpackedFile
from narcore.concurrency.lru import LruMemory
from narcore.concurrency.singleflight import SingleFlight
from narcore.errors import CacheFailure, CapacityError, NarcoreError
from narcore.formats.listing import NarListing
from narcore.trace import Trace, silent

log = logging.getLogger("narcore.cache")

CLEAN_SECONDS = 600.0  # so often a process that runs for long looks for what others have left
STOP_SECONDS = 2.0  # so long the end of the process waits for its downloads to end

FILL_PATIENCE = 10.0  # seconds that a fill waits for its turn, while somebody waits for it

UNPACK_TRIES = 3  # how often a file is unpacked that was evicted before it could be opened; once is bad luck

Progress = Callable[[int], None]


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
        patience: float = FILL_PATIENCE,
        trace: Trace = silent,
    ) -> None:
        self.layout = Layout(directory)
        self.counters = Counters(self.layout)
        self._trace = trace
        self._slots = Slots(self.layout, max_fills, patience=patience)
        self._verifier = Verifier()
        self._lock = threading.Lock()
        self._fills: dict[NarKey, Fill] = {}
        self._running: set[Fill] = set()  # also those that are closed to newcomers, who have begun another one
        self._fetched = 0  # by those that have ended
        self._failed: LruMemory[tuple[NarKey, str], NarcoreError] = LruMemory(1000)
        self._unpacking: SingleFlight[FileKey, None] = SingleFlight()
        self._said: LruMemory[str, bool] = LruMemory(100)
        self._cleaned = time.monotonic()
        with disk_trouble():
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            check_private(directory)
            self.limit = size(directory)
            self._spare = Spare(self.layout, self.limit)
            self.clean()
        atexit.register(self.close)

    def close(self) -> None:
        """End the downloads of this process. Others that read from them go on with what there is."""
        atexit.unregister(self.close)
        deadline = time.monotonic() + STOP_SECONDS
        with self._lock:
            fills = list(self._fills.values())
        for fill in fills:
            fill.stop()
        for fill in fills:
            fill.join_thread(max(0.0, deadline - time.monotonic()))
        self._spare.close()
        self.counters.flush()

    # --- complete NARs

    def open(self, key: NarKey) -> CachedNar | None:
        """The NAR, if it is here whole. One that was written to by somebody else is hashed first, and removed if it is wrong."""
        nar = self._open(key)
        if nar is None:
            return None
        touch(nar.fd)
        self._note("hit", key)
        return nar

    def is_cached(self, key: NarKey) -> bool:
        """Whether the NAR seems to be here whole; ``open`` is the one to tell for sure."""
        return os.path.exists(self.layout.nar(key.digits))  # noqa: PTH110  Path.exists raises for a directory that can't be read

    def listing(self, key: NarKey) -> NarListing | None:
        """The listing of a NAR that is here whole."""
        nar = self._open(key)
        if nar is None:
            return None
        try:
            return self.listing_of(key, nar)
        except CacheFailure as error:
            self._say_once(str(error))
            return None
        finally:
            nar.close()

    def listing_of(self, key: NarKey, nar: CachedNar) -> NarListing:
        """The listing of a NAR that is open. Raises CacheFailure."""
        with disk_trouble():
            return load_listing(self.layout, key, nar.fd)

    def _open(self, key: NarKey) -> CachedNar | None:
        path = self.layout.nar(key.digits)
        try:
            fd = os.open(path, READ_FLAGS)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._say_once(f"{path} can't be opened: {error.strerror}")
            return None
        try:
            status = self._verifier.status(fd, key)
        except OSError as error:  # a bad sector
            self._say_once(f"{path} can't be read: {error.strerror}")
            status = None
        except BaseException:
            os.close(fd)
            raise
        if status is None:
            if not _is_of(key.digits, fd):
                self._remove_bad(key, fd)
            os.close(fd)
            return None
        return CachedNar(fd, status, lambda: self._remove_bad(key, fd))

    def is_evicted(self, key: NarKey, nar: CachedNar) -> bool:
        """Whether the NAR that is open is no longer the one in the directory: only its readers keep it on the disk."""
        try:
            return not is_still_at(nar.fd, self.layout.nar(key.digits))
        except OSError:  # of a directory that can't be read, nothing is known
            return False

    def _remove_bad(self, key: NarKey, fd: int) -> None:
        with suppress(OSError):
            if is_still_at(fd, self.layout.nar(key.digits)):
                log.warning("the NAR %s in the cache is not what it should be, and is removed", key.digits)
                remove_entry(self.layout, key.digits)

    # --- files out of them

    def open_unpacked(self, file: FileKey, nar: CachedNar) -> int:
        """A descriptor of a file with those bytes of the NAR that is open, made if it is not there. To be closed.

        Raises CacheFailure.
        """
        for _ in range(UNPACK_TRIES):
            fd = unpacked.open_unpacked(self.layout, file)
            if fd is not None:
                touch(fd)
                return fd
            self._unpacking.do(file, partial(self._unpack, file, nar))
        raise CacheFailure("an unpacked file is evicted each time as soon as it is made; the cache is too small")

    def unpacked_file(self, file: FileKey, fd: int) -> UnpackedFile:
        """The file that is open at ``fd``."""
        return UnpackedFile.of(self.layout.file(file), fd)

    def _unpack(self, file: FileKey, nar: CachedNar) -> None:
        with disk_trouble():
            unpacked.unpack(self.layout, file, nar, spare=self._spare, on_evict=self._evicted)

    # --- NARs on their way

    def joinable(self, key: NarKey) -> Fill | None:
        """The fill of that NAR that is under way here, with the caller counted in as a reader, who has to leave it."""
        with self._lock:
            fill = self._fills.get(key)
            if fill is None or not fill.join():
                return None
        self._note("join", key)
        return fill

    def fill(self, key: NarKey, fetch: Fetch, *, source: str = "") -> Fill:
        """The fill of that NAR, begun with ``fetch`` if there is none, with the caller counted in as a reader, who has to leave it.

        Raises CacheFailure if the NAR is larger than the whole cache, or what a fill from the same ``source`` (a store's URL)
        failed with seconds ago.
        """
        if key.size > self.limit:
            raise CacheFailure(f"a NAR of {key.size} bytes is larger than the cache")
        remembered = self._failed.get((key, source)) or failures.recall(self.layout.error(key), source)
        if remembered is not None:
            raise copy.copy(remembered)
        self._spare.yield_to(key.size)
        fill, begun = self._join_or_make(key, fetch, source)
        self._note("miss" if begun else "join", key)
        if begun:
            fill.start()
        return fill

    def bytes_fetched(self, key: NarKey) -> int:
        """How much of that NAR the fill that is under way here has got, as it came or by another process. 0 if there is none."""
        with self._lock:
            fill = self._fills.get(key)
            return fill.available if fill is not None else 0

    def total_bytes_fetched(self) -> int:
        """What all fills of this process have got: it grows as long as anything comes."""
        with self._lock:
            return self._fetched + sum(fill.available for fill in self._running)

    def _join_or_make(self, key: NarKey, fetch: Fetch, source: str) -> tuple[Fill, bool]:
        with self._lock:
            fill = self._fills.get(key)
            if fill is not None and fill.join():
                return fill, False
            part = Part(self.layout, key, source=source, limit=self.limit, slots=self._slots, on_evict=self._evicted)
            fill = self._fills[key] = Fill(part, fetch, on_end=self._ended)
            self._running.add(fill)
            fill.join()
            return fill, True

    def _ended(self, fill: Fill, error: BaseException | None) -> None:
        key = fill.part.key
        if isinstance(error, NarcoreError) and not isinstance(error, CapacityError):
            # A copy: the traceback of the original would keep the chunks that were being read.
            self._failed.put((key, fill.part.source), copy.copy(error), seconds=failures.SECONDS)
        with self._lock:
            self._running.discard(fill)
            self._fetched += fill.available
            if self._fills.get(key) is fill:
                del self._fills[key]
        if isinstance(error, CacheFailure) and not isinstance(error, Unwanted | GivenUp):
            self._say_once(str(error))
        if not isinstance(error, Unwanted):
            self._note("failure" if error else "fill", key)
        if time.monotonic() - self._cleaned > CLEAN_SECONDS:
            self.clean()

    def _evicted(self, evicted: list[Entry]) -> None:
        for entry in evicted:
            if entry.file is None:  # an unpacked file costs no download to have again
                self._note("evict", NarKey(entry.digits, entry.size))

    # --- upkeep

    def entries(self) -> list[Entry]:
        """Every complete NAR and unpacked file, least recently used first. Raises CacheFailure."""
        with disk_trouble():
            return entries(self.layout)

    def clean(self) -> int:
        """Remove what processes that died have left; how many files. What a living one holds stays."""
        self._cleaned = time.monotonic()
        removed = 0
        with suppress(OSError):  # a directory that can only be read is of use all the same
            leftovers = self.layout.leftovers()
            for readers, part in leftovers.parts:
                removed += len(remove_if_free(readers, also=part))
            for path in leftovers.new:
                removed += len(remove_if_free(path))
            old = [path for path in leftovers.errors if failures.is_old(path)]
            orphans = [listing for listing, nar in leftovers.listings if not nar.exists()]
            for path in old + orphans:
                path.unlink(missing_ok=True)
                removed += 1
        return removed

    def collect(self) -> list[Entry]:
        """Clean, and evict until the cache is below its limit; the entries that went. Raises CacheFailure."""
        self.clean()
        held = Held()
        with disk_trouble():
            evicted = make_room(self.layout, NarKey("", 0), self.limit, held=held) or held.told()
        self._evicted(evicted)
        return evicted

    def clear(self) -> list[Entry]:
        """Remove every entry; those that went. Raises CacheFailure."""
        gone = self.entries()
        with disk_trouble():
            for entry in gone:
                remove(self.layout, entry)
        self.clean()
        return gone

    def verify(self, progress: Progress = lambda size: None) -> Iterator[tuple[Entry, bool]]:
        """Hash every NAR anew, and remove those that are wrong: each entry, and whether it is right.

        Unpacked files are compared with their NARs; one whose NAR is not there can't be, and is removed without a word.
        ``progress`` is called with the bytes that were read just now; they add up to the sizes of all files. Raises CacheFailure.
        """
        for entry in sorted(
            self.entries(), key=lambda entry: entry.file is not None
        ):  # first what they are compared with
            with disk_trouble():
                right = self._verify_file(entry.file, progress) if entry.file else self._verify(entry, progress)
            if right is not None:
                yield entry, right

    def _verify(self, entry: Entry, progress: Progress) -> bool | None:
        """None if the entry is gone meanwhile."""
        path = self.layout.nar(entry.digits)
        try:
            fd = os.open(path, READ_FLAGS)
        except FileNotFoundError:
            return None
        try:
            status = os.fstat(fd)
            right = has_digest(fd, entry.digits, progress)
            if not right:
                self._remove_bad(NarKey(entry.digits, status.st_size), fd)
            _keep_times(fd, status)
            return right
        finally:
            os.close(fd)

    def _verify_file(self, file: FileKey, progress: Progress) -> bool | None:
        """None if the file is gone meanwhile, or there is nothing to compare it with."""
        path = self.layout.file(file)
        with ExitStack() as stack:
            try:
                fd = os.open(path, READ_FLAGS)
                stack.callback(os.close, fd)
                nar_fd = os.open(self.layout.nar(file.digits), READ_FLAGS)
                stack.callback(os.close, nar_fd)
            except FileNotFoundError:
                path.unlink(missing_ok=True)
                return None
            status = os.fstat(fd)
            right = unpacked.is_right(file, fd, nar_fd)
            progress(file.size)
            if right:
                _keep_times(fd, status)
            elif is_still_at(fd, path):
                path.unlink(missing_ok=True)
            return right

    def _note(self, event: str, key: NarKey) -> None:
        self.counters.add(event)
        self._trace(f"cache.{event}", {"nar_hash": key.digits, "nar_size": key.size})

    def _say_once(self, message: str) -> None:
        """A full disk is told once an hour, not once a request."""
        if not self._said.get(message):
            self._said.put(message, True, seconds=3600)
            log.warning("%s; nothing is kept until that is mended", message)


def _is_of(digits: str, fd: int) -> bool:
    """Whether the file is a NAR with that hash all the same: then who asks for it was told a wrong size."""
    try:
        return is_verified(os.fstat(fd)) and has_digest(fd, digits)
    except OSError:
        return False


def _keep_times(fd: int, status: os.stat_result) -> None:
    """After a look at a file whose status was that: mark it as verified. Its first time stays, since this was no use of it."""
    with suppress(OSError):
        mtime = status.st_mtime_ns if is_verified(status) else THIS_BOOT * 10**9
        os.utime(fd, ns=(status.st_atime_ns, mtime))


def check_private(directory: Path) -> None:
    """Raises CacheFailure for a directory that others may write to: in a temp dir, anybody could have made it before us."""
    for status in (directory.lstat(), directory.stat()):  # a link is somebody's too
        if status.st_uid not in (os.geteuid(), 0):
            raise CacheFailure("the cache directory is another user's; name one of your own")
    if status.st_mode & stat.S_IWOTH:
        raise CacheFailure("everybody may write to the cache directory; chmod o-w mends that")
