"""One of the binary caches that are asked for store paths ("substituter" is Nix's word): a store and what is known of it."""

import copy
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Self, TypeVar
from urllib.parse import parse_qs

from narcore.concurrency.background import call_in_background
from narcore.errors import FileNotInStore, NarcoreError, SettingsError, StoreError, StoreUnavailable
from narcore.formats.cacheinfo import CacheInfo
from narcore.lookup.breaker import CircuitBreaker
from narcore.stores import open_store
from narcore.stores.base import BinaryCacheStore, read_file
from narcore.stores.traced import TracedStore
from narcore.trace import Trace, silent

log = logging.getLogger("narcore.lookup")

CACHE_INFO_LIMIT = 1 << 16
CACHE_INFO_SECONDS = 3600.0
FAILED_INFO_SECONDS = 30.0

# How long others wait for a store's first nix-cache-info. After that they go on without, and it takes its place when it has come.
INTRODUCTION_SECONDS = 3.0

DEFAULT_PRIORITY = 50  # Nix's (src/libstore/store-api.hh)

# How many calls one store may keep waiting at once in threads of their own: no slow store takes those of another.
CALLS_AT_ONCE = 16

T = TypeVar("T")


class Substituter:
    """A store, its place among others, and whether its narinfos are trusted without a signature. Thread-safe."""

    def __init__(
        self,
        store: BinaryCacheStore,
        *,
        priority: int | None = None,
        trusted: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = store
        self.trusted = trusted
        self._priority = priority
        self._clock = clock
        self._breaker = CircuitBreaker(store.url, clock)
        self._last_failure: StoreError | None = None
        self._calls = threading.BoundedSemaphore(CALLS_AT_ONCE)
        self._lock = threading.Lock()
        self._info: CacheInfo | None = None
        self._info_failure: NarcoreError | None = None
        self._introduction: Future[None] | None = None
        self._introduced_at = self._ask_again_at = 0.0

    @classmethod
    def open(cls, url: str, *, trace: Trace = silent) -> Self:
        """From a store URL, whose ``priority`` and ``trusted`` are for us. Raises SettingsError."""
        parameters = parse_qs(url.partition("?")[2], keep_blank_values=True)
        store = open_store(url)
        if trace is not silent:
            store = TracedStore(store, trace)
        return cls(store, priority=_priority(parameters), trusted=_flag(parameters, "trusted"))

    @property
    def url(self) -> str:
        return self.store.url

    # --- nix-cache-info

    @property
    def priority(self) -> int:
        """Lower is asked first: the URL's word, else that of nix-cache-info as far as it is known."""
        known = self._info.priority if self._info is not None else None
        return next((number for number in (self._priority, known) if number is not None), DEFAULT_PRIORITY)

    @property
    def has_own_priority(self) -> bool:
        """Whether the URL says it, so that nix-cache-info can't."""
        return self._priority is not None

    @property
    def store_dir(self) -> str | None:
        """As far as it is known: nothing is asked for here."""
        return self._info.store_dir if self._info is not None else None

    def introduce(self) -> Future[None]:
        """Have its nix-cache-info asked for in the background, unless that was done within the hour (or 30 s, if it failed)."""
        with self._lock:
            asked = self._introduction
            if asked is None or (asked.done() and self._clock() >= self._ask_again_at):
                self._introduced_at = self._clock()
                asked = self._introduction = call_in_background(self._learn)
            return asked

    def wait_for_introduction(self) -> None:
        """Have it asked for, and if nothing is known of it yet, wait until INTRODUCTION_SECONDS after it was asked."""
        asked = self.introduce()
        if self._info is None and self._info_failure is None:
            wait([asked], timeout=max(0.0, self._introduced_at + INTRODUCTION_SECONDS - self._clock()))

    def info(self) -> CacheInfo:
        """Its nix-cache-info, Nix's defaults where it has none; however long that takes. Raises StoreError or CacheInfoError."""
        self.introduce().result()
        if self._info is None:
            raise copy.copy(self._info_failure or StoreUnavailable(f"{self.url} has not been asked"))
        return self._info

    def _learn(self) -> None:
        seconds = CACHE_INFO_SECONDS
        try:
            self._info = self._fetch_info()
        except NarcoreError as failure:  # what was known before still holds
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
        """Ask it now, whatever is remembered. Raises StoreError or CacheInfoError if it does not answer."""
        try:
            CacheInfo.parse(self.read("nix-cache-info", CACHE_INFO_LIMIT))
        except FileNotInStore:
            self.store.check()  # which tells a missing one from one that may not be read

    # --- asking

    @property
    def is_paused(self) -> bool:
        """Whether the circuit breaker is open: the store keeps failing and is not asked now."""
        return self._breaker.is_open

    def read(self, path: str, limit: int) -> bytes:
        """The content of a small file. Raises StoreError; while the store is paused, an error as the last one, without asking."""
        if not self._breaker.allows_call():
            kind = type(self._last_failure) if self._last_failure else StoreUnavailable
            raise kind(f"not asking {self.url} for a while, after: {self._last_failure}")
        try:
            content = read_file(self.store, path, limit)
        except StoreUnavailable as failure:
            self._last_failure = copy.copy(failure)  # without its traceback, which keeps what was being read
            log.warning("%s", failure)
            self._breaker.failed()
            raise
        except FileNotInStore:
            self._breaker.succeeded()
            raise
        self._breaker.succeeded()
        return content

    def soon(self, call: Callable[[], T]) -> Callable[[], T]:
        """Begin a call to the store in a thread of its own, to be waited for by calling what this gives.

        If too many are under way at this store, it is only begun when it is waited for.
        """
        if not self._calls.acquire(blocking=False):
            return call
        try:
            flight = call_in_background(call)
        except RuntimeError:  # the system has no more threads to give
            self._calls.release()
            return call
        flight.add_done_callback(lambda _flight: self._calls.release())
        return flight.result


def _priority(parameters: dict[str, list[str]]) -> int | None:
    text = parameters.get("priority", [""])[-1]
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise SettingsError(f"a store's priority is a number, and {text[:50]!r} is none; lower is asked first")
    return int(text)


def _flag(parameters: dict[str, list[str]], name: str) -> bool:
    text = parameters.get(name, ["false"])[-1]
    if text not in ("true", "false", "1", "0"):
        raise SettingsError(f"a store's {name!r} is true or false, not {text[:50]!r}")
    return text in ("true", "1")
