"""A NAR on its way into the cache, and everyone who reads from it meanwhile.

There is one ``Fill`` a NAR in a process, with a thread of its own. Whichever process gets the lock on the part file downloads;
the others watch the same file grow, and one of them takes over if the lock becomes free before the NAR is complete. Readers
only ever read from the file, so they cost no memory, and a slow one holds nobody up.

The last byte that a reader asks for is kept back until the whole NAR has been verified: a NAR that is not what was promised ends
in an error for everyone who reads from it, and never in a complete answer. But for those who chose to read what is not verified:
they ``wait_until`` it is there.
"""

import copy
import heapq
import sys
import threading
import time
from collections.abc import Callable, Generator

from narcore.cache.errors import LeaderGaveUp, NoReadersLeft
from narcore.cache.part import Fetch, PartFile
from narcore.errors import CacheFailure, CapacityError, StoreTimeout
from narcore.formats.listing import NarListing
from narcore.sizes import CHUNK_SIZE

POLL_SECONDS = 0.005  # how soon a reader learns of bytes that another process has written
STALL_SECONDS = 120.0  # not a byte for so long: longer than all the retries of a store take

Check = Callable[[NarListing], None]


class Fill:
    """One NAR that is being fetched. ``NarCache.fill`` makes it or finds it, and joins it for the caller."""

    def __init__(self, part: PartFile, fetch: Fetch, *, on_end: Callable[["Fill", BaseException | None], None]) -> None:
        self.part = part
        self._fetch = fetch
        self._on_end = on_end
        self._lock = threading.Lock()
        self._waiting: list[tuple[int, int, threading.Condition]] = []  # a heap, by how many bytes are waited for
        self._news = time.monotonic()
        self._readers = 0
        self._available = 0
        self._listing: NarListing | None = None
        self._error: BaseException | None = None
        self._closed = False  # to newcomers
        self._ended = False  # the thread is done with the part
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"fill-{part.key.digits[:8]}", daemon=True)

    # --- the readers' side

    def start(self) -> None:
        try:
            self._thread.start()
        except RuntimeError as error:  # no more threads, or the interpreter is about to end
            self._end(None, CapacityError(f"no thread for a download: {error}"))

    def join(self) -> bool:
        """Count in one more reader, who has to ``leave``. False if the fill has ended, and nobody keeps its file open."""
        with self._lock:
            if self._closed and (self._listing is None or not self._readers):
                return False
            self._readers += 1
            return True

    def leave(self) -> None:
        with self._lock:
            self._readers -= 1
            if self._ended and not self._readers:
                self.part.close()

    def stop(self) -> None:
        """Give up soon, whoever reads, since the process ends. What was written stays if another process reads it."""
        self._stopping = True

    def join_thread(self, timeout: float) -> None:
        if self._thread.is_alive():
            self._thread.join(timeout)

    @property
    def available(self) -> int:
        """How many bytes there are of it so far; they may be none, and are not verified."""
        return self._available

    def wait(self) -> NarListing:
        """Wait until the NAR is complete and verified; its listing. Raises whatever it failed with."""
        with self._lock:
            while self._listing is None:
                self._wait_for(sys.maxsize)
            return self._listing

    def wait_until(self, stop: int) -> int:
        """Wait until the bytes before ``stop`` are there, or all; how many are there. They may not have been verified yet.

        Raises whatever the fill has failed with, also if they are there.
        """
        with self._lock:
            while self._listing is None and (self._error is not None or self._available < stop):
                self._wait_for(stop)
            return self.part.key.size if self._listing is not None else self._available

    def read_now(self, start: int, stop: int) -> bytes:
        """Bytes that were waited for, all of them. Raises CacheFailure if the file is not what it was."""
        data = self.part.read(start, stop) if start < stop else b""
        while len(data) < stop - start:
            more = self.part.read(start + len(data), stop)
            if not more:
                raise CacheFailure("the part file of a NAR was cut while it was read")
            data += more
        if self._listing is not None and not self.part.is_marked():
            raise CacheFailure("a NAR in the cache was changed while it was read")
        return data

    def read(self, start: int, stop: int, check: Check, *, whole: bool = False) -> "FillBytes":
        """Bytes of the NAR, as they arrive; with ``whole``, once all of it has been verified.

        ``check`` gets the verified listing before the last byte is given out.
        """
        return FillBytes(self, start, stop, check, whole=whole)

    def stream(self, start: int, stop: int, check: Check, *, whole: bool) -> Generator[bytes]:
        if whole:
            self.wait()
        position = start
        while position < stop:
            ready = self._wait_beyond(position, stop)
            if ready == stop:
                check(self.wait())
            data = self.part.read(position, min(ready, position + CHUNK_SIZE))
            if not data:
                raise CacheFailure("the part file of a NAR was cut while it was read")
            position += len(data)
            yield data

    def _wait_beyond(self, position: int, stop: int) -> int:
        """Wait until there is something to read at ``position``; up to where it may be read."""
        with self._lock:
            while True:
                if self._listing is not None:
                    return stop
                ready = min(self._available, stop - 1)
                if ready > position:
                    return ready
                self._wait_for(position + 1 if position + 1 < stop else sys.maxsize)  # the last one comes at the end

    def _wait_for(self, available: int) -> None:
        """Wait, with the lock held, until so many bytes are there or the fill has ended. Raises what it has failed with.

        Each reader has a condition of its own: to wake all of them for each chunk costs more than to unpack it.
        """
        if self._error is not None:
            raise copy.copy(self._error)  # each reader's own: a shared one would collect the traceback of each
        mine = threading.Condition(self._lock)
        entry = (available, id(mine), mine)
        heapq.heappush(self._waiting, entry)
        while not mine.wait(STALL_SECONDS) and entry in self._waiting:
            if time.monotonic() - self._news >= STALL_SECONDS:
                self._waiting.remove(entry)
                heapq.heapify(self._waiting)
                raise StoreTimeout("no byte of the NAR has come for two minutes")

    def _wake(self, available: int) -> None:
        while self._waiting and self._waiting[0][0] <= available:
            heapq.heappop(self._waiting)[2].notify()

    # --- the thread's side

    def _run(self) -> None:
        listing, error = None, None
        try:
            listing = self._lead_or_follow()
        except BaseException as failure:  # noqa: BLE001  whatever it is, the readers must not wait for ever
            error = failure
        self._end(listing, error)
        if listing is not None:
            self.part.settle()

    def _end(self, listing: NarListing | None, error: BaseException | None) -> None:
        try:
            self._on_end(self, error)
        finally:
            with self._lock:
                self._listing, self._error, self._closed, self._ended = listing, error, True, True
                self._wake(sys.maxsize)
                if not self._readers:
                    self.part.close()

    def _lead_or_follow(self) -> NarListing:
        while True:
            self.part.open()
            self._follow()
            try:
                return self.part.finished_elsewhere() or self.part.lead(
                    self._fetch, publish=self._publish, give_up=self._give_up
                )
            except LeaderGaveUp:
                if self._available:  # the readers may have read from the file that is gone
                    raise
                self.part.close()

    def _follow(self) -> None:
        """Watch the file grow until the lock on it is free."""
        while not self.part.try_lead():
            size = self.part.size()
            if size > self._available:
                self._publish(size)
            if self._give_up(lambda: True):
                raise NoReadersLeft("nobody reads it here any more")
            time.sleep(POLL_SECONDS)

    def _publish(self, available: int) -> None:
        with self._lock:
            self._news = time.monotonic()
            if available > self._available:  # one that takes over starts from the front, where all is there already
                self._available = available
                self._wake(available)

    def _give_up(self, may_end: Callable[[], bool]) -> bool:
        """End the fill for newcomers if nobody reads it and ``may_end`` agrees, or the process ends; tells whether it did."""
        with self._lock:
            self._closed = self._stopping or (not self._readers and may_end())
            return self._closed


class FillBytes:
    """Some bytes of a NAR on its way. Closing it is leaving the fill."""

    def __init__(self, fill: Fill, start: int, stop: int, check: Check, *, whole: bool) -> None:
        self.length = stop - start
        self._fill: Fill | None = fill
        self._chunks = fill.stream(start, stop, check, whole=whole)

    def __iter__(self) -> Generator[bytes]:
        return self._chunks

    def again(self, start: int, stop: int) -> bytes:
        """Bytes of the NAR that were given out before, even if the fill has failed since."""
        if self._fill is None:
            raise ValueError("these bytes of a NAR are closed")
        return self._fill.part.read(start, stop)

    def close(self) -> None:
        self._chunks.close()
        if self._fill is not None:
            self._fill.leave()
            self._fill = None
