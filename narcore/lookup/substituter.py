"""A substituter (Nix's term): a binary cache that is asked for store paths. Has its nix-cache-info and its circuit breaker."""

import copy
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from typing import Self, TypeVar
from urllib.parse import parse_qs

from narcore.concurrency.background import call_in_background
from narcore.errors import (
    FileNotInStore,
    NarcoreError,
    SettingsError,
    StoreError,
    StoreUnavailable,
    StoreUnresponsive,
)
from narcore.formats.cacheinfo import CacheInfo
from narcore.lookup.breaker import CircuitBreaker
from narcore.stores import open_store
from narcore.stores.base import BinaryCacheStore, read_file
from narcore.stores.traced import TracedStore
from narcore.stores.waits import CountedStore, StoreWaits
from narcore.trace import Trace, silent

log = logging.getLogger("narcore.lookup")

CACHE_INFO_LIMIT = 1 << 16
CACHE_INFO_SECONDS = 3600.0
FAILED_INFO_SECONDS = 30.0

# How long lookups wait for a store's first nix-cache-info. After that time they use the default priority until it arrives.
CACHE_INFO_WAIT_SECONDS = 3.0

DEFAULT_PRIORITY = 50  # Nix's (src/libstore/store-api.hh)

# How many calls to one store may run in background threads at once. The limit is per store: a slow store does not block others.
CALLS_AT_ONCE = 16

T = TypeVar("T")


class Substituter:
    """A store, its priority, and whether its narinfos are trusted without a signature. Thread-safe."""

    def __init__(
        self,
        store: BinaryCacheStore,
        *,
        priority: int | None = None,
        trusted: bool = False,
        clock: Callable[[], float] = time.monotonic,
        run_check: Callable[[Callable[[], None]], object] = call_in_background,
        waits: StoreWaits | None = None,
    ) -> None:
        """Create a substituter. ``run_check`` runs the check of a store that keeps failing. It must not delay the request.

        ``waits`` limits how many requests wait for the store while it sends nothing.
        """
        self._waits = waits or StoreWaits()
        self.store = store if waits is None else CountedStore(store, waits)
        self.trusted = trusted
        self.is_only = False  # whether there is no other store to ask instead; set by Lookup
        self._priority = priority
        self._clock = clock
        self._breaker = CircuitBreaker(store.url, clock)
        self._run_check = run_check
        self._last_failure: StoreError | None = None
        self._calls = threading.BoundedSemaphore(CALLS_AT_ONCE)
        self._lock = threading.Lock()
        self._info: CacheInfo | None = None
        self._info_failure: NarcoreError | None = None
        self._info_request: Future[None] | None = None
        self._info_requested_at = self._ask_again_at = 0.0

    @classmethod
    def open(cls, url: str, *, trace: Trace = silent, waits: StoreWaits | None = None) -> Self:
        """Open the store at ``url``, and read its query parameters ``priority`` and ``trusted``. Raises SettingsError."""
        parameters = parse_qs(url.partition("?")[2], keep_blank_values=True)
        store = open_store(url)
        if trace is not silent:
            store = TracedStore(store, trace)
        return cls(store, priority=_priority(parameters), trusted=_flag(parameters, "trusted"), waits=waits)

    @property
    def url(self) -> str:
        return self.store.url

    # --- nix-cache-info

    @property
    def priority(self) -> int:
        """The priority from the URL, from nix-cache-info if it has arrived, or Nix's default. Lower numbers come first."""
        known = self._info.priority if self._info is not None else None
        return next((number for number in (self._priority, known) if number is not None), DEFAULT_PRIORITY)

    @property
    def has_own_priority(self) -> bool:
        """Whether the URL sets the priority, which overrides nix-cache-info."""
        return self._priority is not None

    @property
    def store_dir(self) -> str | None:
        """The store directory, or None if nix-cache-info has not arrived yet. Sends no request."""
        return self._info.store_dir if self._info is not None else None

    def request_cache_info(self) -> Future[None]:
        """Fetch nix-cache-info in the background, unless a request succeeded in the last hour or failed in the last 30 s.

        Returns the future of the running or last request.
        """
        with self._lock:
            request = self._info_request
            if request is None or (request.done() and self._clock() >= self._ask_again_at):
                self._info_requested_at = self._clock()
                request = self._info_request = call_in_background(self._learn)
            return request

    def wait_for_cache_info(self) -> None:
        """Request nix-cache-info, and wait for the first answer or error.

        Waits until CACHE_INFO_WAIT_SECONDS after the request was sent. Does not wait if an earlier request has ended.
        """
        request = self.request_cache_info()
        if self._info is None and self._info_failure is None:
            wait([request], timeout=max(0.0, self._info_requested_at + CACHE_INFO_WAIT_SECONDS - self._clock()))

    def info(self) -> CacheInfo:
        """Return nix-cache-info, or Nix's defaults if the store has no such file. Waits until the store answers or times out.

        Raises StoreError or CacheInfoError.
        """
        self.request_cache_info().result()
        if self._info is None:
            raise copy.copy(self._info_failure or StoreUnavailable(f"{self.url} has not been contacted yet"))
        return self._info

    def _learn(self) -> None:
        seconds = CACHE_INFO_SECONDS
        try:
            self._info = self._fetch_info()
        except NarcoreError as failure:  # the previous nix-cache-info stays valid
            self._info_failure, seconds = copy.copy(failure), FAILED_INFO_SECONDS
            if not isinstance(failure, StoreError):
                log.warning("%s: %s", self.url, failure)
        self._ask_again_at = self._clock() + seconds

    def _fetch_info(self) -> CacheInfo:
        try:
            return CacheInfo.parse(self.read("nix-cache-info", CACHE_INFO_LIMIT))
        except FileNotInStore:
            return CacheInfo()

    def check(self) -> None:
        """Request nix-cache-info now, even if an answer is cached. Raises StoreError or CacheInfoError if the request fails."""
        try:
            CacheInfo.parse(self.read("nix-cache-info", CACHE_INFO_LIMIT))
        except FileNotInStore:
            self.store.check()  # distinguishes a missing file from a file that may not be read

    # --- asking

    @property
    def is_paused(self) -> bool:
        """Whether the circuit breaker is open: the store keeps failing and is not asked now."""
        return self._breaker.is_open

    def read(self, path: str, limit: int) -> bytes:
        """Return the contents of a small file. Raises StoreError, and StoreUnresponsive if too many requests wait for the store.

        While the circuit breaker is open, the exception has the class of the store's last error.
        """
        if not self._breaker.allows_call():
            kind = type(self._last_failure) if self._last_failure else StoreUnavailable
            raise kind(f"circuit breaker is open; not asking {self.url}; last error: {self._last_failure}")
        try:
            content = self._waits.call(self.url, partial(read_file, self.store, path, limit))
        except StoreUnresponsive:
            raise  # the store has not failed yet: an earlier request still waits for it, and will report the result
        except StoreUnavailable as failure:
            # The copy has no traceback. A traceback would keep the data that was being read in memory.
            self._last_failure = copy.copy(failure)
            log.warning("%s", failure)
            self._count_failure(failure, path)
            raise
        except FileNotInStore:
            self._breaker.succeeded()
            raise
        self._breaker.succeeded()
        return content

    def _count_failure(self, failure: StoreUnavailable, path: str) -> None:
        if not self._is_failure_of_store(failure):
            self._breaker.succeeded()
        elif self._breaker.failed(None if failure.is_unreachable else path):
            try:
                self._run_check(self._check_store)
            except RuntimeError:  # the system allows no more threads
                self._check_store()

    def _is_failure_of_store(self, failure: StoreUnavailable) -> bool:
        """Return whether the failure may open the circuit breaker.

        The breaker of an only store opens only if the store can't be reached: a pause would also refuse the files that the store
        can send.
        """
        return failure.is_unreachable or not self.is_only

    def _check_store(self) -> None:
        """Request nix-cache-info, to distinguish a failing store from failing files."""
        try:
            read_file(self.store, "nix-cache-info", CACHE_INFO_LIMIT)
        except StoreUnavailable as failure:
            if self._is_failure_of_store(failure):
                self._breaker.check_failed()
                return
        except StoreError:  # any other error, such as FileNotInStore, is an answer, and shows that the store works
            pass
        self._breaker.succeeded()

    def soon(self, call: Callable[[], T]) -> Callable[[], T]:
        """Begin a call to the store in a background thread. Returns a function that waits for it and returns its result.

        If too many calls to this store are running, or too many requests wait for the store, the call begins only when the
        returned function is called.
        """
        if self._waits.is_full(self.url) or not self._calls.acquire(blocking=False):
            return call
        thread: list[int] = []

        def run() -> T:
            thread.append(threading.get_ident())
            return call()

        try:
            flight = call_in_background(run)
        except RuntimeError:  # the system allows no more threads
            self._calls.release()
            return call
        flight.add_done_callback(lambda _flight: self._calls.release())

        def result() -> T:
            self._waits.wait(flight, lambda: thread[0] if thread else None)
            return flight.result()

        return result


def _priority(parameters: dict[str, list[str]]) -> int | None:
    text = parameters.get("priority", [""])[-1]
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise SettingsError(
            f"priority={text[:50]!r} is not a number; write for example priority=40 (lower is asked first)"
        )
    return int(text)


def _flag(parameters: dict[str, list[str]], name: str) -> bool:
    text = parameters.get(name, ["false"])[-1]
    if text not in ("true", "false", "1", "0"):
        raise SettingsError(f"{name}={text[:50]!r} is not valid; write {name}=true or {name}=false")
    return text in ("true", "1")
