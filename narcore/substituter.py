"""One of the binary caches that are asked for store paths ("substituter" is Nix's word): a store and what is known of it."""

import threading
import time
from collections.abc import Callable
from typing import Self
from urllib.parse import parse_qs

from narcore.errors import FileNotInStore, NarcoreError, SettingsError, StoreError, StoreUnavailable
from narcore.formats.cacheinfo import CacheInfo
from narcore.stores import open_store
from narcore.stores.base import BinaryCacheStore, read_file

CACHE_INFO_LIMIT = 1 << 16
CACHE_INFO_SECONDS = 3600.0
FAILED_INFO_SECONDS = 30.0

DEFAULT_PRIORITY = 50  # Nix's (src/libstore/store-api.hh)

# After so many failures in a row a store is left alone, for twice as long each time that the next try fails as well.
FAILURES = 3
PAUSE_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 300.0


class Breaker:
    """Keeps a store that fails from being asked: everybody who asks it waits for its timeout. Thread-safe."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._pause = PAUSE_SECONDS
        self._until = 0.0

    def lets_through(self) -> bool:
        """Whether to ask. While it is paused, nobody is let through; behind the pause, one is, to see."""
        with self._lock:
            if self._failures < FAILURES:
                return True
            if self._clock() < self._until:
                return False
            self._until = self._clock() + self._pause
            return True

    def succeeded(self) -> None:
        with self._lock:
            self._failures, self._pause = 0, PAUSE_SECONDS

    def failed(self) -> None:
        with self._lock:
            self._failures += 1
            if self._failures >= FAILURES:
                self._until = self._clock() + self._pause
                self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)


class Substituter:
    """A store, its place among others, and whether its narinfos are believed without a signature. Thread-safe."""

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
        self._breaker = Breaker(clock)
        self._info: CacheInfo | None = None
        self._failure: NarcoreError | None = None
        self._asked_again_at = 0.0

    @classmethod
    def open(cls, url: str) -> Self:
        """From a store URL, whose ``priority`` and ``trusted`` are for us. Raises SettingsError."""
        parameters = parse_qs(url.partition("?")[2], keep_blank_values=True)
        return cls(open_store(url), priority=_priority(parameters), trusted=_flag(parameters, "trusted"))

    @property
    def url(self) -> str:
        return self.store.url

    @property
    def priority(self) -> int:
        """Lower is asked first: the URL's word, else that of nix-cache-info as far as it is known."""
        known = self._info.priority if self._info is not None else None
        return next((number for number in (self._priority, known) if number is not None), DEFAULT_PRIORITY)

    @property
    def store_dir(self) -> str | None:
        """As far as it is known: nothing is asked for here."""
        return self._info.store_dir if self._info is not None else None

    @property
    def is_placed(self) -> bool:
        """Whether asking for its nix-cache-info could not change its place."""
        return self._priority is not None or self._clock() < self._asked_again_at

    def info(self) -> CacheInfo:
        """Its nix-cache-info, at most an hour old; Nix's defaults where it has none.

        Raises StoreError or CacheInfoError, also for half a minute after it has.
        """
        if self._clock() >= self._asked_again_at:
            try:
                self._info, self._failure, seconds = self._fetch_info(), None, CACHE_INFO_SECONDS
            except NarcoreError as failure:
                self._failure, seconds = failure, FAILED_INFO_SECONDS
            self._asked_again_at = self._clock() + seconds
        if self._info is None:
            raise self._failure or StoreUnavailable(f"{self.url} has not been asked")
        return self._info

    def _fetch_info(self) -> CacheInfo:
        try:
            return CacheInfo.parse(self.read("nix-cache-info", CACHE_INFO_LIMIT))
        except FileNotInStore:
            return CacheInfo()

    def check(self) -> None:
        """Ask it now, whatever is remembered. Raises StoreError or CacheInfoError if it does not answer."""
        self._fetch_info()

    def read(self, path: str, limit: int) -> bytes:
        """A small file. Raises StoreError; without asking, while the store is being left alone."""
        if not self._breaker.lets_through():
            raise StoreUnavailable(f"{self.url} has failed repeatedly and is left alone for a while")
        try:
            content = read_file(self.store, path, limit)
        except FileNotInStore:
            self._breaker.succeeded()
            raise
        except StoreError:
            self._breaker.failed()
            raise
        self._breaker.succeeded()
        return content


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
