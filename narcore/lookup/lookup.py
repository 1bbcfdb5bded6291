"""Lookup of narinfos by hash part: asks one or several substituters in order, and checks signatures and trust.

Without trusted keys, no signature is checked and every narinfo is accepted (``Trust.UNCHECKED``).
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal

from narcore.concurrency.lru import LruMemory
from narcore.concurrency.singleflight import SingleFlight
from narcore.errors import (
    CompressionError,
    FileNotInStore,
    IntegrityError,
    NarcoreError,
    NarInfoError,
    StoreError,
    StoresTimeout,
    StoresUnavailable,
    StoreTimeout,
    StoreUnresponsive,
    UntrustedSignature,
)
from narcore.formats.contentaddress import is_address_of
from narcore.formats.narinfo import NarInfo
from narcore.formats.signature import PublicKey
from narcore.lookup.pathinfo import PathInfo, Trust
from narcore.lookup.substituter import Substituter
from narcore.stores.waits import StoreWaits
from narcore.streams.compression import unpack_small
from narcore.trace import Trace

log = logging.getLogger("narcore.lookup")

Strategy = Literal["ordered", "parallel"]

# In bytes. The narinfo of a path with thousands of references has about 100 KiB.
NARINFO_LIMIT = 1 << 20
NARINFO_MEMORY = 8 << 20

# A narinfo may be signed again or removed, so it is not cached forever. A missing narinfo may be uploaded at any moment.
NARINFO_SECONDS = 3600.0
MISSING_SECONDS = 5.0

# After a store sent a wrong NAR, or its NAR could not be read, the other stores are asked first for this path for so many seconds.
WRONG_NAR_SECONDS = 300.0
FAILED_NAR_SECONDS = 60.0


class Lookup:
    """Finds narinfos, and caches them in memory. Thread-safe."""

    def __init__(
        self,
        substituters: Sequence[Substituter],
        *,
        strategy: Strategy,
        trusted_keys: Sequence[PublicKey],
        trace: Trace,
        clock: Callable[[], float] = time.monotonic,
        waits: StoreWaits | None = None,
    ) -> None:
        self._waits = waits or StoreWaits()
        self._substituters = tuple(substituters)
        for substituter in self._substituters:
            substituter.is_only = len(self._substituters) == 1
        self._strategy = strategy
        self._trusted_keys = tuple(trusted_keys)
        self._trace = trace
        self._found: LruMemory[tuple[str, str], PathInfo] = LruMemory(NARINFO_MEMORY, clock=clock)
        self._missing: LruMemory[tuple[str, str], str] = LruMemory(10_000, clock=clock)
        self._demoted: LruMemory[tuple[str, str], bool] = LruMemory(10_000, clock=clock)
        self._flights: SingleFlight[tuple[str, str, frozenset[str]], PathInfo] = SingleFlight(wait=self._waits.wait)

    def find(self, hash_part: str, store_dir: str) -> PathInfo:
        """Return the narinfo of a path. It comes from the first substituter, in their order, that has a valid and trusted narinfo.

        Raises FileNotInStore only if all substituters with this store dir answered that they do not have the path.

        If the only substituter fails, raises its error: StoreError, NarInfoError or UntrustedSignature. With several substituters,
        raises StoresUnavailable or StoresTimeout if some of them could not be asked, else the first error. Raises
        StoreUnresponsive if too many requests wait for a store that sends nothing.
        """
        key = (store_dir, hash_part)
        known = self._found.get(key)
        self._trace("narinfo", {"hash_part": hash_part, "hit": known is not None})
        if known is not None:
            return known
        missing = self._missing.get(key)
        if missing is not None:
            raise FileNotInStore(missing)
        return self._ask_responsive(hash_part, store_dir)

    def _ask_responsive(self, hash_part: str, store_dir: str) -> PathInfo:
        """Ask the stores. Concurrent requests for the same path share the answer.

        If the call fails because a store became unresponsive in the meantime, asks again. The new call does not wait for it.
        """
        unresponsive = self._unresponsive()
        while True:
            try:
                return self._flights.do(
                    (store_dir, hash_part, unresponsive), partial(self._ask_all, hash_part, store_dir)
                )
            except StoreUnresponsive:
                before, unresponsive = unresponsive, self._unresponsive()
                if not unresponsive > before or len(unresponsive) == len(self._substituters):
                    raise

    def _unresponsive(self) -> frozenset[str]:
        return frozenset(each.url for each in self._substituters if self._waits.is_full(each.url))

    def sources(self, info: PathInfo) -> Iterator[PathInfo]:
        """Yield a PathInfo for each store that can send the NAR: ``info`` itself, then those of other stores with the same NAR.

        ``info`` comes last if its store is paused or unresponsive, or if its store recently sent a wrong NAR or could not send it.
        """
        url = info.store.url
        is_demoted = self._is_demoted(url, info.narinfo.store_path.hash_part)
        own_last = self.is_paused(info) or self._waits.is_full(url) or is_demoted
        if not own_last:
            yield info
        yield from self._others(info)
        if own_last:
            yield info

    def _others(self, info: PathInfo) -> Iterator[PathInfo]:
        narinfo, own = info.narinfo, info.narinfo.store_path
        for substituter in self._in_order(own.hash_part):
            if substituter.store is info.store:
                continue
            try:
                other = self._fetch(substituter, own.hash_part, own.store_dir)
            except NarcoreError:
                continue  # only errors of the store whose narinfo is used are reported
            if (other.narinfo.nar_hash, other.narinfo.nar_size) == (narinfo.nar_hash, narinfo.nar_size):
                yield other

    def demote(self, info: PathInfo, failure: NarcoreError) -> None:
        """Ask other substituters first for a while, because the NAR could not be read, or does not match its narinfo.

        Ignores StoreUnresponsive, because then the NAR was not requested.
        """
        if isinstance(failure, StoreUnresponsive):
            return
        store_path = info.narinfo.store_path
        is_wrong = isinstance(failure, IntegrityError)
        seconds = WRONG_NAR_SECONDS if is_wrong else FAILED_NAR_SECONDS
        text = "the NAR of %s from %s can't be used: %s; for the next %g s, other stores are asked first"
        log.warning(text, store_path.base_name, info.store.url, failure, seconds)
        if is_wrong or len(self._substituters) > 1:
            self._found.discard((store_path.store_dir, store_path.hash_part))
        self._demoted.put((info.store.url, store_path.hash_part), True, seconds=seconds)

    # --- the substituters themselves

    def substituters(self) -> list[Substituter]:
        """Return the substituters in the order in which they are asked. A store of unknown priority has the default priority."""
        return sorted(self._substituters, key=lambda substituter: substituter.priority)

    def request_cache_infos(self, *, wait: bool) -> None:
        """Request nix-cache-info from each substituter that was not asked recently; with ``wait``, wait a few seconds for it."""
        _request_cache_infos(self._substituters, wait_for_answers=wait)

    def is_paused(self, info: PathInfo) -> bool:
        """Return whether the circuit breaker of the path's store is open and there are other stores to ask."""
        return len(self._substituters) > 1 and self._substituter(info).is_paused

    # --- asking

    def _ask_all(self, hash_part: str, store_dir: str) -> PathInfo:
        failures: list[NarcoreError] = []
        for answer in self._answers(hash_part, store_dir):
            try:
                info = answer()
            except FileNotInStore:
                continue
            except StoreError as failure:  # the substituter has logged it
                failures.append(failure)
                continue
            except NarcoreError as failure:
                log.warning("%s: %s", hash_part, failure)
                failures.append(failure)
                continue
            self._found.put((store_dir, hash_part), info, weight=_weight(info), seconds=NARINFO_SECONDS)
            return info
        if failures:
            raise self._combined_error(failures)
        missing = f"no store has a path {store_dir}/{hash_part}-*"
        self._missing.put((store_dir, hash_part), missing, seconds=MISSING_SECONDS)
        raise FileNotInStore(missing)

    def _answers(self, hash_part: str, store_dir: str) -> list[Callable[[], PathInfo]]:
        """Return a function for each substituter, in order, that returns its answer or raises its error.

        With the strategy ``parallel``, all calls but the first begin at once in background threads, as far as the limits of
        `Substituter.soon` allow.
        """
        asked = [each for each in self._in_order(hash_part) if each.store_dir in (None, store_dir)]
        calls = [partial(self._fetch, substituter, hash_part, store_dir) for substituter in asked]
        if self._strategy == "ordered":
            return list(calls)
        return [*calls[:1], *(each.soon(call) for each, call in zip(asked[1:], calls[1:], strict=True))]

    def _in_order(self, hash_part: str) -> list[Substituter]:
        """Return the substituters by priority, then in the configured order. Substituters demoted for this path come last."""
        if len(self._substituters) > 1:
            _request_cache_infos(
                [each for each in self._substituters if not each.has_own_priority], wait_for_answers=True
            )
        return sorted(self.substituters(), key=lambda each: self._is_demoted(each.url, hash_part))

    def _is_demoted(self, url: str, hash_part: str) -> bool:
        return self._demoted.get((url, hash_part)) is not None

    def _substituter(self, info: PathInfo) -> Substituter:
        return next(each for each in self._substituters if each.store is info.store)

    def _combined_error(self, failures: list[NarcoreError]) -> NarcoreError:
        """Return the error to raise if no substituter has the path and some failed."""
        refused = next((failure for failure in failures if isinstance(failure, StoreUnresponsive)), None)
        if refused is not None:
            return refused
        store_errors = [failure for failure in failures if isinstance(failure, StoreError)]
        if len(self._substituters) == 1 or not store_errors:
            return failures[0]
        kind = (
            StoresTimeout if all(isinstance(failure, StoreTimeout) for failure in store_errors) else StoresUnavailable
        )
        return kind(f"{len(store_errors)} of {len(self._substituters)} stores could not be asked: {store_errors[0]}")

    def _fetch(self, substituter: Substituter, hash_part: str, store_dir: str) -> PathInfo:
        """Fetch and check the narinfo. Raises FileNotInStore if the substituter has another store dir."""
        data = substituter.read(f"{hash_part}.narinfo", NARINFO_LIMIT)
        try:
            narinfo = _parsed(data, store_dir)
        except NarInfoError:
            # The store dir is in nix-cache-info. It is compared only after parsing failed, which saves a request in the usual case.
            if substituter.info().store_dir != store_dir:
                raise FileNotInStore(f"{substituter.url} has the store directory {substituter.store_dir}") from None
            raise
        if narinfo.store_path.hash_part != hash_part:
            raise NarInfoError(f"{substituter.url} sent a narinfo of {narinfo.store_path.base_name} for {hash_part}")
        return PathInfo(narinfo, substituter.store, self._decide_trust(substituter, narinfo))

    def _decide_trust(self, substituter: Substituter, narinfo: NarInfo) -> Trust:
        """Return why the narinfo is trusted (Nix: src/libstore/path-info.cc, checkSignatures). Raises UntrustedSignature.

        The content address is checked last, because it usually requires reading the whole NAR before anything can be served.
        """
        if not self._trusted_keys:
            return Trust.UNCHECKED
        if narinfo.signed_by(self._trusted_keys) is not None:
            return Trust.SIGNATURE
        if substituter.trusted:
            return Trust.STORE
        if is_address_of(narinfo):
            return Trust.ADDRESS
        raise UntrustedSignature(f"{substituter.url}: no trusted key has signed {narinfo.store_path.base_name}")


def _parsed(data: bytes, store_dir: str) -> NarInfo:
    """Parse a narinfo. With Nix's ``narinfo-compression`` it is uploaded compressed, and an object store sends it like that."""
    try:
        return NarInfo.parse(data, store_dir)
    except NarInfoError as error:
        try:
            plain = unpack_small(data, NARINFO_LIMIT)
        except CompressionError:
            raise error from None
    return NarInfo.parse(plain, store_dir)


def _request_cache_infos(substituters: Sequence[Substituter], *, wait_for_answers: bool) -> None:
    for substituter in substituters:
        substituter.request_cache_info()
    if wait_for_answers:
        for substituter in substituters:
            substituter.wait_for_cache_info()


def _weight(info: PathInfo) -> int:
    """Estimate how many bytes of memory ``info`` uses."""
    return 2000 + sum(map(len, info.narinfo.references))
