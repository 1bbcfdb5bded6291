"""The hall: ``BinaryCache``, the one object that every front end holds.

It joins the rooms: stores fetch, formats say what the bytes mean, streams unpack and check, the cache keeps.
"""

import logging
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Self

from narcore.accessor import NarAccessor
from narcore.cache.lru import LruMemory
from narcore.cache.narcache import NarCache
from narcore.cache.singleflight import SingleFlight
from narcore.errors import (
    CacheFailure,
    CompressionError,
    CorruptStream,
    FileNotInStore,
    ListingError,
    NarcoreError,
    NarInfoError,
    NarTooLarge,
    SettingsError,
    StoreError,
)
from narcore.formats.cacheinfo import CacheInfo
from narcore.formats.listing import NarListing
from narcore.formats.narinfo import NarInfo
from narcore.narsource import Known, NarSource
from narcore.pathinfo import PathInfo
from narcore.settings import Settings
from narcore.stores import open_store
from narcore.stores.base import BinaryCacheStore, read_file
from narcore.streams.compression import decompress, sniff
from narcore.trace import Trace, silent

log = logging.getLogger("narcore")

# A narinfo of a path with thousands of references has some 100 KiB. A listing has about 80 bytes an entry, and parsing it takes
# seven times its size of memory: a larger one than this is read out of the NAR, entry by entry.
NARINFO_LIMIT = 1 << 20
CACHE_INFO_LIMIT = 1 << 16
LISTING_LIMIT = 32 << 20

# Memory: narinfos by their bytes, listings by their entries (about 100 bytes each).
NARINFO_MEMORY = 8 << 20
LISTING_MEMORY = 300_000

# A narinfo may be signed anew or taken away, so it is not trusted for ever; a missing one may be uploaded any moment.
NARINFO_SECONDS = 3600.0
MISSING_SECONDS = 5.0
CACHE_INFO_SECONDS = 3600.0


class BinaryCache:
    """Store paths out of one or several stores, asked in order. Thread-safe."""

    def __init__(
        self,
        stores: Iterable[BinaryCacheStore],
        *,
        cache: NarCache | None = None,
        strict: bool = False,
        max_nar_size: int | None = None,
        trace: Trace = silent,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stores = tuple(stores)
        self._cache = cache
        self._strict = strict
        self._max_nar_size = max_nar_size
        self._source = NarSource(cache, strict=strict, trace=trace)
        self._trace = trace
        self._cache_infos: LruMemory[str, CacheInfo] = LruMemory(64, clock=clock)
        self._path_infos: LruMemory[tuple[str, str], PathInfo] = LruMemory(NARINFO_MEMORY, clock=clock)
        self._missing: LruMemory[tuple[str, str], str] = LruMemory(10_000, clock=clock)
        self._listings: LruMemory[tuple[str, str], Known] = LruMemory(LISTING_MEMORY, clock=clock)
        self._path_info_flights: SingleFlight[tuple[str, str], PathInfo] = SingleFlight()
        self._listing_flights: SingleFlight[tuple[str, str], Known] = SingleFlight()

    @classmethod
    def from_settings(cls, settings: Settings, *, trace: Trace = silent) -> Self:
        """Raises SettingsError for a URL that is not a store's."""
        return cls(
            [open_store(url) for url in settings.cache_urls],
            cache=_open_cache(settings, trace),
            strict=settings.verify == "strict",
            max_nar_size=settings.max_nar_size,
            trace=trace,
        )

    def close(self) -> None:
        if self._cache is not None:
            self._cache.close()
        for store in self.stores:
            store.close()

    # --- what the stores are

    def cache_info(self, store: BinaryCacheStore) -> CacheInfo:
        """The store's nix-cache-info; where it has none, Nix's defaults. Raises StoreError or CacheInfoError."""
        info = self._cache_infos.get(store.url)
        if info is None:
            try:
                info = CacheInfo.parse(read_file(store, "nix-cache-info", CACHE_INFO_LIMIT))
            except FileNotInStore:
                info = CacheInfo()
            self._cache_infos.put(store.url, info, seconds=CACHE_INFO_SECONDS)
        return info

    def store_dirs(self) -> tuple[str, ...]:
        """The store dirs of the stores that answer, each once, in the stores' order; ``/nix/store`` if none does."""
        dirs: dict[str, None] = {}
        for store in self.stores:
            with suppress(NarcoreError):  # what is wrong with the store is said when a path is asked of it
                dirs[self.cache_info(store).store_dir] = None
        return tuple(dirs) or (CacheInfo().store_dir,)

    def check_ready(self) -> None:
        """Whether some store answers. Raises the last one's StoreError or CacheInfoError if none does."""
        for store in self.stores:
            try:
                CacheInfo.parse(read_file(store, "nix-cache-info", CACHE_INFO_LIMIT))
            except FileNotInStore:
                return  # an answer as well: such a store is used with Nix's defaults
            except NarcoreError as failure:
                error = failure
            else:
                return
        raise error

    # --- a store path

    def path_info(self, hash_part: str, store_dir: str = "/nix/store") -> PathInfo:
        """The narinfo of the path with that hash part.

        Raises FileNotInStore if every store of that store dir answered that it has none, else what went wrong
        (StoreError, NarInfoError).
        """
        key = (store_dir, hash_part)
        known = self._path_infos.get(key)
        self._trace("narinfo", {"hash_part": hash_part, "hit": known is not None})
        if known is not None:
            return known
        missing = self._missing.get(key)
        if missing is not None:
            raise FileNotInStore(missing)
        return self._path_info_flights.do(key, partial(self._find, hash_part, store_dir))

    def _find(self, hash_part: str, store_dir: str) -> PathInfo:
        failure: NarcoreError | None = None
        for store in self.stores:
            info = self._cache_infos.get(store.url)
            if info is not None and info.store_dir != store_dir:
                continue
            try:
                return self._fetch_path_info(store, hash_part, store_dir)
            except FileNotInStore:
                continue
            except NarcoreError as error:
                if not self._is_of_another_dir(store, error, store_dir):
                    failure = failure or error
        if failure is not None:
            raise failure
        missing = f"no store has a path {store_dir}/{hash_part}-*"
        self._missing.put((store_dir, hash_part), missing, seconds=MISSING_SECONDS)
        raise FileNotInStore(missing)

    def _is_of_another_dir(self, store: BinaryCacheStore, error: NarcoreError, store_dir: str) -> bool:
        """Whether a bad narinfo is bad only for being of another store dir. Asked this late, a good one costs one request."""
        if not isinstance(error, NarInfoError):
            return False
        with suppress(NarcoreError):
            return self.cache_info(store).store_dir != store_dir
        return False

    def _fetch_path_info(self, store: BinaryCacheStore, hash_part: str, store_dir: str) -> PathInfo:
        data = read_file(store, f"{hash_part}.narinfo", NARINFO_LIMIT)
        narinfo = NarInfo.parse(data, store_dir)
        if narinfo.store_path.hash_part != hash_part:
            raise NarInfoError(
                f"{store.url} answers for {hash_part} with the narinfo of {narinfo.store_path.base_name}"
            )
        info = PathInfo(narinfo, store)
        self._path_infos.put((store_dir, hash_part), info, weight=len(data), seconds=NARINFO_SECONDS)
        return info

    # --- what is in it

    def open(self, info: PathInfo) -> NarAccessor:
        """The files of the path. Its listing is made available now, its bytes when they are read.

        Raises NarTooLarge, and what fetching the listing raises.
        """
        size = info.narinfo.nar_size
        if self._max_nar_size is not None and size > self._max_nar_size:
            raise NarTooLarge(f"the NAR has {size} bytes, and this server unpacks {self._max_nar_size} at most")
        known = self._known(info)
        return NarAccessor(
            known.listing, partial(self._source.read, info, known), at_hand=partial(self._source.is_kept, info)
        )

    def _known(self, info: PathInfo) -> Known:
        key = (info.store.url, info.narinfo.nar_hash.nix32)
        known = self._listings.get(key)
        if known is None or not known.verified:
            # A verified listing takes the place of the store's word as soon as there is one.
            kept = self._source.kept_listing(info)
            if kept is not None:
                known = Known(kept, verified=True)
                self._remember_listing(key, known)
        return known or self._listing_flights.do(key, partial(self._find_listing, info, key))

    def _find_listing(self, info: PathInfo, key: tuple[str, str]) -> Known:
        listing = None if self._strict else self._stored_listing(info)
        known = Known(listing, verified=False) if listing else Known(self._source.read_listing(info), verified=True)
        self._trace(
            "listing", {"nar_hash": info.narinfo.nar_hash.nix32, "source": "nar" if known.verified else "store"}
        )
        self._remember_listing(key, known)
        return known

    def _remember_listing(self, key: tuple[str, str], known: Known) -> None:
        self._listings.put(key, known, weight=len(known.listing))

    def _stored_listing(self, info: PathInfo) -> NarListing | None:
        """The ``.ls`` of the store, or None if it has none that fits: then the NAR can still tell."""
        narinfo = info.narinfo
        try:
            packed = read_file(info.store, f"{narinfo.store_path.hash_part}.ls", LISTING_LIMIT)
            return NarListing.parse(_unpacked(packed), nar_size=narinfo.nar_size)
        except (StoreError, ListingError, CompressionError):
            return None


def _open_cache(settings: Settings, trace: Trace) -> NarCache | None:
    """The disk cache, or None if it is off, or can't be used and need not be."""
    directory = settings.cache_dir
    if directory is None:
        return None
    try:
        return NarCache(directory, size=settings.cache_size.in_bytes, max_fills=settings.max_fills, trace=trace)
    except CacheFailure as error:
        if settings.verify == "strict":
            raise SettingsError(f"NAR_VERIFY=strict needs a cache directory, and {directory}: {error}") from error
        log.warning("nothing is kept on disk: %s: %s", directory, error)
        return None


def _unpacked(packed: bytes) -> bytes:
    """A listing in whatever encoding it has (its first bytes tell). Raises CompressionError, also if it gets too large."""
    unpacked = bytearray()
    for chunk in decompress(sniff(packed[:8]), [packed]):
        unpacked += chunk
        if len(unpacked) > LISTING_LIMIT:
            raise CorruptStream(f"a listing of more than {LISTING_LIMIT} bytes")
    return bytes(unpacked)
