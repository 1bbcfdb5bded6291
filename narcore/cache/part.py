"""The part file of a NAR on its way: who may write it, how it is written, and what becomes of it."""

import errno
import fcntl
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from functools import partial

from narcore.cache import memo
from narcore.cache.eviction import Entry, make_room
from narcore.cache.layout import DURABLE, THIS_BOOT, Layout, NarKey, is_verified, mark
from narcore.cache.listings import load_listing, save_listing
from narcore.cache.locks import OPEN_FLAGS, is_still_at, try_lock
from narcore.cache.slots import Slots
from narcore.errors import CacheFailure, CapacityError, IntegrityError, NarcoreError
from narcore.formats.listing import ListingBuilder, NarListing
from narcore.formats.nar.parser import NarParser
from narcore.streams.closing import close

# A fill that nobody reads any more goes on if this little is left to do: soon somebody may.
LITTLE = 8 << 20

Fetch = Callable[[], Iterator[bytes]]
Publish = Callable[[int], None]
GiveUp = Callable[[Callable[[], bool]], bool]


class Unwanted(CacheFailure):
    """Nobody reads the NAR any more, and it is not worth finishing."""


@contextmanager
def disk_trouble() -> Generator[None]:
    """Whatever the system says of the cache directory becomes a CacheFailure."""
    try:
        yield
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "unknown error")
        raise CacheFailure(f"the cache directory can't be used: {os.strerror(error.errno or 0)} ({name})") from error


class Part:
    """One process's hold on a part file. Not thread-safe but for ``read``."""

    def __init__(
        self, layout: Layout, key: NarKey, *, limit: int, slots: Slots, on_evict: Callable[[list[Entry]], None]
    ) -> None:
        self.key = key
        self._layout = layout
        self._limit = limit
        self._slots = slots
        self._on_evict = on_evict
        self._path = layout.part(key)
        self._fd = -1
        self._readers_fd = -1

    def open(self) -> None:
        """Open the file, made where it lacks, and tell the other processes that somebody reads here."""
        with disk_trouble():
            self._layout.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(self._path, OPEN_FLAGS, 0o600)
            self._readers_fd = os.open(self._layout.readers(self.key), OPEN_FLAGS, 0o600)
            fcntl.flock(self._readers_fd, fcntl.LOCK_SH)  # held against us for an instant at most

    def close(self) -> None:
        for fd in (self._fd, self._readers_fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._readers_fd = -1

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def read(self, start: int, stop: int) -> bytes:
        with disk_trouble():
            return os.pread(self._fd, stop - start, start)

    def try_lead(self) -> bool:
        """Whether nobody else writes the file (any more)."""
        return try_lock(self._fd)

    def finished_elsewhere(self) -> NarListing | None:
        """With the lock held: the listing, if another process has completed the NAR; None if it is to be fetched here.

        Raises what the fill there failed with.
        """
        with disk_trouble():
            if is_still_at(self._fd, self._path):
                return self._adopt_entry()
            if not is_still_at(self._fd, self._layout.nar(self.key.digits)):
                raise memo.recall(self._layout.error(self.key)) or CacheFailure("the download was given up elsewhere")
        return load_listing(self._layout, self.key, self._fd)

    def _adopt_entry(self) -> NarListing | None:
        """The NAR may have been completed between the look for it and the lock: then read that."""
        try:
            fd = os.open(self._layout.nar(self.key.digits), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        status = os.fstat(fd)
        if status.st_size != self.key.size or not is_verified(status):
            os.close(fd)
            return None
        self._path.unlink()
        os.dup2(fd, self._fd, inheritable=False)
        os.close(fd)
        return load_listing(self._layout, self.key, self._fd)

    def lead(self, fetch: Fetch, *, publish: Publish, give_up: GiveUp) -> NarListing:
        """Download, verify and keep the NAR; its listing. Raises what ``fetch`` raises, CapacityError, CacheFailure or Unwanted."""
        try:
            with disk_trouble(), self._slots.hold():
                self._make_room()
                listing = self._download(fetch, publish, give_up)
                self._keep(listing)
        except BaseException as error:
            self._discard(error)
            raise
        return listing

    def _make_room(self) -> None:
        evicted = make_room(self._layout, self.key, self._limit)
        if evicted is None:
            raise CacheFailure(f"the cache has no room for a NAR of {self.key.size} bytes")
        self._on_evict(evicted)
        if self.size() > self.key.size:  # left by a fill that was promised another size, or by who knows whom
            os.ftruncate(self._fd, 0)

    def _download(self, fetch: Fetch, publish: Publish, give_up: GiveUp) -> NarListing:
        parser, builder = NarParser(contents=False), ListingBuilder()
        position, present = 0, self.size()
        chunks = fetch()
        try:
            for chunk in chunks:
                parser.receive_data(chunk)
                builder.add_all(parser.events())
                self._write(chunk, position, present)
                position += len(chunk)
                publish(position)
                if give_up(partial(self._not_worth_it, position)):
                    raise Unwanted("nobody reads it any more")
        finally:
            close(chunks)
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

    def _not_worth_it(self, done: int) -> bool:
        return done <= self.key.size // 2 and self.key.size - done > LITTLE and not self._read_elsewhere()

    def _read_elsewhere(self) -> bool:
        """Whether another process reads: then the lock on the readers' file can't be had alone."""
        if not try_lock(self._readers_fd):
            return True
        fcntl.flock(self._readers_fd, fcntl.LOCK_UN)
        return False

    def _keep(self, listing: NarListing) -> None:
        save_listing(self._layout, self.key.digits, listing)
        os.fchmod(self._fd, 0o444)
        mark(self._fd, THIS_BOOT)
        self._path.rename(self._layout.nar(self.key.digits))
        self._let_go()

    def _discard(self, error: BaseException) -> None:
        if isinstance(error, NarcoreError) and not isinstance(error, CapacityError):
            memo.remember(self._layout.error(self.key), error)
        with suppress(OSError):  # a directory that was taken away has nothing left to remove
            self._path.unlink(missing_ok=True)
        self._let_go()

    def _let_go(self) -> None:
        with suppress(OSError):
            self._layout.readers(self.key).unlink(missing_ok=True)
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def settle(self) -> None:
        """Wait until the NAR and its listing have reached the disk, and note that on them: now a crash can't hurt them.

        Called when the readers have been told, since it may take long.
        """
        for path in (self._layout.nar(self.key.digits), self._layout.listing(self.key.digits)):
            with suppress(OSError):  # evicted already; or it stays marked for this boot, which is all that is known
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    _make_durable(fd)
                finally:
                    os.close(fd)


def _make_durable(fd: int) -> None:
    if is_verified(os.fstat(fd)):
        os.fdatasync(fd)
        if is_verified(os.fstat(fd)):  # nobody wrote to it meanwhile
            mark(fd, DURABLE)
