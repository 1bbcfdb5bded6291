"""A fill: a NAR that is being fetched into the cache, and its readers.

Each process has one ``Fill`` per NAR, with its own thread. The process that gets the lock on the part file downloads; the others
watch the file grow, and one of them takes over if the lock becomes free before the NAR is complete. Readers read only from the
file. So no data is buffered in memory for them, and a slow reader does not delay others.

The last byte that a reader requests is withheld until the whole NAR is verified. If the NAR does not match its narinfo, all
readers get an error, and no reader gets a complete response. Callers that accept unverified bytes use ``wait_until`` and
``read_now`` instead of ``read``.
"""

import copy
import heapq
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator

from narcore.cache.errors import LeaderGaveUp, NoReadersLeft
from narcore.cache.part import Fetch, PartFile
from narcore.concurrency.background import BackgroundThread
from narcore.concurrency.closing import Stage
from narcore.errors import CacheFailure, CapacityError, StoreTimeout
from narcore.formats.listing import NarListing
from narcore.sizes import CHUNK_SIZE
from narcore.stores.waits import StoreWaits

POLL_SECONDS = 0.005  # how often to look for bytes that another process has written
STALL_SECONDS = 120.0  # readers time out after this time without a byte; all retries of a store take less time

Check = Callable[[NarListing], None]

_Waiting = tuple[int, int, threading.Condition]  # the number of bytes, a unique number, and the condition to notify


class Fill:
    """One NAR that is being fetched. ``NarCache.fill`` creates or finds a Fill, and adds the caller as a reader. Thread-safe."""

    def __init__(
        self,
        part: PartFile,
        fetch: Fetch,
        *,
        store: str,
        waits: StoreWaits,
        on_end: Callable[["Fill", BaseException | None], None],
    ) -> None:
        """Create a fill from the store with the URL ``store``.

        ``waits`` counts the readers that wait while this store sends nothing.
        """
        self.part = part
        self._fetch = fetch
        self._store = store
        self._waits = waits
        self._fetching: int | None = None  # the thread that reads from the store
        self._on_end = on_end
        self._lock = threading.Lock()
        # A heap, ordered by the number of bytes that each reader waits for.
        self._waiting: list[_Waiting] = []
        self._last_progress = time.monotonic()
        self._readers = 0
        self._available = 0
        self._is_read = False  # True if readers may have read from the part file
        self._listing: NarListing | None = None
        self._error: BaseException | None = None
        self._closed = False  # True: new readers can't join, unless the NAR is complete and its file is still open
        self._ended = False  # True: the fill's thread no longer uses the part file
        self._stopping = False
        self._thread = BackgroundThread(self._run, name=f"fill-{part.key.digits[:8]}")

    # --- for readers

    def start(self) -> None:
        try:
            self._thread.start()
        except RuntimeError as error:  # no more threads, or the interpreter is shutting down
            self._end(None, CapacityError(f"no thread for a download: {error}"))

    def join(self) -> bool:
        """Add a reader, which must call ``leave``. Returns False if the fill has failed or is ending, or if its file is closed."""
        with self._lock:
            if self._closed and (self._listing is None or not self._readers):
                return False
            self._readers += 1
            return True

    def leave(self) -> None:
        """Remove a reader. When the last reader leaves, the file is closed if the fill has ended."""
        with self._lock:
            self._readers -= 1
            if self._ended and not self._readers:
                self.part.close()

    def stop(self) -> None:
        """End the fill soon, even if it has readers, because the process is exiting.

        The part file stays if another process reads it.
        """
        self._stopping = True

    def join_thread(self, timeout: float) -> None:
        if self._thread.is_alive():
            self._thread.join(timeout)

    @property
    def available(self) -> int:
        """The number of bytes that have arrived so far. They are not verified."""
        return self._available

    def wait(self, *, may_refuse: bool = True) -> NarListing:
        """Wait until the NAR is complete and verified, and return its listing. Raises the error of the fill if it fails.

        Raises StoreUnresponsive if the store sends nothing and too many requests wait for it, unless ``may_refuse`` is False.
        """
        with self._lock:
            while self._listing is None:
                self._wait_for(sys.maxsize, may_refuse=may_refuse)
            return self._listing

    def wait_at_most(self, seconds: float) -> NarListing | None:
        """Like `wait`, but return None if the NAR is not complete after ``seconds``."""
        with self._lock:
            if self._listing is None and self._error is None:
                entry = self._wait_entry(sys.maxsize)
                if not entry[2].wait(seconds):
                    self._forget(entry)
            if self._error is not None:
                raise copy.copy(self._error)
            return self._listing

    def wait_until(self, stop: int) -> int:
        """Wait until the first ``stop`` bytes, or the whole NAR, have arrived. Return how many bytes have arrived.

        The bytes may not be verified yet. Raises the error of the fill if it has failed, even if the bytes have arrived.
        """
        with self._lock:
            while self._listing is None and (self._error is not None or self._available < stop):
                self._wait_for(stop, may_refuse=False)
            self._is_read = True
            return self.part.key.size if self._listing is not None else self._available

    def read_now(self, start: int, stop: int) -> bytes:
        """Return all bytes of a range that has arrived. Raises CacheFailure if the file was truncated or changed."""
        data = self.part.read(start, stop) if start < stop else b""
        while len(data) < stop - start:
            more = self.part.read(start + len(data), stop)
            if not more:
                raise CacheFailure("the part file of a NAR was truncated while it was read")
            data += more
        if self._listing is not None and not self.part.is_marked():
            raise CacheFailure("a NAR in the cache was changed while it was read")
        return data

    def read(self, start: int, stop: int, check: Check, *, whole: bool = False) -> "FillBytes":
        """Return a range of the NAR, whose bytes come as they arrive; with ``whole``, only after the whole NAR is verified.

        ``check`` is called with the verified listing before the last byte is returned.
        """
        return FillBytes(self, start, stop, check, whole=whole)

    def stream(self, start: int, stop: int, check: Check, *, whole: bool) -> Generator[bytes]:
        """Yield the chunks of ``read``."""
        if whole:
            self.wait()
        position = start
        while position < stop:
            # Refuse only a new request: a response that has begun is not interrupted.
            ready = self._wait_beyond(position, stop, may_refuse=position == start)
            if ready == stop:
                check(self.wait(may_refuse=False))
            data = self.part.read(position, min(ready, position + CHUNK_SIZE))
            if not data:
                raise CacheFailure("the part file of a NAR was truncated while it was read")
            position += len(data)
            yield data

    def _wait_beyond(self, position: int, stop: int, *, may_refuse: bool) -> int:
        """Wait until there are bytes to read at ``position``; return the offset where the readable bytes end."""
        with self._lock:
            while True:
                if self._listing is not None:
                    return stop
                ready = min(self._available, stop - 1)
                if ready > position:
                    self._is_read = True
                    return ready
                # The last requested byte is withheld until the fill has ended.
                self._wait_for(position + 1 if position + 1 < stop else sys.maxsize, may_refuse=may_refuse)

    def _wait_for(self, available: int, *, may_refuse: bool) -> None:
        """Wait, with the lock held, until ``available`` bytes have arrived or the fill has ended. Raises the error of the fill.

        With ``may_refuse``, raises StoreUnresponsive if too many requests wait for the store.

        Each reader has its own condition: waking all readers for each chunk costs more than decompressing the chunk.
        """
        if self._error is not None:
            raise copy.copy(self._error)  # a copy, because a shared error would collect the traceback of each reader
        entry = self._wait_entry(available)
        seconds = min(STALL_SECONDS, self._waits.check_seconds if may_refuse else STALL_SECONDS)
        try:
            with self._waits.following(lambda: self._fetching, may_refuse=may_refuse):
                while not entry[2].wait(seconds) and entry in self._waiting:
                    if time.monotonic() - self._last_progress >= STALL_SECONDS:
                        raise StoreTimeout("no byte of the NAR arrived for two minutes")
                    if may_refuse:
                        self._waits.check()
        finally:
            self._forget(entry)

    def _wait_entry(self, available: int) -> _Waiting:
        condition = threading.Condition(self._lock)
        entry = (available, id(condition), condition)
        heapq.heappush(self._waiting, entry)
        return entry

    def _forget(self, entry: _Waiting) -> None:
        if entry in self._waiting:
            self._waiting.remove(entry)
            heapq.heapify(self._waiting)

    def _wake(self, available: int) -> None:
        while self._waiting and self._waiting[0][0] <= available:
            heapq.heappop(self._waiting)[2].notify()

    # --- in the thread of the fill

    def _run(self) -> None:
        listing, error = None, None
        try:
            listing = self._lead_or_follow()
        except BaseException as failure:  # noqa: BLE001  readers must not wait forever after any error
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
                return self.part.finished_elsewhere() or self._lead()
            except LeaderGaveUp:
                if not self._starts_over():
                    raise
                self.part.close()

    def _lead(self) -> NarListing:
        self.part.set_leader(self._store)
        return self.part.lead(self._fetched, publish=self._publish, give_up=self._give_up)

    def _starts_over(self) -> bool:
        """Reset the count of arrived bytes after the part file was removed. Return False if readers may have read some of them."""
        with self._lock:
            if not self._is_read:
                self._available = 0
            return not self._is_read

    def _follow(self) -> None:
        """Watch the part file grow until this process gets the lock on the file. Raises NoReadersLeft."""
        self._fetching = threading.get_ident()
        while not self.part.try_lead():
            state = self.part.state()
            if state[0] > self._available:
                self._publish(state[0])
            with self._waits.watching(self.part.leader() or self._store):
                self._wait_for_change(state)

    def _wait_for_change(self, state: tuple[int, int]) -> None:
        """Wait until the state of the part file changes, or this process gets its lock. Raises NoReadersLeft."""
        while self.part.state() == state and not self.part.try_lead():
            if self._give_up(lambda: True):
                raise NoReadersLeft("no reader is left in this process")
            time.sleep(POLL_SECONDS)

    def _fetched(self) -> Iterator[bytes]:
        """Return the chunks of the NAR. While they are read, ``self._fetching`` is the thread that reads them."""
        chunks = self._fetch()
        return Stage(self._noted(chunks), chunks)

    def _noted(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        while True:
            self._fetching = threading.get_ident()
            chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk

    def _publish(self, available: int) -> None:
        with self._lock:
            self._last_progress = time.monotonic()
            # A process that takes over starts at 0 again, although the file already contains more bytes.
            if available > self._available:
                self._available = available
                self._wake(available)

    def _give_up(self, may_end: Callable[[], bool]) -> bool:
        """Close the fill to new readers if the process is exiting, or if no reader is left and ``may_end`` returns True.

        Returns whether the fill is closed.
        """
        with self._lock:
            self._closed = self._stopping or (not self._readers and may_end())
            return self._closed


class FillBytes:
    """A range of bytes of a NAR that is being fetched. ``close`` also leaves the fill."""

    def __init__(self, fill: Fill, start: int, stop: int, check: Check, *, whole: bool) -> None:
        self.length = stop - start
        self._fill: Fill | None = fill
        self._chunks = fill.stream(start, stop, check, whole=whole)

    def __iter__(self) -> Generator[bytes]:
        return self._chunks

    def again(self, start: int, stop: int) -> bytes:
        """Return bytes that this object has already returned, even if the fill has failed since."""
        if self._fill is None:
            raise ValueError("the bytes of the NAR were read after close")
        return self._fill.part.read(start, stop)

    def close(self) -> None:
        self._chunks.close()
        if self._fill is not None:
            self._fill.leave()
            self._fill = None
