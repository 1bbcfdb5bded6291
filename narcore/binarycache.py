"""``BinaryCache``: the one object that every front end holds. It joins stores, lookup, the disk cache and the sources of NARs."""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import as_completed
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from narcore.cache.narcache import FILL_PATIENCE, NarCache
from narcore.concurrency.background import call_in_background
from narcore.concurrency.lru import LruMemory
from narcore.concurrency.singleflight import SingleFlight
from narcore.errors import (
    CacheFailure,
    CompressionError,
    FileNotInStore,
    ListingError,
    NarcoreError,
    NarTooLarge,
    PathError,
    SettingsError,
    StoreError,
    StorePathError,
    StoreUnresponsive,
)
from narcore.formats.listing import Kind, NarListing
from narcore.formats.narinfo import NarInfo
from narcore.formats.resolve import Found, resolve
from narcore.formats.signature import PublicKey
from narcore.formats.storepath import DEFAULT_STORE_DIR, StorePath, is_hash_part
from narcore.lookup.addressproof import AddressProof
from narcore.lookup.lookup import Lookup, Strategy
from narcore.lookup.pathinfo import PathInfo, Trust
from narcore.lookup.substituter import Substituter
from narcore.nars.accessor import Located, NarAccessor
from narcore.nars.opennar import ArrivingNar, OpenNar
from narcore.nars.source import KnownListing, NarSource
from narcore.nars.wholenar import NarStreams
from narcore.opening import open_cache, open_tier
from narcore.settings import Settings
from narcore.stores.base import BinaryCacheStore, read_file
from narcore.stores.waits import StoreWaits
from narcore.streams.compression import unpack_small
from narcore.tier.reader import TierReader
from narcore.tier.uploads import TierUploads
from narcore.trace import Trace, silent

# A listing has about 80 bytes per entry, and a listing of more than 200,000 entries is not parsed (MEMORY_MAX in
# formats/listing.py). In place of a larger listing, the NAR itself is read, entry by entry.
LISTING_LIMIT = 16 << 20

# How many times a NAR is fetched if it is evicted before it can be opened. A single eviction can be chance. Several in a row mean
# that the cache has space for only a few of the NARs that are being read.
FETCH_TRIES = 10

# How many listing entries to keep in memory, over all listings. Each entry takes about 50 bytes.
LISTING_MEMORY = 300_000


class BinaryCache:
    """The store paths of one or several stores. The stores are asked in order. Thread-safe."""

    def __init__(
        self,
        stores: Iterable[Substituter | BinaryCacheStore],
        *,
        strategy: Strategy = "ordered",
        trusted_keys: Sequence[PublicKey] = (),
        cache: NarCache | None = None,
        strict: bool = False,
        max_nar_size: int | None = None,
        trace: Trace = silent,
        clock: Callable[[], float] = time.monotonic,
        waits: StoreWaits | None = None,
        tier: TierReader | None = None,
        uploads: TierUploads | None = None,
    ) -> None:
        """Create a BinaryCache. ``waits`` must be the same object that the substituters and the cache use.

        ``tier`` is the shared tier to read from; ``uploads`` adds fetched NARs to this tier.
        """
        self._waits = waits or StoreWaits()
        self.substituters = tuple(
            store if isinstance(store, Substituter) else Substituter(store, clock=clock) for store in stores
        )
        self._cache = cache
        self._strict = strict
        # Strict mode serves only cached NARs, so no NAR may be larger than the cache. The keys are the names of the settings.
        limits = {"NAR_MAX_NAR_SIZE": max_nar_size, "NAR_CACHE_SIZE": cache.limit if cache and strict else None}
        self._limits = [(limit, name) for name, limit in limits.items() if limit is not None]
        self._lookup = Lookup(
            self.substituters, strategy=strategy, trusted_keys=trusted_keys, trace=trace, clock=clock, waits=self._waits
        )
        self._streams = NarStreams(sources=self._lookup.sources, on_failure=self._lookup.demote)
        self._tier = tier
        self._uploads = uploads
        self._source = NarSource(
            self._streams,
            cache,
            strict=strict,
            trace=trace,
            on_other_listing=self._learn_listing,
            waits=self._waits,
            tier=tier,
            uploads=uploads,
        )
        self._proof = AddressProof(self._source.whole, on_mismatch=self._lookup.demote, waits=self._waits)
        self._trace = trace
        self._listings: LruMemory[tuple[str, str], KnownListing] = LruMemory(LISTING_MEMORY, clock=clock)
        self._listing_flights: SingleFlight[str, KnownListing] = SingleFlight(wait=self._waits.wait)

    @classmethod
    def from_settings(
        cls,
        settings: Settings,
        *,
        trace: Trace = silent,
        strict: bool | None = None,
        patience: float | None = None,
        threads: int | None = None,
    ) -> Self:
        """Create a BinaryCache from the settings.

        ``strict`` overrides NAR_VERIFY; ``patience`` is how many seconds a fill waits for a slot and for room. ``threads`` is how
        many threads serve requests. At most half of them wait for one store that sends nothing, and at most three quarters for all
        such stores; further requests raise StoreUnresponsive. Without ``threads``, any number of threads may wait.

        Raises SettingsError if a URL is not the URL of a store, or if strict mode is on and the disk cache is off or unusable.
        """
        waits = StoreWaits(max(1, threads // 2)) if threads is not None else None
        strict = settings.verify == "strict" if strict is None else strict
        try:
            substituters = [Substituter.open(url, trace=trace, waits=waits) for url in settings.cache_urls]
        except SettingsError as error:
            raise SettingsError(f"NAR_CACHE_URL: {error}") from error
        tier, uploads = open_tier(settings, trace=trace, waits=waits)
        return cls(
            substituters,
            strategy=settings.cache_strategy,
            trusted_keys=settings.trusted_public_keys,
            cache=open_cache(
                settings,
                strict=strict,
                patience=FILL_PATIENCE if patience is None else patience,
                trace=trace,
                waits=waits,
            ),
            strict=strict,
            max_nar_size=settings.max_nar_size,
            trace=trace,
            waits=waits,
            tier=tier,
            uploads=uploads,
        )

    @classmethod
    def connect(
        cls, *urls: str, trusted_public_keys: str | None = None, cache_dir: str | os.PathLike[str] | None = None
    ) -> Self:
        """Open the stores with these URLs (default: https://cache.nixos.org). Reads no environment variables.

        ``trusted_public_keys`` is written as in nix.conf; without it, signatures are checked only if cache.nixos.org is the only
        store. Without ``cache_dir``, NARs are not cached on disk. Raises SettingsError.
        """
        environ = {"NAR_CACHE_DIR": "off" if cache_dir is None else str(Path(cache_dir).absolute())}
        if urls:
            environ["NAR_CACHE_URL"] = " ".join(urls)
        if trusted_public_keys is not None:
            environ["NAR_TRUSTED_PUBLIC_KEYS"] = trusted_public_keys
        return cls.from_settings(Settings.from_environ(environ))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the downloads of this process and close the connections to the stores."""
        if self._cache is not None:
            self._cache.close()
        if self._uploads is not None:
            self._uploads.close()
        if self._tier is not None:
            self._tier.close()
        for substituter in self.substituters:
            substituter.store.close()

    # --- the stores

    def store_dirs(self, *, ask: bool = True) -> tuple[str, ...]:
        """Return the store dirs (such as ``/nix/store``) of the stores, without duplicates, in the stores' order.

        If a store does not answer in time, its store dir counts as ``/nix/store``. With ``ask=False``, does not wait for stores
        that have not answered yet.
        """
        self._lookup.request_cache_infos(wait=ask)
        return tuple(dict.fromkeys(each.store_dir or DEFAULT_STORE_DIR for each in self.substituters))

    def may_have(self, store_dir: str) -> bool:
        """Return whether any store has the store dir ``store_dir``, or has not declared its store dir."""
        if any(each.store_dir == store_dir for each in self.substituters):
            return True
        self._lookup.request_cache_infos(wait=True)
        return any(each.store_dir in (None, store_dir) for each in self.substituters)

    def in_order(self) -> list[Substituter]:
        """Return the stores in the order in which they are asked, by the priorities known so far. Does not wait for any store."""
        self._lookup.request_cache_infos(wait=False)
        return self._lookup.substituters()

    def check_ready(self) -> None:
        """Return once any store answers. If no store does, raises the last error of a store (StoreError or CacheInfoError)."""
        error: NarcoreError | None = None
        for answer in as_completed([call_in_background(each.check) for each in self.substituters]):
            try:
                answer.result()
            except NarcoreError as failure:
                error = failure
            else:
                return
        if error is not None:
            raise error

    # --- a store path

    def path_info(self, path: str, store_dir: str = DEFAULT_STORE_DIR) -> PathInfo:
        """Return the narinfo of a store path and the store that gave it.

        ``path`` is a full store path, or the hash part of a store path in ``store_dir``. Raises StorePathError if ``path`` is
        neither, and FileNotInStore if every store with that store dir answered that it has no such path. Other failures raise
        StoreError, NarInfoError or UntrustedSignature.
        """
        if path.startswith("/"):
            store_path = StorePath.parse(path)
            return self._lookup.find(store_path.hash_part, store_path.store_dir)
        if not is_hash_part(path):
            raise StorePathError(f"{path[:300]!r} is not a store path and not the hash of one")
        return self._lookup.find(path, store_dir)

    def path_info_anywhere(self, hash_part: str) -> PathInfo:
        """Like ``path_info``, but search all store dirs in order. Raises FileNotInStore only if no store dir has the path."""
        failure: NarcoreError | None = None
        for store_dir in self.store_dirs():
            try:
                return self.path_info(hash_part, store_dir)
            except FileNotInStore as missing:
                failure = failure or missing
            except NarcoreError as other:
                failure = other if failure is None or isinstance(failure, FileNotInStore) else failure
        raise failure or FileNotInStore("no store is configured")

    def to_record(self, info: PathInfo) -> str:
        """Serialize a PathInfo as one line of ASCII, for a process with the same settings: see `from_record`."""
        store_dir, text = info.narinfo.store_path.store_dir, info.narinfo.to_text()
        return json.dumps({"narinfo": text, "store_dir": store_dir, "store": info.store.url, "trust": info.trust})

    def from_record(self, record: str) -> PathInfo | None:
        """Restore a PathInfo from the output of `to_record`; return None if its store is no longer configured.

        The record is trusted, so store it where nobody else can write. Raises NarInfoError if its narinfo is invalid.
        """
        known = json.loads(record)
        narinfo = NarInfo.parse(known["narinfo"].encode(), known["store_dir"])
        stores = (substituter.store for substituter in self.substituters)
        store = next((store for store in stores if store.url == known["store"]), None)
        return PathInfo(narinfo, store, Trust(known["trust"])) if store is not None else None

    # --- the contents of a store path

    def open(self, info: PathInfo) -> NarAccessor:
        """Return an accessor to the files of the store path. Reads the listing now; contents are read later, on demand.

        Raises NarTooLarge if the NAR exceeds a limit, HashMismatch if the contents don't match the path's content address, and the
        errors of fetching.
        """
        self._check_size(info)
        self._proof.check(info)
        return self._accessor(info, self._known(info))

    def locate(self, info: PathInfo, path: str, *, follow_last: bool = True) -> Located:
        """Open the store path, and resolve ``path`` in it like `narcore.formats.resolve`.

        Some results need only the listing: an error, a link, a directory, an empty file, and every result without ``follow_last``.
        For these results, the listing is made from the NAR itself if the NAR is cached or arrives within a moment. For an empty
        file, a small NAR is fetched for this purpose. Otherwise, the result comes from the listing
        that `open` found, which may be the store's unsigned listing.

        Raises PathError, with its ``is_verified`` set, and the errors of `open`.
        """
        accessor = self.open(info)
        if not accessor.is_verified:
            size = _file_size(accessor, path)
            if not size or not follow_last:
                accessor = self._from_nar(info, fetch_small=size == 0) or accessor
        try:
            return Located(accessor, resolve(accessor.listing, accessor.store_path, path, follow_last=follow_last))
        except PathError as error:
            error.is_verified = accessor.is_verified
            raise

    def _from_nar(self, info: PathInfo, *, fetch_small: bool) -> NarAccessor | None:
        """Return an accessor whose listing is made from the NAR itself; None if the NAR would take long to arrive."""
        listing = self._source.nar_listing(info, fetch_small=fetch_small)
        if listing is None:
            return None
        self._learn_listing(info, listing)
        return self._accessor(info, KnownListing(listing, verified=True))

    def _accessor(self, info: PathInfo, known: KnownListing) -> NarAccessor:
        return NarAccessor(
            info.narinfo.store_path,
            known.listing,
            partial(self._source.read, info, known),
            is_verified=known.verified,
            is_cached=partial(self._is_cached, info),
        )

    def nar(self, info: PathInfo) -> Iterator[bytes]:
        """Fetch the whole NAR from its store, bypassing the disk cache.

        The iterator yields the last bytes only after the whole NAR was verified. Iteration raises StoreError, CompressionError and
        IntegrityError. Close the iterator if it is not read to its end.
        """
        self._proof.check(info)
        return self._streams.open(info)

    def verify(self, info: PathInfo) -> None:
        """Fetch the whole NAR from its store and check its size and hash. Raises the same errors as `nar` and its iterator."""
        for _chunk in self.nar(info):
            pass

    def _is_cached(self, info: PathInfo) -> bool:
        return self._cache is not None and self._cache.is_cached(info.nar_key)

    def _check_size(self, info: PathInfo) -> None:
        size = info.narinfo.nar_size
        for limit, setting in self._limits:
            if size > limit:
                raise NarTooLarge(f"the NAR has {size} bytes; the limit here is {limit} bytes ({setting})")

    # --- cached NARs that stay open

    def open_cached(self, info: PathInfo) -> OpenNar | None:
        """Return the cached NAR, which is complete and verified; None if it is not cached. The caller closes the OpenNar.

        Raises the errors of `open` if the NAR may not be served.
        """
        self._check_size(info)
        nar = self._cache.open(info.nar_key) if self._cache else None
        if self._cache is None or nar is None:
            return None
        try:
            self._proof.check(info)
        except BaseException:
            nar.close()
            raise
        return OpenNar(self._cache, info.nar_key, nar)

    def open_fetched(self, info: PathInfo) -> OpenNar:
        """Return the cached NAR. Fetches it, or waits for a running fill, if it is not cached. The caller closes the OpenNar.

        Raises the errors of `open`, and CacheFailure if the NAR can't be cached.
        """
        for _ in range(FETCH_TRIES):
            nar = self.open_cached(info)
            if nar is not None:
                return nar
            self._source.fetch(info)
        raise CacheFailure("the NAR was evicted several times before it could be opened; the cache is too small")

    def open_arriving(self, info: PathInfo) -> ArrivingNar:
        """Return the NAR while a fill fetches it. In strict mode, reads wait until it is verified. The caller closes it.

        Joins a running fill or starts one, even if the NAR is cached (see `open_cached`). Raises the errors of `open`, and
        CacheFailure if the NAR can't be cached.
        """
        self._check_size(info)
        self._proof.check(info)
        return self._source.open_arriving(info)

    def bytes_fetched(self, info: PathInfo) -> int:
        """Return how many bytes of the NAR have arrived; 0 if this process has no running fill of the NAR. Does not block."""
        return self._cache.bytes_fetched(info.nar_key) if self._cache else 0

    def disk_usage(self) -> dict[str, object] | None:
        """Return the disk cache's directory, its size and its limit in bytes; None without a cache. Raises CacheFailure."""
        if self._cache is None:
            return None
        used = sum(entry.size for entry in self._cache.entries())
        return {"directory": str(self._cache.layout.directory), "bytes": used, "limit": self._cache.limit}

    def total_bytes_fetched(self) -> int:
        """Return how many bytes all fills of this process have received so far. The number grows while a fill makes progress."""
        return self._cache.total_bytes_fetched() if self._cache else 0

    # --- listings

    def unverified_kind(self, info: PathInfo) -> Kind | None:
        """Return the kind of the path's root node in the store's unsigned listing; None if the store has no matching listing."""
        listing = self._stored_listing(info)
        return listing.root.kind if listing else None

    def _known(self, info: PathInfo) -> KnownListing:
        key = (info.store.url, info.narinfo.nar_hash.nix32)
        known = self._listings.get(key)
        if known is None or not known.verified:
            # A verified listing replaces the store's listing as soon as it is available.
            listing = self._cache.listing(info.nar_key) if self._cache else None
            if listing is None and self._tier is not None:
                listing = self._tier.listing(info)
            if listing is not None:
                known = KnownListing(listing, verified=True)
                self._remember_listing(key, known)
        if known is not None:
            return known
        try:
            return self._listing_flights.do(info.nar_source, partial(self._find_listing, info, key))
        except StoreUnresponsive:  # too many requests wait for the store; another store may have the NAR
            return self._find_listing(info, key)

    def _find_listing(self, info: PathInfo, key: tuple[str, str]) -> KnownListing:
        listing = None if self._strict else self._stored_listing(info)
        known = KnownListing(listing or self._source.read_listing(info), verified=listing is None)
        self._trace(
            "listing", {"nar_hash": info.narinfo.nar_hash.nix32, "source": "nar" if known.verified else "store"}
        )
        self._remember_listing(key, known)
        return known

    def _learn_listing(self, info: PathInfo, listing: NarListing) -> None:
        """Replace the store's listing, which may be wrong. Without a disk cache, a wrong listing would make the path unreadable."""
        self._remember_listing((info.store.url, info.narinfo.nar_hash.nix32), KnownListing(listing, verified=True))

    def _remember_listing(self, key: tuple[str, str], known: KnownListing) -> None:
        self._listings.put(key, known, weight=len(known.listing))

    def _stored_listing(self, info: PathInfo) -> NarListing | None:
        """Return the store's ``.ls`` file; None if the store has no valid ``.ls`` file that matches the NarSize."""
        narinfo = info.narinfo
        if self._lookup.is_paused(info):
            return None
        try:
            read = partial(read_file, info.store, f"{narinfo.store_path.hash_part}.ls", LISTING_LIMIT)
            packed = self._waits.call(info.store.url, read)
            return NarListing.parse(unpack_small(packed, LISTING_LIMIT), nar_size=narinfo.nar_size)
        except (StoreError, ListingError, CompressionError):
            return None


def _file_size(accessor: NarAccessor, path: str) -> int | None:
    """Return the size of the regular file at ``path``; None if there is no such file, or if the path leads through a link."""
    try:
        outcome = resolve(accessor.listing, accessor.store_path, path)
    except PathError:
        return None
    return outcome.node.size if isinstance(outcome, Found) and outcome.node.kind is Kind.REGULAR else None
