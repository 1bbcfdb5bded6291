"""``BinaryCache``: the one object that every front end holds. It joins stores, lookup, the disk cache and the sources of NARs."""

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import as_completed
from functools import partial
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
    SettingsError,
    StoreError,
)
from narcore.formats.listing import Kind, NarListing
from narcore.formats.narinfo import NarInfo
from narcore.formats.signature import PublicKey
from narcore.formats.storepath import DEFAULT_STORE_DIR
from narcore.lookup.addressproof import AddressProof
from narcore.lookup.lookup import Lookup, Strategy
from narcore.lookup.pathinfo import PathInfo, Trust
from narcore.lookup.substituter import Substituter
from narcore.nars.accessor import NarAccessor
from narcore.nars.cachednar import ArrivingNar, OpenNar
from narcore.nars.source import KnownListing, NarSource
from narcore.nars.wholenar import NarStreams
from narcore.settings import Settings
from narcore.stores.base import BinaryCacheStore, read_file
from narcore.streams.compression import unpack_small
from narcore.trace import Trace, silent

log = logging.getLogger("narcore")

# A listing has about 80 bytes an entry, and one of more than 200,000 entries is not parsed (MEMORY_MAX in formats/listing.py): what
# is larger than this is read out of the NAR, entry by entry.
LISTING_LIMIT = 16 << 20

# How often a NAR is fetched that was evicted before it could be opened. Once is bad luck; in a cache that has room for a few of the
# NARs that are being read, it happens several times in a row.
FETCH_TRIES = 10

# In entries, which take about 50 bytes each.
LISTING_MEMORY = 300_000


class BinaryCache:
    """Store paths out of one or several stores, asked in order. Thread-safe."""

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
    ) -> None:
        self.substituters = tuple(
            store if isinstance(store, Substituter) else Substituter(store, clock=clock) for store in stores
        )
        self._cache = cache
        self._strict = strict
        # Strict serves out of the cache only, so what does not fit there never will be. By the names of the settings.
        limits = {"NAR_MAX_NAR_SIZE": max_nar_size, "NAR_CACHE_SIZE": cache.limit if cache and strict else None}
        self._limits = [(limit, name) for name, limit in limits.items() if limit is not None]
        self._lookup = Lookup(self.substituters, strategy=strategy, trusted_keys=trusted_keys, trace=trace, clock=clock)
        self._streams = NarStreams(sources=self._lookup.sources, on_failure=self._lookup.demote)
        self._source = NarSource(self._streams, cache, strict=strict, trace=trace, on_other_listing=self._learn_listing)
        self._proof = AddressProof(self._source.whole, on_mismatch=self._lookup.demote)
        self._trace = trace
        self._listings: LruMemory[tuple[str, str], KnownListing] = LruMemory(LISTING_MEMORY, clock=clock)
        self._listing_flights: SingleFlight[tuple[str, str], KnownListing] = SingleFlight()

    @classmethod
    def from_settings(
        cls, settings: Settings, *, trace: Trace = silent, strict: bool | None = None, patience: float | None = None
    ) -> Self:
        """``strict`` takes the place of what the settings say; ``patience`` is how many seconds a fill waits for its turn.

        Raises SettingsError for a URL that is not a store's, and where strict has no cache directory to serve from.
        """
        strict = settings.verify == "strict" if strict is None else strict
        try:
            substituters = [Substituter.open(url, trace=trace) for url in settings.cache_urls]
        except SettingsError as error:
            raise SettingsError(f"NAR_CACHE_URL: {error}") from error
        return cls(
            substituters,
            strategy=settings.cache_strategy,
            trusted_keys=settings.trusted_public_keys,
            cache=_open_cache(
                settings, strict=strict, patience=FILL_PATIENCE if patience is None else patience, trace=trace
            ),
            strict=strict,
            max_nar_size=settings.max_nar_size,
            trace=trace,
        )

    def close(self) -> None:
        if self._cache is not None:
            self._cache.close()
        for substituter in self.substituters:
            substituter.store.close()

    # --- what the stores are

    def store_dirs(self, *, ask: bool = True) -> tuple[str, ...]:
        """The store dirs of the stores, each once, in the stores' order; ``/nix/store`` for one that does not answer (soon).

        Without ``ask``, as far as they are known: nothing is waited for.
        """
        self._lookup.request_cache_infos(wait=ask)
        return tuple(dict.fromkeys(each.store_dir or DEFAULT_STORE_DIR for each in self.substituters))

    def may_have(self, store_dir: str) -> bool:
        """Whether a store is of that store dir, or does not say of which it is."""
        if any(each.store_dir == store_dir for each in self.substituters):
            return True
        self._lookup.request_cache_infos(wait=True)
        return any(each.store_dir in (None, store_dir) for each in self.substituters)

    def in_order(self) -> list[Substituter]:
        """The stores in the order in which they are asked, as far as that is known. Does not wait for any."""
        self._lookup.request_cache_infos(wait=False)
        return self._lookup.substituters()

    def check_ready(self) -> None:
        """Whether some store answers. Raises the last one's StoreError or CacheInfoError if none does."""
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

    def path_info(self, hash_part: str, store_dir: str = DEFAULT_STORE_DIR) -> PathInfo:
        """The narinfo of the path with that hash part, and where it is from.

        Raises FileNotInStore if every store of that store dir answered that it has none, else what went wrong
        (StoreError, NarInfoError, UntrustedSignature).
        """
        return self._lookup.find(hash_part, store_dir)

    def path_info_anywhere(self, hash_part: str) -> PathInfo:
        """As ``path_info``, in the first of the store dirs that has such a path. FileNotInStore only if none has."""
        failure: NarcoreError | None = None
        for store_dir in self.store_dirs():
            try:
                return self.path_info(hash_part, store_dir)
            except FileNotInStore as missing:
                failure = failure or missing
            except NarcoreError as other:
                failure = other if failure is None or isinstance(failure, FileNotInStore) else failure
        raise failure or FileNotInStore("there is no store")

    def to_record(self, info: PathInfo) -> str:
        """All that is known of a store path, in a line of ASCII, for a process with the same settings: see `from_record`."""
        store_dir, text = info.narinfo.store_path.store_dir, info.narinfo.to_text()
        return json.dumps({"narinfo": text, "store_dir": store_dir, "store": info.store.url, "trust": info.trust})

    def from_record(self, record: str) -> PathInfo | None:
        """What was known of a store path; None if the store that it was from is asked no more.

        It is trusted: a record has to be stored where nobody else writes. Raises NarInfoError.
        """
        known = json.loads(record)
        narinfo = NarInfo.parse(known["narinfo"].encode(), known["store_dir"])
        stores = (substituter.store for substituter in self.substituters)
        store = next((store for store in stores if store.url == known["store"]), None)
        return PathInfo(narinfo, store, Trust(known["trust"])) if store is not None else None

    # --- what is in it

    def open(self, info: PathInfo) -> NarAccessor:
        """The files of the path. Its listing is made available now, its bytes when they are read.

        Raises NarTooLarge, HashMismatch if the contents are not those of the path's content address, and what fetching raises.
        """
        self._check_size(info)
        self._proof.check(info)
        known = self._known(info)
        return NarAccessor(
            known.listing,
            partial(self._source.read, info, known),
            is_verified=known.verified,
            is_cached=partial(self._is_cached, info),
        )

    def nar(self, info: PathInfo) -> Iterator[bytes]:
        """The whole NAR, fetched from its store now, and neither read from the disk cache nor cached there.

        Its last bytes come only when all have been checked. Reading raises StoreError, CompressionError and IntegrityError. Close
        it if it is not read to its end.
        """
        self._proof.check(info)
        return self._streams.open(info)

    def _is_cached(self, info: PathInfo) -> bool:
        return self._cache is not None and self._cache.is_cached(info.nar_key)

    def _check_size(self, info: PathInfo) -> None:
        size = info.narinfo.nar_size
        for limit, setting in self._limits:
            if size > limit:
                raise NarTooLarge(f"the NAR has {size} bytes, and {limit} at most are unpacked here ({setting})")

    # --- NARs in the disk cache, to be held open

    def open_cached(self, info: PathInfo) -> OpenNar | None:
        """The cached NAR, complete and verified; None if it is not cached. To be closed.

        Raises what `open` raises for one that may not be served.
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
        """The cached NAR, fetched first if needed; a fill under way is joined. Waits for it. To be closed.

        Raises what `open` raises, and CacheFailure if it can't be cached.
        """
        for _ in range(FETCH_TRIES):
            nar = self.open_cached(info)
            if nar is not None:
                return nar
            self._source.fetch(info)
        raise CacheFailure("a NAR is evicted each time as soon as it has been fetched; the cache is too small")

    def open_arriving(self, info: PathInfo) -> ArrivingNar:
        """The NAR on its way into the disk cache, to be read before it is verified, unless we are strict. To be closed.

        Joins the fill under way, or begins one, also of a NAR that is on disk (see `open_cached`). Raises what `open` raises, and
        CacheFailure if it can't be cached.
        """
        self._check_size(info)
        self._proof.check(info)
        return self._source.open_arriving(info)

    def bytes_fetched(self, info: PathInfo) -> int:
        """How many bytes of the NAR the fill under way in this process has got; 0 if there is none. Waits for nothing."""
        return self._cache.bytes_fetched(info.nar_key) if self._cache else 0

    def disk_usage(self) -> dict[str, object] | None:
        """Where the disk cache is, how many bytes are in it, and how many may be; None if there is none. Raises CacheFailure."""
        if self._cache is None:
            return None
        used = sum(entry.size for entry in self._cache.entries())
        return {"directory": str(self._cache.layout.directory), "bytes": used, "limit": self._cache.limit}

    def total_bytes_fetched(self) -> int:
        """How many bytes all fills of this process have got, ever: as long as something comes, it grows."""
        return self._cache.total_bytes_fetched() if self._cache else 0

    # --- listings

    def promised_kind(self, info: PathInfo) -> Kind | None:
        """What the path is by the listing of its store, which nobody has signed; None if the store has no (fitting) one."""
        listing = self._stored_listing(info)
        return listing.root.kind if listing else None

    def _known(self, info: PathInfo) -> KnownListing:
        key = (info.store.url, info.narinfo.nar_hash.nix32)
        known = self._listings.get(key)
        if known is None or not known.verified:
            # A verified listing takes the place of the store's word as soon as there is one.
            cached = self._cache.listing(info.nar_key) if self._cache else None
            if cached is not None:
                known = KnownListing(cached, verified=True)
                self._remember_listing(key, known)
        return known or self._listing_flights.do(key, partial(self._find_listing, info, key))

    def _find_listing(self, info: PathInfo, key: tuple[str, str]) -> KnownListing:
        listing = None if self._strict else self._stored_listing(info)
        known = KnownListing(listing or self._source.read_listing(info), verified=listing is None)
        self._trace(
            "listing", {"nar_hash": info.narinfo.nar_hash.nix32, "source": "nar" if known.verified else "store"}
        )
        self._remember_listing(key, known)
        return known

    def _learn_listing(self, info: PathInfo, listing: NarListing) -> None:
        """In place of a wrong one of the store, which would keep the path out of reach where there is no disk cache."""
        self._remember_listing((info.store.url, info.narinfo.nar_hash.nix32), KnownListing(listing, verified=True))

    def _remember_listing(self, key: tuple[str, str], known: KnownListing) -> None:
        self._listings.put(key, known, weight=len(known.listing))

    def _stored_listing(self, info: PathInfo) -> NarListing | None:
        """The ``.ls`` of the store, or None if it has none that fits: then the NAR can still tell."""
        narinfo = info.narinfo
        if self._lookup.is_paused(info):
            return None
        try:
            packed = read_file(info.store, f"{narinfo.store_path.hash_part}.ls", LISTING_LIMIT)
            return NarListing.parse(unpack_small(packed, LISTING_LIMIT), nar_size=narinfo.nar_size)
        except (StoreError, ListingError, CompressionError):
            return None


def _open_cache(settings: Settings, *, strict: bool, patience: float, trace: Trace) -> NarCache | None:
    """The disk cache, or None if it is off, or can't be used and need not be."""
    directory = settings.cache_dir
    if directory is None:
        if strict:
            raise SettingsError(
                "what is served out of the disk cache only needs one, and NAR_CACHE_DIR=off turns it off"
            )
        return None
    size, max_fills = settings.cache_size.in_bytes, settings.max_fills
    try:
        return NarCache(directory, size=size, max_fills=max_fills, patience=patience, trace=trace)
    except CacheFailure as error:
        if strict:
            who = "NAR_VERIFY=strict" if settings.verify == "strict" else "this"  # a mount asks for it by itself
            raise SettingsError(f"{who} needs a cache directory, and {directory}: {error}") from error
        log.warning("caching is off: %s: %s", directory, error)
        return None
