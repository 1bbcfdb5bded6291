"""Counts the threads that wait for a store that sends nothing, so that one store can't occupy all threads of a server.

A thread waits for a store directly, or waits for another thread that reads from the store: a background call, a download of a
NAR, or another client's request for the same file. In the second case, the thread is counted only while the other thread
gets no bytes: a thread that waits for a slow download is not counted as long as bytes of the download arrive.
"""

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from narcore.concurrency.background import BackgroundThread, call_in_background
from narcore.errors import StoreUnavailable, StoreUnresponsive
from narcore.stores.base import BinaryCacheStore, StoreFile

log = logging.getLogger("narcore.stores")

# A wait counts only after this time without a byte: a store that needs a second for each answer is slow, but works.
SILENT_SECONDS = 2.0

# How often a waiting thread checks whether the limit is exceeded, and after which time a refused client should try again.
CHECK_SECONDS = 0.25
RETRY_SECONDS = 5

# The longest chain of threads, each of which waits for the next: a request, the request whose answer it shares, the background call
# of that request, a download, and so on.
MAX_CHAIN = 8

# A refusal is logged at most once per store in this time.
LOG_SECONDS = 60.0

T = TypeVar("T")
ThreadId = int
GetThread = Callable[[], ThreadId | None]


@dataclass(frozen=True, slots=True)
class _Wait:
    """A wait for ``store`` that began at ``since``, or a wait for another thread, which ``thread`` returns.

    ``counts`` is True if the waiting thread belongs to a request.
    """

    counts: bool
    store: str = ""
    since: float = 0.0
    thread: GetThread | None = None


class StoreWaits:
    """The waits of all threads, and a limit on how many threads of requests wait for one store that is silent. Thread-safe.

    At most ``limit`` requests wait for one silent store, and at most 1.5 times ``limit`` for all silent stores together, so that
    two such stores can't occupy all threads. ``limit`` None: no limit. Threads of the library itself (`BackgroundThread`) do not
    count, and are never refused. A wait that exceeds the limit raises ``StoreUnresponsive``.

    When a wait for a store has ended without a byte, the store counts as silent until it sends a byte: a new wait for it counts
    immediately. Otherwise, after each timeout, new requests could occupy all threads again.
    """

    def __init__(self, limit: int | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._lock = threading.Lock()
        self._waits: dict[ThreadId, _Wait] = {}  # in the order in which they began
        self._silent: set[str] = set()  # at most one URL per store
        self._logged: dict[str, float] = {}  # by store: when a refusal was logged

    @property
    def check_seconds(self) -> float:
        """How often a waiting thread has to call `check`; infinite without a limit."""
        return CHECK_SECONDS if self._limit is not None else float("inf")

    # --- threads that read from a store

    @contextmanager
    def reading(self, store: str) -> Generator[None]:
        """Count this thread as waiting for the store with this URL until the block ends, with bytes or with an error."""
        since, is_silent = self._clock(), False
        with self.watching(store):
            try:
                yield
            except StoreUnavailable:
                is_silent = self._clock() - since >= SILENT_SECONDS
                raise
            finally:
                (self._silent.add if is_silent else self._silent.discard)(store)

    @contextmanager
    def watching(self, store: str) -> Generator[None]:
        """Count this thread as waiting for the store while another process reads from the store."""
        if self._limit is None:
            yield
            return
        with self._entered(_Wait(not _is_background(), store=store, since=self._clock())):
            yield

    def call(self, store: str, work: Callable[[], T], *, discard: Callable[[T], None] | None = None) -> T:
        """Return the result of ``work``, which requests something from a store. Raises StoreUnresponsive, and what ``work`` raises.

        The thread of a request does not run ``work`` itself, because then it could not stop waiting. If it stops waiting, the later
        result of ``work`` is passed to ``discard``.
        """
        if self._limit is None or _is_background():
            return work()
        self.check_store(store)
        thread: list[ThreadId] = []

        def run() -> T:
            thread.append(threading.get_ident())
            return work()

        # The wait begins before the call, so requests that share the call begin to wait later. The latest waits are refused first.
        with self.following(lambda: thread[0] if thread else None):
            try:
                future = call_in_background(run)
            except RuntimeError:  # the system allows no more threads
                return work()
            try:
                self._wait(future)
            except StoreUnresponsive:
                if discard is not None:
                    future.add_done_callback(partial(_discard, discard))
                raise
        return future.result()

    # --- threads that wait for another thread

    def wait(self, future: Future[T], thread: GetThread) -> None:
        """Wait until ``future`` is done. ``thread`` returns the thread that works on it. Raises the error of `check`."""
        with self.following(thread):
            self._wait(future)

    def _wait(self, future: Future[T]) -> None:
        seconds = None if self._limit is None else CHECK_SECONDS
        while True:
            try:
                future.exception(timeout=seconds)
            except TimeoutError:
                self.check()
            else:
                return

    @contextmanager
    def following(self, thread: GetThread, *, may_refuse: bool = True) -> Generator[None]:
        """Count this thread as waiting for what another thread waits for, until the block ends.

        Raises StoreUnresponsive immediately if this wait exceeds the limit, unless ``may_refuse`` is False. The caller has to call
        `check` during the wait.
        """
        if self._limit is None:
            yield
            return
        with self._entered(_Wait(not _is_background(), thread=thread)):
            if may_refuse:
                self.check()
            yield

    def check(self) -> None:
        """Raise StoreUnresponsive if this thread waits for a silent store and too many requests began to wait earlier."""
        if self._limit is None or _is_background():
            return
        me = threading.get_ident()
        with self._lock:
            store = self._silent_store(me)
            if store is None:
                return
            number, total = self._counts(store, before=me)
            if number < self._limit and total < _total(self._limit):
                return
            self._silent.add(store)
        raise self._refusal(store)

    # --- requests that have not begun to wait

    def is_full(self, store: str) -> bool:
        """Return whether the store is silent and the limit of waiting requests is reached, for it or for all silent stores."""
        if self._limit is None:
            return False
        with self._lock:
            number, total = self._counts(store)
            return number >= self._limit or (store in self._silent and total >= _total(self._limit))

    def check_store(self, store: str) -> None:
        """Raise StoreUnresponsive if `is_full` returns True."""
        if self.is_full(store):
            raise self._refusal(store)

    # --- counting

    @contextmanager
    def _entered(self, wait: _Wait) -> Generator[None]:
        me = threading.get_ident()
        with self._lock:
            outer = self._waits.get(me)  # set if a call could not run in the background
            self._waits[me] = wait
        try:
            yield
        finally:
            with self._lock:
                del self._waits[me]
                if outer is not None:
                    self._waits[me] = outer

    def _counts(self, store: str, *, before: ThreadId | None = None) -> tuple[int, int]:
        """Return how many requests wait for ``store`` if it is silent, and how many wait for any silent store.

        With ``before``, counts only requests that began to wait before the thread ``before``.
        """
        number = total = 0
        for thread, wait in self._waits.items():
            if thread == before:
                break
            silent = self._silent_store(thread) if wait.counts else None
            number += silent == store
            total += silent is not None
        return number, total

    def _silent_store(self, thread: ThreadId | None) -> str | None:
        """Return the store that the thread waits for, directly or through other threads, if the store is silent; else None."""
        for _ in range(MAX_CHAIN):
            wait = self._waits.get(thread) if thread is not None else None
            if wait is None:
                return None
            if wait.thread is None:
                is_silent = wait.store in self._silent or self._clock() - wait.since >= SILENT_SECONDS
                return wait.store if is_silent else None
            thread = wait.thread()
        return None

    def _refusal(self, store: str) -> StoreUnresponsive:
        with self._lock:
            is_new = self._clock() - self._logged.get(store, float("-inf")) >= LOG_SECONDS
            if is_new:
                self._logged[store] = self._clock()
        if is_new:
            log.warning("%s sends nothing to waiting requests; refusing further requests to it", store)
        return StoreUnresponsive(
            f"{store} sends nothing to requests that wait for it; try again in {RETRY_SECONDS} s",
            retry_after=RETRY_SECONDS,
        )


class CountedStore:
    """A wrapper around ``store`` that counts the threads that wait for it in ``waits``."""

    def __init__(self, store: BinaryCacheStore, waits: StoreWaits) -> None:
        self._store = store
        self._waits = waits

    @property
    def url(self) -> str:
        return self._store.url

    def get_file(self, path: str, start: int = 0, stop: int | None = None) -> StoreFile:
        """Like `BinaryCacheStore.get_file`. Also raises StoreUnresponsive."""
        return self._waits.call(self.url, partial(self._open, path, start, stop), discard=StoreFile.close)

    def _open(self, path: str, start: int, stop: int | None) -> StoreFile:
        with self._waits.reading(self.url):
            file = self._store.get_file(path, start, stop)
        body = _CountedBody(file, self._waits, self.url)
        return StoreFile(body, size=file.size, content_encoding=file.content_encoding)

    def check(self) -> None:
        self._store.check()

    def close(self) -> None:
        self._store.close()


class _CountedBody:
    def __init__(self, file: StoreFile, waits: StoreWaits, url: str) -> None:
        self._file = file
        self._chunks = iter(file)
        self._waits = waits
        self._url = url

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        with self._waits.reading(self._url):
            chunk = next(self._chunks, None)
        if chunk is None:
            raise StopIteration
        return chunk

    def close(self) -> None:
        self._file.close()


def _total(limit: int) -> int:
    """Return how many requests may wait for all silent stores together."""
    return limit + limit // 2


def _is_background() -> bool:
    return isinstance(threading.current_thread(), BackgroundThread)


def _discard(discard: Callable[[T], None], future: Future[T]) -> None:
    if future.exception() is None:
        discard(future.result())
