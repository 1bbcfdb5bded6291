"""From a hash part to a narinfo, through one or several substituters: in which order, whom to believe, what their silence means."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Literal

from narcore.cache.lru import LruMemory
from narcore.cache.singleflight import SingleFlight
from narcore.errors import (
    FileNotInStore,
    NarcoreError,
    NarInfoError,
    StoreError,
    StoresTimeout,
    StoresUnavailable,
    StoreTimeout,
    UntrustedSignature,
)
from narcore.formats.contentaddress import is_address_of
from narcore.formats.narinfo import NarInfo
from narcore.formats.signature import PublicKey
from narcore.pathinfo import PathInfo, Trust
from narcore.substituter import Substituter
from narcore.trace import Trace

log = logging.getLogger("narcore.lookup")

Strategy = Literal["ordered", "parallel"]

# A narinfo of a path with thousands of references has some 100 KiB.
NARINFO_LIMIT = 1 << 20
NARINFO_MEMORY = 8 << 20

# A narinfo may be signed anew or taken away, so it is not trusted for ever; a missing one may be uploaded any moment.
NARINFO_SECONDS = 3600.0
MISSING_SECONDS = 5.0

# How long a store that gave a NAR that is not what was promised is not asked for that path again.
LIE_SECONDS = 300.0

# The order needs every store's nix-cache-info; one that does not give it in this time is placed without.
PLACING_SECONDS = 3.0

WORKERS = 16


class Lookup:
    """Narinfos, remembered. Thread-safe."""

    def __init__(
        self,
        substituters: Sequence[Substituter],
        *,
        strategy: Strategy,
        trusted_keys: Sequence[PublicKey],
        trace: Trace,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._substituters = tuple(substituters)
        self._strategy = strategy
        self._trusted_keys = tuple(trusted_keys)
        self._trace = trace
        self._found: LruMemory[tuple[str, str], PathInfo] = LruMemory(NARINFO_MEMORY, clock=clock)
        self._missing: LruMemory[tuple[str, str], str] = LruMemory(10_000, clock=clock)
        self._liars: LruMemory[tuple[str, str], bool] = LruMemory(10_000, clock=clock)
        self._flights: SingleFlight[tuple[str, str], PathInfo] = SingleFlight()
        self._workers = (
            ThreadPoolExecutor(WORKERS, thread_name_prefix="lookup") if len(self._substituters) > 1 else None
        )

    def close(self) -> None:
        if self._workers is not None:
            self._workers.shutdown(wait=False, cancel_futures=True)

    def find(self, hash_part: str, store_dir: str) -> PathInfo:
        """The narinfo of the path with that hash part, of the first substituter in order that has a good one.

        Raises FileNotInStore only if all of that store dir answered that they have none. Otherwise, with one substituter its own
        error (StoreError, NarInfoError, UntrustedSignature); with several StoresUnavailable or StoresTimeout if some could not be
        asked, else the first error.
        """
        key = (store_dir, hash_part)
        known = self._found.get(key)
        self._trace("narinfo", {"hash_part": hash_part, "hit": known is not None})
        if known is not None:
            return known
        missing = self._missing.get(key)
        if missing is not None:
            raise FileNotInStore(missing)
        return self._flights.do(key, partial(self._ask_all, hash_part, store_dir))

    def others(self, info: PathInfo) -> Iterator[PathInfo]:
        """The same NAR from the other substituters that have it, in order: for when the one of ``info`` fails."""
        narinfo = info.narinfo
        for substituter in self._in_order():
            if substituter.store is info.store:
                continue
            try:
                other = self._fetch(substituter, narinfo.store_path.hash_part, narinfo.store_path.store_dir)
            except NarcoreError:
                continue  # the error to be told is that of the one asked first
            if (other.narinfo.nar_hash, other.narinfo.nar_size) == (narinfo.nar_hash, narinfo.nar_size):
                log.warning("%s: going on with the NAR of %s", info.store.url, other.store.url)
                yield other

    def distrust(self, info: PathInfo) -> None:
        """Note that the NAR was not what its narinfo says: another substituter's turn, if there is one."""
        store_path = info.narinfo.store_path
        self._found.discard((store_path.store_dir, store_path.hash_part))
        if len(self._substituters) > 1:
            self._liars.put((info.store.url, store_path.hash_part), True, seconds=LIE_SECONDS)

    # --- asking

    def _ask_all(self, hash_part: str, store_dir: str) -> PathInfo:
        failures: list[NarcoreError] = []
        for answer in self._answers(hash_part, store_dir):
            try:
                info = answer()
            except FileNotInStore:
                continue
            except NarcoreError as failure:
                log.warning("%s-*: %s", hash_part, failure)
                failures.append(failure)
                continue
            self._found.put((store_dir, hash_part), info, weight=_weight(info), seconds=NARINFO_SECONDS)
            return info
        if failures:
            raise self._verdict(failures)
        missing = f"no store has a path {store_dir}/{hash_part}-*"
        self._missing.put((store_dir, hash_part), missing, seconds=MISSING_SECONDS)
        raise FileNotInStore(missing)

    def _answers(self, hash_part: str, store_dir: str) -> Iterator[Callable[[], PathInfo]]:
        """A call for the answer of each substituter, in order; with ``parallel`` all have been asked by then."""
        asked = [
            partial(self._fetch, substituter, hash_part, store_dir)
            for substituter in self._in_order()
            if substituter.store_dir in (None, store_dir) and not self._liars.get((substituter.url, hash_part))
        ]
        if self._strategy == "ordered" or self._workers is None or len(asked) < 2:
            yield from asked
            return
        flights: list[Future[PathInfo]] = [self._workers.submit(ask) for ask in asked]
        try:
            for flight in flights:
                yield flight.result
        finally:
            for flight in flights:
                flight.cancel()

    def _in_order(self) -> list[Substituter]:
        """By priority, then as configured."""
        if self._workers is not None:
            unplaced = [substituter for substituter in self._substituters if not substituter.is_placed]
            wait([self._workers.submit(_place, substituter) for substituter in unplaced], timeout=PLACING_SECONDS)
        return sorted(self._substituters, key=lambda substituter: substituter.priority)

    def _verdict(self, failures: list[NarcoreError]) -> NarcoreError:
        """What to tell if nobody had it and some failed."""
        silent = [failure for failure in failures if isinstance(failure, StoreError)]
        if len(self._substituters) == 1 or not silent:
            return failures[0]
        kind = StoresTimeout if all(isinstance(failure, StoreTimeout) for failure in silent) else StoresUnavailable
        return kind(f"{len(silent)} of {len(self._substituters)} stores could not be asked: {silent[0]}")

    def _fetch(self, substituter: Substituter, hash_part: str, store_dir: str) -> PathInfo:
        """Raises FileNotInStore if the substituter is of another store dir."""
        data = substituter.read(f"{hash_part}.narinfo", NARINFO_LIMIT)
        try:
            narinfo = NarInfo.parse(data, store_dir)
        except NarInfoError:
            # Asked this late, a store of the usual dir costs one request less.
            if substituter.info().store_dir != store_dir:
                raise FileNotInStore(f"{substituter.url} is a store of {substituter.store_dir}") from None
            raise
        if narinfo.store_path.hash_part != hash_part:
            raise NarInfoError(f"{substituter.url} answers for {hash_part} with {narinfo.store_path.base_name}")
        return PathInfo(narinfo, substituter.store, self._check(substituter, narinfo))

    def _check(self, substituter: Substituter, narinfo: NarInfo) -> Trust:
        """Why the narinfo is believed (Nix: src/libstore/path-info.cc, checkSignatures). Raises UntrustedSignature."""
        if not self._trusted_keys:
            return Trust.UNCHECKED
        if narinfo.signed_by(self._trusted_keys) is not None:
            return Trust.SIGNATURE
        if substituter.trusted:
            return Trust.STORE
        if is_address_of(narinfo):  # last: to prove such an address may take reading the whole NAR
            return Trust.ADDRESS
        raise UntrustedSignature(f"{substituter.url}: no trusted key has signed {narinfo.store_path.base_name}")


def _weight(info: PathInfo) -> int:
    """About how many bytes of memory it takes."""
    return 2000 + sum(map(len, info.narinfo.references))


def _place(substituter: Substituter) -> None:
    try:
        substituter.info()
    except NarcoreError as failure:  # it keeps the place that it has without
        log.warning("%s", failure)
