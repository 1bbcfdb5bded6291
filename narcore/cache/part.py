"""The part file of a NAR on its way: who may write it, how it is written, and what becomes of it."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

from narcore.cache import failures
from narcore.cache.errors import LeaderGaveUp, NoReadersLeft, as_cache_failure
from narcore.cache.eviction import Entry, RecentEvictions, make_room
from narcore.cache.layout import DURABLE, THIS_BOOT, Layout, NarKey, is_verified, mark
from narcore.cache.listings import load_listing, new_listing
from narcore.cache.locks import OPEN_FLAGS, READ_FLAGS, is_still_at, try_lock, unlock
from narcore.cache.slots import Slot, Slots
from narcore.concurrency.readahead import ReadAhead
from narcore.errors import CapacityError, IntegrityError, NarcoreError
from narcore.formats.listing import ListingBuilder, NarListing
from narcore.formats.nar.parser import NarParser

# A fill without readers goes on if at most this many bytes are left: a reader may come soon.
NEARLY_DONE = 8 << 20

Fetch = Callable[[], Iterator[bytes]]
Publish = Callable[[int], None]
GiveUp = Callable[[Callable[[], bool]], bool]


class PartFile:
    """One process's hold on a part file. Not thread-safe but for ``read``. ``source`` names where it would fetch the NAR from."""

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
        """Open the file, made where it lacks, and tell the other processes that somebody reads here."""
        with as_cache_failure():
            self._layout.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            while not self._try_open():
                self.close()

    def _try_open(self) -> bool:
        """False if a leader was just giving up, and has removed what was opened."""
        readers = self._layout.readers(self.key)
        self._readers_fd = os.open(readers, OPEN_FLAGS, 0o600)
        fcntl.flock(self._readers_fd, fcntl.LOCK_SH)  # held against us for an instant at most
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

    def read(self, start: int, stop: int) -> bytes:
        with as_cache_failure():
            return os.pread(self._fd, stop - start, start)

    def is_marked(self) -> bool:
        """Whether the file is marked as verified: once it is complete it has to be, unless somebody has written to it since."""
        return is_verified(os.fstat(self._fd))

    def try_lead(self) -> bool:
        """Whether nobody else writes the file (any more)."""
        return try_lock(self._fd)

    def finished_elsewhere(self) -> NarListing | None:
        """With the lock held: the listing, if another process has completed the NAR; None if it is to be fetched here.

        Raises what the fill there failed with, if it was from the same source, or LeaderGaveUp.
        """
        with as_cache_failure():
            if is_still_at(self._fd, self._path):
                return self._adopt_entry()
            if not is_still_at(self._fd, self._layout.nar(self.key.digits)):
                raise failures.recall(self._layout.error(self.key), self.source) or LeaderGaveUp(
                    "the download was given up elsewhere"
                )
            unlock(self._fd)
            return load_listing(self._layout, self.key, self._fd)

    def _adopt_entry(self) -> NarListing | None:
        """The NAR may have been completed between the look for it and the lock: then read that."""
        try:
            fd = os.open(self._layout.nar(self.key.digits), READ_FLAGS)
        except OSError:  # none, or what takes its place is not one: ours will
            return None
        try:
            status = os.fstat(fd)
            if status.st_size != self.key.size or not is_verified(status):
                return None
            self._remove()
            os.dup2(fd, self._fd, inheritable=False)  # which lets go of the lock
        finally:
            os.close(fd)
        return load_listing(self._layout, self.key, self._fd)

    def lead(self, fetch: Fetch, *, publish: Publish, give_up: GiveUp) -> NarListing:
        """Download and verify the NAR, and add it to the cache; its listing.

        Raises CapacityError, CacheFailure or NoReadersLeft, and what ``fetch`` raises.
        """
        try:
            with as_cache_failure(), self._slots.hold(partial(self._find_room, give_up, RecentEvictions())):
                listing = self._download(fetch, publish, give_up)
                self._add_to_cache(listing)
        except BaseException as error:
            self._discard(error)
            raise
        return listing

    def _find_room(self, give_up: GiveUp, recent: RecentEvictions, slot: Slot) -> bool:
        self._check_wanted(give_up, 0)
        reserve = partial(slot.reserve, self._path.name)
        evicted = make_room(self._layout, self.key, self._limit, reserve=reserve, recent=recent)
        self._on_evict(evicted or recent.take_unreported())
        return evicted is not None

    def _download(self, fetch: Fetch, publish: Publish, give_up: GiveUp) -> NarListing:
        if self.size() > self.key.size:  # left by who knows whom
            os.ftruncate(self._fd, 0)
        parser, builder = NarParser(contents=False), ListingBuilder()
        position, present = 0, self.size()
        chunks = ReadAhead(fetch())
        try:
            for chunk in chunks:
                parser.receive_data(chunk)
                builder.add_all(parser.events())
                self._write(chunk, position, present)
                position += len(chunk)
                publish(position)
                self._check_wanted(give_up, position)
        finally:
            chunks.close()
        parser.receive_eof()
        builder.add_all(parser.events())
        return builder.finish()

    def _write(self, chunk: bytes, position: int, present: int) -> None:
        """Write, or compare with what a fill that died has written: its readers may have got it already."""
        overlap = min(len(chunk), max(0, present - position))
        if overlap and os.pread(self._fd, overlap, position) != chunk[:overlap]:
            raise IntegrityError("the store gave other bytes when the NAR was fetched again")
        rest = memoryview(chunk)[overlap:]
        while rest:
            written = os.pwrite(self._fd, rest, position + overlap)
            rest, overlap = rest[written:], overlap + written

    def _check_wanted(self, give_up: GiveUp, done: int) -> None:
        if give_up(partial(self._may_give_up, done)):
            raise NoReadersLeft("nobody reads it any more")

    def _may_give_up(self, done: int) -> bool:
        """Not if it is more than half done, little is left, or another process reads."""
        if done > self.key.size // 2 or self.key.size - done <= NEARLY_DONE:
            return False
        # Those that read hold a shared lock. Once we have the other, nobody can begin to read before the part is removed.
        if try_lock(self._readers_fd):
            return True
        fcntl.flock(self._readers_fd, fcntl.LOCK_SH)  # trying for the other has let go of this
        return False

    def _add_to_cache(self, listing: NarListing) -> None:
        with new_listing(self._layout, self.key.digits, listing):
            os.fchmod(self._fd, 0o444)
            mark(self._fd, THIS_BOOT)
            self._path.rename(self._layout.nar(self.key.digits))
        with suppress(OSError):
            self._layout.readers(self.key).unlink(missing_ok=True)
        self._let_go()

    def _discard(self, error: BaseException) -> None:
        if isinstance(error, NarcoreError) and not isinstance(error, CapacityError):
            failures.remember(self._layout.error(self.key), error, self.source)
        if not isinstance(error, NoReadersLeft) or try_lock(self._readers_fd):  # else another process goes on with it
            with suppress(OSError):  # a directory that was taken away has nothing left to remove
                self._remove()
        self._let_go()

    def _remove(self) -> None:
        """The readers' file first: who opens both between the two finds that the part is gone, and begins again."""
        self._layout.readers(self.key).unlink(missing_ok=True)
        self._path.unlink(missing_ok=True)

    def _let_go(self) -> None:
        unlock(self._readers_fd)
        unlock(self._fd)

    def settle(self) -> None:
        """Wait until the NAR and its listing have reached the disk, and note that on them: now a crash can't hurt them.

        Called when the readers have been told, since it may take long.
        """
        for path in (self._layout.nar(self.key.digits), self._layout.listing(self.key.digits)):
            with suppress(OSError):  # evicted already; or it stays marked for this boot, which is all that is known
                fd = os.open(path, READ_FLAGS)
                try:
                    _make_durable(fd)
                finally:
                    os.close(fd)


def _make_durable(fd: int) -> None:
    if is_verified(os.fstat(fd)):
        os.fdatasync(fd)
        if is_verified(os.fstat(fd)):  # nobody wrote to it meanwhile
            mark(fd, DURABLE)
