"""Where the bytes of a NAR come from: the best source there is, and quietly the next one if that can't give them.

1. the NAR on disk, whole and verified;
2. a fill under way: somebody fetches this NAR already;
3. a part of the remote file, where it can be had without the rest;
4. a new fill, or, where nothing can be kept, the stream, of which the front is thrown away.
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial

from narcore.cache.cached import CachedBytes
from narcore.cache.fill import Check, Fill, FillBytes
from narcore.cache.layout import NarKey
from narcore.cache.narcache import NarCache
from narcore.concurrency.closing import Stage, close
from narcore.errors import CacheFailure, CompressionError, IntegrityError, NarcoreError, StoreError
from narcore.formats.listing import ListingBuilder, NarListing, Node, contents_prefix
from narcore.formats.nar.parser import NarParser, parse_nar
from narcore.lookup.pathinfo import PathInfo
from narcore.nars.accessor import NarBytes
from narcore.nars.cachednar import ArrivingNar, LocalNar
from narcore.nars.remoteparts import RemoteParts, behind_tag
from narcore.nars.wholenar import NarStreams
from narcore.streams.slicing import skip_and_drain, skip_and_limit
from narcore.trace import Trace

# Behind the file asked for, at most this much more of the NAR (or as much again as was read) is read to check the hash.
VERIFY_REST = 8 << 20


OnListing = Callable[[PathInfo, NarListing], None]
Take = Callable[[Iterator[bytes], int, int], Iterator[bytes]]


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the contents of a NAR. A listing that is not ``verified`` is the store's word."""

    listing: NarListing
    verified: bool


class NarSource:
    """Bytes and listings of NARs, for ``BinaryCache``. With ``strict``, nothing comes from a NAR that isn't wholly verified."""

    def __init__(
        self, streams: NarStreams, cache: NarCache | None, *, strict: bool, trace: Trace, on_other_listing: OnListing
    ) -> None:
        """``on_other_listing`` is told of the listing of a NAR that turned out to be another one than the store's word."""
        self._on_other_listing = on_other_listing
        self._streams = streams
        self._cache = cache
        self._strict = strict
        self._trace = trace
        self._remote = RemoteParts()

    # --- listings

    def kept_listing(self, info: PathInfo) -> NarListing | None:
        """The listing of a NAR that is in the cache."""
        return self._cache.listing(_key(info)) if self._cache else None

    def is_kept(self, info: PathInfo) -> bool:
        """Whether the NAR is in the cache."""
        return self._cache is not None and self._cache.contains(_key(info))

    def read_listing(self, info: PathInfo) -> NarListing:
        """The listing out of the NAR itself, which is read to its end for it (and kept, where it can be)."""
        if self._cache:
            try:
                return self._filled_listing(self._cache, info)
            except CacheFailure:
                if self._strict:
                    raise
        return NarListing.from_events(parse_nar(self._streams.open(info), contents=False))

    def whole(self, info: PathInfo) -> Iterator[bytes]:
        """The whole NAR, verified: out of the cache, where it can be kept there. Raises NarcoreError, also while it is read."""
        if self._cache:
            try:
                nar = self._cache.open(_key(info))
                if nar is None:
                    self._filled_listing(self._cache, info)
                    nar = self._cache.open(_key(info))
            except CacheFailure:
                nar = None
            if nar is not None:
                return iter(nar.read(0, info.narinfo.nar_size))
        return self._streams.open(info)

    def _filled_listing(self, cache: NarCache, info: PathInfo) -> NarListing:
        fill = cache.joinable(_key(info)) or self._fill(cache, info)
        try:
            return fill.wait()
        finally:
            fill.leave()

    def _fill(self, cache: NarCache, info: PathInfo) -> Fill:
        return cache.fill(_key(info), partial(self._streams.open, info), source=info.store.url)

    # --- NARs for who keeps them open

    def local(self, info: PathInfo) -> LocalNar | None:
        """The NAR, if it is in the cache."""
        nar = self._cache.open(_key(info)) if self._cache else None
        return LocalNar(self._cache, _key(info), nar) if self._cache and nar else None

    def keep(self, info: PathInfo) -> None:
        """Have the NAR in the cache, whole, and wait for that. Raises CacheFailure, and what fetching raises."""
        self._filled_listing(self._needed_cache(), info)

    def arriving(self, info: PathInfo) -> ArrivingNar:
        """The NAR on its way into the cache. Raises CacheFailure, and what a fill failed with seconds ago."""
        cache = self._needed_cache()
        return ArrivingNar(cache.joinable(_key(info)) or self._fill(cache, info), whole=self._strict)

    def bytes_fetched(self, info: PathInfo) -> int:
        """How much of the NAR the fill under way here has got. 0 if there is none."""
        return self._cache.bytes_fetched(_key(info)) if self._cache else 0

    def bytes_fetched_ever(self) -> int:
        """What all fills of this process have got so far."""
        return self._cache.bytes_fetched_ever() if self._cache else 0

    def _needed_cache(self) -> NarCache:
        if self._cache is None:
            raise CacheFailure("there is no disk cache")
        return self._cache

    # --- bytes

    def read(self, info: PathInfo, known: Known, node: Node, start: int, stop: int) -> NarBytes:
        """Bytes ``start`` to ``stop`` of the file ``node``. Raises NarcoreError, also while the bytes are read."""
        source, found = self._choose(info, known, node, node.nar_offset + start, node.nar_offset + stop)
        self._trace("nar", {"nar_hash": info.narinfo.nar_hash.nix32, "source": source, "bytes": stop - start})
        return found

    def _choose(self, info: PathInfo, known: Known, node: Node, start: int, stop: int) -> tuple[str, NarBytes]:
        if self._cache is None:
            return self._uncached(info, known, node, start, stop)
        key = _key(info)
        fill = self._cache.joinable(key)  # asked first: one that has ended since is on disk
        if fill is None:
            cached = self._cached(self._cache, info, known, start, stop)
            if cached is not None:
                return "disk", self._kept(cached, info, known, node, start)
        if fill is None and not self._strict:
            part = self._remote.read(info, node, start, stop, thrifty=True)
            if part is not None:
                return "range", self._part(part, info, known, node, start, stop)
        try:
            fill = fill or self._fill(self._cache, info)
        except CacheFailure:
            if self._strict:
                raise
            return self._uncached(info, known, node, start, stop)
        filled = fill.read(start, stop, _same(known), whole=self._strict)
        return "fill", self._kept(filled, info, known, node, start)

    def _cached(self, cache: NarCache, info: PathInfo, known: Known, start: int, stop: int) -> CachedBytes | None:
        nar = cache.open(_key(info))
        if nar is None:
            return None
        cached = nar.read(start, stop)
        try:
            if not known.verified:  # the NAR has come since the file was looked up
                _same(known)(cache.listing_of(_key(info), nar))
        except BaseException:
            cached.close()
            raise
        return cached

    def _kept(
        self, kept: FillBytes | CachedBytes, info: PathInfo, known: Known, node: Node, start: int
    ) -> "KeptOrStreamed":
        return KeptOrStreamed(kept, partial(self._stream, info, known, node), start, strict=self._strict)

    def _uncached(self, info: PathInfo, known: Known, node: Node, start: int, stop: int) -> tuple[str, NarBytes]:
        # Half of a NAR, or more, costs at most as much again as a stream, and that is checked against its hash at the end.
        small = 2 * (stop - start) < info.narinfo.nar_size
        part = self._remote.read(info, node, start, stop, thrifty=False) if small else None
        if part is None:
            return "stream", self._stream(info, known, node, start, stop)
        return "range", self._part(part, info, known, node, start, stop)

    def _part(
        self, part: NarBytes, info: PathInfo, known: Known, node: Node, start: int, stop: int
    ) -> "PartOrElsewhere":
        def elsewhere(failure: NarcoreError, start: int) -> Iterator[NarBytes]:
            for other in self._streams.others(info, failure):
                rest = self._remote.read(other, node, start, stop, thrifty=False)
                yield rest or self._stream(other, known, node, start, stop)

        return PartOrElsewhere(part, start, elsewhere)

    def _stream(self, info: PathInfo, known: Known, node: Node, start: int, stop: int) -> "Streamed":
        chunks = self._streams.open(info)
        if not known.verified:
            chunks = as_listed(chunks, known.listing, partial(self._on_other_listing, info))
        return Streamed(chunks, node, start, stop, nar_size=info.narinfo.nar_size)


def as_listed(chunks: Iterator[bytes], listing: NarListing, on_other: Callable[[NarListing], None]) -> Iterator[bytes]:
    """The NAR as it comes. At its end, before the last bytes are given out, raises IntegrityError if the listing is another's.

    ``on_other`` gets the right one then.
    """
    return Stage(_as_listed(chunks, listing, on_other), chunks)


def _as_listed(chunks: Iterator[bytes], listing: NarListing, on_other: Callable[[NarListing], None]) -> Iterator[bytes]:
    parser, builder = NarParser(contents=False), ListingBuilder()
    held = b""
    for chunk in chunks:
        parser.receive_data(chunk)
        builder.add_all(parser.events())
        if held:
            yield held
        held = chunk
    parser.receive_eof()
    builder.add_all(parser.events())
    found = builder.finish()
    if found != listing:
        on_other(found)
    _check_same(found, listing)
    yield held


def _key(info: PathInfo) -> NarKey:
    return NarKey(info.narinfo.nar_hash.nix32, info.narinfo.nar_size)


def _same(known: Known) -> Check:
    """What a fill has to find in the NAR: just what the file was looked up in."""

    def check(listing: NarListing) -> None:
        if not known.verified:
            _check_same(listing, known.listing)

    return check


def _check_same(found: NarListing, told: NarListing) -> None:
    if found != told:
        raise IntegrityError("the store's listing is not that of the NAR")


class Streamed:
    """Some bytes of the file ``node`` out of a NAR that comes as a stream: what is before them is thrown away.

    If no more than as much again (or VERIFY_REST) follows behind them, the stream is read to its end, where the NAR's hash is
    checked, before the last bytes are given out: then a NAR that is not what was promised never gives a complete answer.
    In any case the file has to begin where it was said to.
    """

    def __init__(self, chunks: Iterator[bytes], node: Node, start: int, stop: int, *, nar_size: int) -> None:
        self.length = stop - start
        self._source = chunks
        to_the_end = nar_size - stop <= max(VERIFY_REST, stop)
        take = skip_and_drain if to_the_end else skip_and_limit
        self._chunks = self._behind(node, take, start, stop)

    def _behind(self, node: Node, take: Take, start: int, stop: int) -> Generator[bytes]:
        tag = contents_prefix(node)
        contents = behind_tag(self._source, node.nar_offset - len(tag), tag)
        yield from take(contents, start - node.nar_offset, stop - node.nar_offset)

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def close(self) -> None:
        self._chunks.close()
        close(self._source)


class PartOrElsewhere:
    """Some bytes out of a part of a remote file; if that fails, the rest from wherever else it can be had.

    ``elsewhere`` is told of the failure and where to go on, and gives what to try, one after the other.
    """

    def __init__(
        self, part: NarBytes, start: int, elsewhere: Callable[[NarcoreError, int], Iterator[NarBytes]]
    ) -> None:
        self.length = part.length
        self._part = part
        self._start = start
        self._elsewhere = elsewhere
        self._chunks = self._read()

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def close(self) -> None:
        self._chunks.close()
        self._part.close()

    def _read(self) -> Generator[bytes]:
        try:
            yield from self._counted(self._part)
        except (StoreError, CompressionError) as error:
            failure = error
        else:
            return
        for rest in self._elsewhere(failure, self._start):
            try:
                yield from self._counted(rest)
            except (StoreError, CompressionError):
                continue
            else:
                return
            finally:
                rest.close()
        raise failure

    def _counted(self, chunks: NarBytes) -> Generator[bytes]:
        for chunk in chunks:
            self._start += len(chunk)
            yield chunk


class KeptOrStreamed:
    """Some bytes out of the cache; if it fails meanwhile, the rest out of a stream of its own.

    ``file`` is that of ``CachedBytes``; who reads it has to ``check_untouched`` at the end, and gets no rest.
    """

    def __init__(
        self, kept: FillBytes | CachedBytes, stream: Callable[[int, int], Streamed], start: int, *, strict: bool
    ) -> None:
        self.length = kept.length
        self.file = kept.file if isinstance(kept, CachedBytes) else None
        self._kept = kept
        self._open_stream = stream
        self._strict = strict
        self._chunks = self._read(start, start + kept.length)

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def check_untouched(self) -> None:
        """Raises CacheFailure if ``file`` has been written to since it was opened."""
        if isinstance(self._kept, CachedBytes):
            self._kept.check_untouched()

    def close(self) -> None:
        self._chunks.close()
        self._kept.close()

    def _read(self, start: int, stop: int) -> Generator[bytes]:
        sent = start
        try:
            for chunk in self._kept:
                yield chunk
                sent += len(chunk)
        except CacheFailure:
            if self._strict:
                raise
            yield from self._stream(start, sent, stop)

    def _stream(self, start: int, sent: int, stop: int) -> Generator[bytes]:
        """The bytes behind ``sent``; those before it were given out already, and must have been the same."""
        rest = self._open_stream(start, stop)
        try:
            position = start
            for chunk in rest:
                old = min(len(chunk), max(0, sent - position))
                if old and self._kept.again(position, position + old) != chunk[:old]:
                    raise IntegrityError("the store gave other bytes when the NAR was fetched again")
                position += len(chunk)
                if chunk[old:]:
                    yield chunk[old:]
        finally:
            rest.close()
