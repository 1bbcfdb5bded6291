"""The part file of a NAR that is being fetched: which process writes it, how it is written, and how it becomes an entry."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import chain

from narcore.cache import failures
from narcore.cache.errors import LeaderGaveUp, NoReadersLeft, as_cache_failure
from narcore.cache.eviction import Entry, RecentEvictions, make_room
from narcore.cache.layout import DURABLE, THIS_BOOT, Layout, NarKey, is_verified, mark
from narcore.cache.listings import load_listing, new_listing
from narcore.cache.locks import OPEN_FLAGS, READ_FLAGS, is_still_at, try_lock, unlock
from narcore.cache.pace import Pace
from narcore.cache.slots import Slot, Slots
from narcore.concurrency.closing import Stage, close
from narcore.concurrency.readahead import ReadAhead
from narcore.errors import CapacityError, IntegrityError, NarcoreError
from narcore.formats.listing import ListingBuilder, NarListing
from narcore.formats.nar.parser import NarParser

# A fill without readers continues if at most this many bytes are left: a reader may come soon.
NEARLY_DONE = 8 << 20

_LONGEST_URL = 4096  # bytes of the readers file that are read

TICK_SECONDS = 1.0  # how often a fill that receives nothing checks whether it is slow

Fetch = Callable[[], Iterator[bytes]]
Publish = Callable[[int], None]
GiveUp = Callable[[Callable[[], bool]], bool]


class PartFile:
    """A part file, open in this process. Only ``read`` is thread-safe. ``source`` names the file that is fetched from the store."""

    def __init__(
        self,
        layout: Layout,
        key: NarKey,
        *,
        source: str,
        limit: int,
        slots: Slots,
        on_evict: Callable[[list[Entry]], None],
    ) -> None:
        self.key = key
        self.source = source
        self._layout = layout
        self._limit = limit
        self._slots = slots
        self._on_evict = on_evict
        self._path = layout.part(key)
        self._fd = -1
        self._readers_fd = -1

    def open(self) -> None:
        """Open the file (create it if it is missing), and show other processes that this process reads it."""
        with as_cache_failure():
            self._layout.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            while not self._try_open():
                self.close()

    def _try_open(self) -> bool:
        """Open the readers file and the part file. Return False if another process removed the readers file in between."""
        readers = self._layout.readers(self.key)
        self._readers_fd = os.open(readers, OPEN_FLAGS, 0o600)
        fcntl.flock(self._readers_fd, fcntl.LOCK_SH)  # the exclusive lock of another process lasts only for a moment
        if not is_still_at(self._readers_fd, readers):
            return False
        self._fd = os.open(self._path, OPEN_FLAGS, 0o600)
        return True

    def close(self) -> None:
        for fd in (self._fd, self._readers_fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._readers_fd = -1

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def state(self) -> tuple[int, int]:
        """Return the size, and a number that changes on each write and while the writing process waits for a slot."""
        status = os.fstat(self._fd)
        return status.st_size, status.st_mtime_ns

    def _touch(self) -> None:
        os.utime(self._fd)

    def read(self, start: int, stop: int) -> bytes:
        with as_cache_failure():
            return os.pread(self._fd, stop - start, start)

    def is_marked(self) -> bool:
        """Return whether the file is marked as verified. A complete file that nobody changed is marked."""
        return is_verified(os.fstat(self._fd))

    def try_lead(self) -> bool:
        """Take the lock to write the file; return False if another process has it."""
        return try_lock(self._fd)

    def set_leader(self, store: str) -> None:
        """Tell the processes that read this file which store it is fetched from. Requires the lock."""
        with as_cache_failure():
            os.ftruncate(self._readers_fd, 0)
            os.pwrite(self._readers_fd, store.encode(), 0)
            self._touch()  # the changed time makes readers look at the file again

    def leader(self) -> str:
        """Return the URL of the store that the file is fetched from; "" if it is not known."""
        return os.pread(self._readers_fd, _LONGEST_URL, 0).decode("utf-8", "replace")

    def finished_elsewhere(self) -> NarListing | None:
        """Return the listing if another process has completed the NAR; None if this process must fetch it. Requires the lock.

        If the fill in the other process failed: raises its error if the source was the same, else LeaderGaveUp.
        """
        with as_cache_failure():
            if is_still_at(self._fd, self._path):
                return self._adopt_entry()
            if not is_still_at(self._fd, self._layout.nar(self.key.digits)):
                raise failures.recall(self._layout.error(self.key), self.source) or LeaderGaveUp(
                    "another process gave up the download"
                )
            unlock(self._fd)
            return load_listing(self._layout, self.key, self._fd)

    def _adopt_entry(self) -> NarListing | None:
        """Use the entry if another process completed the NAR before this process took the lock; else return None."""
        try:
            fd = os.open(self._layout.nar(self.key.digits), READ_FLAGS)
        except OSError:  # there is no entry, or an unreadable one, which this fill will replace
            return None
        try:
            status = os.fstat(fd)
            if status.st_size != self.key.size or not is_verified(status):
                return None
            self._remove()
            os.dup2(fd, self._fd, inheritable=False)  # this releases the lock
        finally:
            os.close(fd)
        return load_listing(self._layout, self.key, self._fd)

    def lead(self, fetch: Fetch, *, publish: Publish, give_up: GiveUp) -> NarListing:
        """Download and verify the NAR, add it to the cache, and return its listing.

        Raises CapacityError, CacheFailure or NoReadersLeft, and the errors of ``fetch``.
        """
        try:
            with as_cache_failure():
                self._check_has_readers(give_up, 0)
                chunks = _begun(fetch())
                try:
                    find_room = partial(self._find_room, give_up, RecentEvictions())
                    with self._slots.hold(find_room, on_wait=self._touch) as slot:
                        listing = self._download(chunks, slot, publish, give_up)
                        self._add_to_cache(listing)
                finally:
                    chunks.close()
        except BaseException as error:
            self._discard(error)
            raise
        return listing

    def _find_room(self, give_up: GiveUp, recent: RecentEvictions, slot: Slot) -> bool:
        self._check_has_readers(give_up, 0)
        reserve = partial(slot.reserve, self._path.name)
        evicted = make_room(self._layout, self.key, self._limit, reserve=reserve, recent=recent)
        self._on_evict(evicted or recent.take_unreported())
        return evicted is not None

    def _download(self, source: Iterator[bytes], slot: Slot, publish: Publish, give_up: GiveUp) -> NarListing:
        if self.size() > self.key.size:  # a fill of this NAR did not write this
            os.ftruncate(self._fd, 0)
        parser, builder = NarParser(contents=False), ListingBuilder()
        position, present = 0, self.size()
        chunks, pace = ReadAhead(source), Pace()
        try:
            while True:
                while not chunks.is_ready(TICK_SECONDS):
                    self._check_pace(pace, position, slot)
                chunk = next(chunks, None)
                if chunk is None:
                    break
                parser.receive_data(chunk)
                builder.add_all(parser.events())
                self._write(chunk, position, present)
                position += len(chunk)
                publish(position)
                self._check_has_readers(give_up, position)
                self._check_pace(pace, position, slot)
        finally:
            chunks.close()
        parser.receive_eof()
        builder.add_all(parser.events())
        return builder.finish()

    def _check_pace(self, pace: Pace, position: int, slot: Slot) -> None:
        if pace.is_slow(position):
            self._slots.release_slow(slot)

    def _write(self, chunk: bytes, position: int, present: int) -> None:
        """Write a chunk at ``position``.

        Raises IntegrityError if an earlier, failed fill wrote other bytes there, because readers may have received those bytes.
        """
        overlap = min(len(chunk), max(0, present - position))
        if overlap and os.pread(self._fd, overlap, position) != chunk[:overlap]:
            raise IntegrityError("the store sent different bytes when the NAR was fetched again")
        rest = memoryview(chunk)[overlap:]
        while rest:
            written = os.pwrite(self._fd, rest, position + overlap)
            rest, overlap = rest[written:], overlap + written

    def _check_has_readers(self, give_up: GiveUp, done: int) -> None:
        if give_up(partial(self._may_give_up, done)):
            raise NoReadersLeft("no reader is left")

    def _may_give_up(self, done: int) -> bool:
        """Return whether the fill may end early.

        It may not if more than half is fetched, if little is left, or if another process reads the part file.
        """
        if done > self.key.size // 2 or self.key.size - done <= NEARLY_DONE:
            return False
        # Readers hold the shared lock. With the exclusive lock, this process can remove the part file before another one reads it.
        if try_lock(self._readers_fd):
            return True
        fcntl.flock(self._readers_fd, fcntl.LOCK_SH)  # trying to take the exclusive lock has released the shared lock
        return False

    def _add_to_cache(self, listing: NarListing) -> None:
        with new_listing(self._layout, self.key.digits, listing):
            os.fchmod(self._fd, 0o444)
            mark(self._fd, THIS_BOOT)
            self._path.rename(self._layout.nar(self.key.digits))
        with suppress(OSError):
            self._layout.readers(self.key).unlink(missing_ok=True)
        self._unlock()

    def _discard(self, error: BaseException) -> None:
        if isinstance(error, NarcoreError) and not isinstance(error, CapacityError):
            failures.remember(self._layout.error(self.key), error, self.source)
        # If only this process has no readers left, another process continues the download and needs the file.
        if not isinstance(error, NoReadersLeft) or try_lock(self._readers_fd):
            with suppress(OSError):  # the directory itself may have been removed
                self._remove()
        self._unlock()

    def _remove(self) -> None:
        """Remove the readers file, then the part file.

        In this order, a process that is opening the files notices the removal and retries (see _try_open).
        """
        self._layout.readers(self.key).unlink(missing_ok=True)
        self._path.unlink(missing_ok=True)

    def _unlock(self) -> None:
        unlock(self._readers_fd)
        unlock(self._fd)

    def settle(self) -> None:
        """Sync the NAR and its listing to the disk, and mark them as durable: after that, a crash can't damage them.

        Called after the readers were notified, since it may take long.
        """
        for path in (self._layout.nar(self.key.digits), self._layout.listing(self.key.digits)):
            with suppress(OSError):  # it was already evicted; or syncing failed, and the mark for this boot stays
                fd = os.open(path, READ_FLAGS)
                try:
                    _make_durable(fd)
                finally:
                    os.close(fd)


def _begun(chunks: Iterator[bytes]) -> Stage:
    """Wait for the first chunk, and return all chunks.

    A fill takes a slot only after its first chunk, so that fills from a store that does not answer occupy no slots. Each fill that
    waits for a slot has one chunk in memory.
    """
    try:
        first = next(chunks, b"")
    except BaseException:
        close(chunks)
        raise
    return Stage(chain([first] if first else [], chunks), chunks)


def _make_durable(fd: int) -> None:
    if is_verified(os.fstat(fd)):
        os.fdatasync(fd)
        if is_verified(os.fstat(fd)):  # nothing was written to the file during the sync
            mark(fd, DURABLE)
