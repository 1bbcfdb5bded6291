"""Chooses where the bytes of a NAR come from: the best available source, or the next one if it fails.

A *fill* fetches a NAR into the disk cache, once for all readers (``cache/fill.py``). The sources, best first:

1. a running fill of this NAR;
2. the complete, verified NAR in the disk cache;
3. the NAR in the shared tier;
4. a range of the remote file, if the range can be read without the rest of the file (never with ``NAR_VERIFY=strict``);
5. a new fill. If the NAR can't be cached: a stream, whose bytes before the requested ones are discarded.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from narcore.cache.cached import CachedBytes
from narcore.cache.fill import Fill, FillBytes
from narcore.cache.narcache import NarCache
from narcore.concurrency.singleflight import SingleFlight
from narcore.errors import CacheFailure, NarcoreError, StoreUnresponsive
from narcore.formats.listing import NarListing, Node
from narcore.formats.nar.parser import parse_nar
from narcore.lookup.pathinfo import PathInfo
from narcore.nars.accessor import NarBytes, NoBytes
from narcore.nars.fallbacks import CachedOrStreamed, PartOrElsewhere, Streamed, as_listed, check_same
from narcore.nars.opennar import ArrivingNar
from narcore.nars.remoteparts import RemoteParts
from narcore.nars.wholenar import NarStreams
from narcore.stores.waits import StoreWaits
from narcore.tier.reader import TierReader
from narcore.tier.uploads import TierUploads
from narcore.trace import Trace

OnListing = Callable[[PathInfo, NarListing], None]

# In bytes. A request that needs only the listing of a NAR fetches, or waits for, at most this many bytes of the NAR. This takes
# about a second.
SMALL_NAR = 16 << 20

# How many seconds an answer that needs only the listing waits for the last SMALL_NAR bytes of a NAR that is being fetched. A user
# who browses a store path while its NAR arrives would notice a longer delay on each page.
ARRIVAL_SECONDS = 2.0


@dataclass(slots=True)
class KnownListing:
    """The listing in which a file was found. If ``verified`` is False, the listing came from the store and may be wrong.

    ``verified`` becomes True when `check` has compared the listing with the listing of the verified NAR.
    """

    listing: NarListing
    verified: bool

    def check(self, found: NarListing) -> None:
        """Raise IntegrityError if this listing came from the store and differs from ``found``, the listing of the verified NAR."""
        if not self.verified:
            check_same(found, self.listing)
            self.verified = True


class NarSource:
    """Bytes and listings of NARs, for ``BinaryCache``. With ``strict``, only bytes of completely verified NARs are returned."""

    def __init__(
        self,
        streams: NarStreams,
        cache: NarCache | None,
        *,
        strict: bool,
        trace: Trace,
        on_other_listing: OnListing,
        waits: StoreWaits,
        tier: TierReader | None = None,
        uploads: TierUploads | None = None,
    ) -> None:
        """``on_other_listing`` is called with the listing of a NAR if the listing that its store sent is wrong.

        Each NAR that was fetched into the cache is offered to ``uploads``.
        """
        self._on_other_listing = on_other_listing
        self._streams = streams
        self._cache = cache
        self._strict = strict
        self._trace = trace
        self._waits = waits
        self._tier = tier
        self._uploads = uploads
        self._remote = RemoteParts()
        self._small_flights: SingleFlight[str, NarListing] = SingleFlight(wait=waits.wait)

    # --- listings

    def read_listing(self, info: PathInfo) -> NarListing:
        """Return the listing made from the NAR itself. Reads the NAR to its end, and caches it if possible."""
        if self._cache:
            try:
                return self._filled_listing(self._cache, info)
            except (CacheFailure, StoreUnresponsive):
                if self._strict:
                    raise
        return NarListing.from_events(parse_nar(self._streams.open(info), contents=False))

    def nar_listing(self, info: PathInfo, *, fetch_small: bool) -> NarListing | None:
        """Return the listing made from the NAR itself if the NAR is cached, or arrives within ARRIVAL_SECONDS; else return None.

        With ``fetch_small``, fetches a missing NAR of up to SMALL_NAR bytes, and raises the errors of fetching.
        """
        listing = self._present_listing(self._cache, info) if self._cache else None
        if listing is None and fetch_small and info.narinfo.nar_size <= SMALL_NAR:
            return self._small_flights.do(info.nar_source, partial(self.read_listing, info))
        return listing

    def _present_listing(self, cache: NarCache, info: PathInfo) -> NarListing | None:
        fill = self._joinable(cache, info)
        if fill is None:
            return cache.listing(info.nar_key)
        try:
            left = info.narinfo.nar_size - fill.available
            return fill.wait_at_most(ARRIVAL_SECONDS if left <= SMALL_NAR else 0.0)
        except NarcoreError:
            return None
        finally:
            fill.leave()

    def whole(self, info: PathInfo) -> Iterator[bytes]:
        """Return the whole, verified NAR, from the cache if it can be cached. Raises NarcoreError, also while the NAR is read."""
        if self._cache:
            try:
                nar = self._cache.open(info.nar_key)
                if nar is None:
                    self._filled_listing(self._cache, info)
                    nar = self._cache.open(info.nar_key)
            except CacheFailure:
                nar = None
            if nar is not None:
                return iter(nar.read(0, info.narinfo.nar_size))
        return self._streams.open(info)

    def _filled_listing(self, cache: NarCache, info: PathInfo) -> NarListing:
        fill = self._fill(cache, info)
        try:
            return fill.wait()
        finally:
            fill.leave()

    def _fill(self, cache: NarCache, info: PathInfo) -> Fill:
        """Join the running fill, or start a new one. Raises StoreUnresponsive if too many requests wait for the store."""
        fill = self._joinable(cache, info)
        if fill is None:
            self._waits.check_store(info.store.url)
            fetch = partial(self._streams.open, info)
            on_filled = partial(self._uploads.offer, info, self._open_cached) if self._uploads else None
            fill = cache.fill(info.nar_key, fetch, source=info.nar_source, store=info.store.url, on_filled=on_filled)
        return fill

    def _open_cached(self, info: PathInfo) -> CachedBytes | None:
        nar = self._cache.open(info.nar_key) if self._cache else None
        return nar.read(0, info.narinfo.nar_size) if nar else None

    def _joinable(self, cache: NarCache, info: PathInfo) -> Fill | None:
        return cache.joinable(info.nar_key, source=info.nar_source)

    # --- NARs held open

    def fetch(self, info: PathInfo) -> None:
        """Fetch the whole NAR into the cache, and wait for it. Raises CacheFailure and the errors of fetching."""
        self._filled_listing(self._require_cache(), info)

    def open_arriving(self, info: PathInfo) -> ArrivingNar:
        """Open the NAR while it is fetched into the cache. Raises CacheFailure, or the error of a fill that failed seconds ago."""
        return ArrivingNar(self._fill(self._require_cache(), info), whole=self._strict)

    def _require_cache(self) -> NarCache:
        if self._cache is None:
            raise CacheFailure("there is no disk cache")
        return self._cache

    # --- bytes

    def read(self, info: PathInfo, known: KnownListing, node: Node, start: int, stop: int) -> NarBytes:
        """Read bytes ``start`` to ``stop`` of the file ``node``. Raises NarcoreError, also while the bytes are read."""
        if not node.size:
            return NoBytes(self._check_empty(info, known))
        source, found = self._choose(info, known, node, node.nar_offset + start, node.nar_offset + stop)
        self._trace("nar", {"nar_hash": info.narinfo.nar_hash.nix32, "source": source, "bytes": stop - start})
        return found

    def _check_empty(self, info: PathInfo, known: KnownListing) -> bool:
        """Return whether the NAR itself shows that the file is empty. If False, only the listing from the store says so.

        Raises IntegrityError if the NAR has another listing, and the errors of fetching a small NAR.
        """
        if known.verified:
            return True
        listing = self.nar_listing(info, fetch_small=True)
        if listing is None:
            return False
        if listing != known.listing:
            self._on_other_listing(info, listing)
        known.check(listing)
        return True

    def _choose(self, info: PathInfo, known: KnownListing, node: Node, start: int, stop: int) -> tuple[str, NarBytes]:
        if self._cache is None:
            return self._from_tier(info, known, node, start, stop) or self._uncached(info, known, node, start, stop)
        # Look for a fill first, and then on the disk: if a fill ends between the two checks, the NAR is on the disk.
        fill = self._joinable(self._cache, info)
        if fill is None:
            cached = self._cached(self._cache, info, known, start, stop)
            if cached is not None:
                return "disk", self._cached_or_streamed(cached, info, known, node, start)
            tiered = self._from_tier(info, known, node, start, stop)
            if tiered is not None:
                return tiered
            part = None if self._strict else self._remote.read(info, node, start, stop, cheap=True)
            if part is not None:
                return "range", self._part(part, info, known, node, start, stop)
        try:
            fill = fill or self._fill(self._cache, info)
        except (CacheFailure, StoreUnresponsive):  # a stream may come from another store
            if self._strict:
                raise
            return self._uncached(info, known, node, start, stop)
        return "fill", self._filled(fill, info, known, node, start, stop)

    def _filled(
        self, fill: Fill, info: PathInfo, known: KnownListing, node: Node, start: int, stop: int
    ) -> CachedOrStreamed:
        filled = fill.read(start, stop, known.check, whole=self._strict)
        return self._cached_or_streamed(filled, info, known, node, start)

    def _from_tier(
        self, info: PathInfo, known: KnownListing, node: Node, start: int, stop: int
    ) -> tuple[str, NarBytes] | None:
        """Return the bytes from the tier; None if the tier can't be used. If it fails later, the rest is verified, too."""
        # With an unverified listing, the offset could be wrong, and the tier would send bytes of another file.
        part = self._tier.read(info, start, stop) if self._tier is not None and known.verified else None
        if part is None:
            return None

        def elsewhere(_failure: NarcoreError, start: int) -> Iterator[NarBytes]:
            if self._cache is not None:
                with suppress(CacheFailure, StoreUnresponsive):
                    yield self._filled(self._fill(self._cache, info), info, known, node, start, stop)
                    return
            if not self._strict:
                yield self._stream(info, known, node, start, stop, verify=True)

        return "tier", PartOrElsewhere(part, start, elsewhere, is_verified=True)

    def _cached(
        self, cache: NarCache, info: PathInfo, known: KnownListing, start: int, stop: int
    ) -> CachedBytes | None:
        nar = cache.open(info.nar_key)
        if nar is None:
            return None
        cached = nar.read(start, stop)
        try:
            if not known.verified:  # the NAR was fetched after the file was found in the listing
                known.check(cache.listing_of(info.nar_key, nar))
        except BaseException:
            cached.close()
            raise
        return cached

    def _cached_or_streamed(
        self, cached: FillBytes | CachedBytes, info: PathInfo, known: KnownListing, node: Node, start: int
    ) -> CachedOrStreamed:
        stream = partial(self._stream, info, known, node, verify=True)
        return CachedOrStreamed(cached, stream, start, strict=self._strict)

    def _uncached(self, info: PathInfo, known: KnownListing, node: Node, start: int, stop: int) -> tuple[str, NarBytes]:
        # If half of the NAR or more is requested, a stream costs at most twice as much as a range, and the NarHash is checked.
        small = 2 * (stop - start) < info.narinfo.nar_size
        part = self._remote.read(info, node, start, stop, cheap=False) if small else None
        if part is None:
            return "stream", self._stream(info, known, node, start, stop)
        return "range", self._part(part, info, known, node, start, stop)

    def _part(
        self, part: NarBytes, info: PathInfo, known: KnownListing, node: Node, start: int, stop: int
    ) -> PartOrElsewhere:
        def elsewhere(failure: NarcoreError, start: int) -> Iterator[NarBytes]:
            for other in self._streams.others(info, failure):
                rest = self._remote.read(other, node, start, stop, cheap=False)
                yield rest or self._stream(other, known, node, start, stop)

        return PartOrElsewhere(part, start, elsewhere)

    def _stream(
        self, info: PathInfo, known: KnownListing, node: Node, start: int, stop: int, *, verify: bool = False
    ) -> Streamed:
        chunks = self._streams.open(info)
        if not known.verified:
            chunks = as_listed(chunks, known.listing, partial(self._on_other_listing, info))
        return Streamed(chunks, node, start, stop, nar_size=info.narinfo.nar_size, verify=verify)
