"""Where the bytes of a NAR come from: the best source there is, and quietly the next one if that can't give them.

1. the NAR on disk, whole and verified;
2. a fill under way: somebody fetches this NAR already;
3. a part of the remote file, where it can be had without the rest;
4. a new fill, or, where nothing can be kept, the stream, of which the front is thrown away.
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial

from narcore.accessor import NarBytes
from narcore.cache.fill import Check, Fill, FillBytes
from narcore.cache.layout import NarKey
from narcore.cache.narcache import NarCache
from narcore.errors import CacheFailure, IntegrityError
from narcore.formats.listing import NarListing, Node
from narcore.formats.nar.parser import parse_nar
from narcore.narstream import NarStreams
from narcore.pathinfo import PathInfo
from narcore.remote import RemoteParts
from narcore.streams.closing import close
from narcore.streams.slicing import skip_and_drain, skip_and_limit
from narcore.trace import Trace

# Behind the file asked for, at most this much more of the NAR (or as much again as was read) is read to check the hash.
VERIFY_REST = 8 << 20


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the contents of a NAR. A listing that is not ``verified`` is the store's word."""

    listing: NarListing
    verified: bool


class NarSource:
    """Bytes and listings of NARs, for ``BinaryCache``. With ``strict``, nothing comes from a NAR that isn't wholly verified."""

    def __init__(self, streams: NarStreams, cache: NarCache | None, *, strict: bool, trace: Trace) -> None:
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
        fill = cache.joinable(_key(info)) or cache.fill(_key(info), partial(self._streams.open, info))
        try:
            return fill.wait()
        finally:
            fill.leave()

    # --- bytes

    def read(self, info: PathInfo, known: Known, node: Node, start: int, stop: int) -> NarBytes:
        """Bytes ``start`` to ``stop`` of the file ``node``. Raises NarcoreError, also while the bytes are read."""
        source, found = self._choose(info, known, node, node.nar_offset + start, node.nar_offset + stop)
        self._trace("nar", {"nar_hash": info.narinfo.nar_hash.nix32, "source": source, "bytes": stop - start})
        return found

    def _choose(self, info: PathInfo, known: Known, node: Node, start: int, stop: int) -> tuple[str, NarBytes]:
        if self._cache is None:
            return self._uncached(info, node, start, stop)
        key = _key(info)
        nar = self._cache.open(key)
        if nar is not None:
            return "disk", nar.read(start, stop)
        fill = self._cache.joinable(key)
        if fill is None and not self._strict:
            part = self._remote.read(info, node, start, stop, thrifty=True)
            if part is not None:
                return "range", part
        try:
            fill = fill or self._cache.fill(key, partial(self._streams.open, info))
        except CacheFailure:
            if self._strict:
                raise
            return self._uncached(info, node, start, stop)
        return "fill", FilledOrStreamed(
            partial(self._stream, info), fill, start, stop, check=_same(known), strict=self._strict
        )

    def _uncached(self, info: PathInfo, node: Node, start: int, stop: int) -> tuple[str, NarBytes]:
        part = self._remote.read(info, node, start, stop, thrifty=False)
        return ("range", part) if part else ("stream", self._stream(info, start, stop))

    def _stream(self, info: PathInfo, start: int, stop: int) -> "Streamed":
        return Streamed(self._streams.open(info), start, stop, nar_size=info.narinfo.nar_size)


def _key(info: PathInfo) -> NarKey:
    return NarKey(info.narinfo.nar_hash.nix32, info.narinfo.nar_size)


def _same(known: Known) -> Check:
    """What a fill has to find in the NAR: just what the file was looked up in."""

    def check(listing: NarListing) -> None:
        if not known.verified and listing != known.listing:
            raise IntegrityError("the store's listing is not that of the NAR")

    return check


class Streamed:
    """Some bytes of a NAR that comes as a stream: what is before them is thrown away.

    If no more than as much again (or VERIFY_REST) follows behind them, the stream is read to its end, where the NAR's hash is
    checked, before the last bytes are given out: then a NAR that is not what was promised never gives a complete answer.
    """

    def __init__(self, chunks: Iterator[bytes], start: int, stop: int, *, nar_size: int) -> None:
        self.length = stop - start
        to_the_end = nar_size - stop <= max(VERIFY_REST, stop)
        self._chunks = (skip_and_drain if to_the_end else skip_and_limit)(chunks, start, stop)

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def close(self) -> None:
        close(self._chunks)


class FilledOrStreamed:
    """Some bytes out of a fill; if the cache fails meanwhile, the rest out of a stream of its own."""

    def __init__(
        self, stream: Callable[[int, int], Streamed], fill: Fill, start: int, stop: int, *, check: Check, strict: bool
    ) -> None:
        self.length = stop - start
        self._open_stream = stream
        self._strict = strict
        self._filled: FillBytes = fill.read(start, stop, check)
        self._chunks = self._read(start, stop)

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def close(self) -> None:
        self._chunks.close()
        self._filled.close()

    def _read(self, start: int, stop: int) -> Generator[bytes]:
        sent = start
        try:
            if self._strict:
                self._filled.wait()
            for chunk in self._filled:
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
                if old and self._filled.again(position, position + old) != chunk[:old]:
                    raise IntegrityError("the store gave other bytes when the NAR was fetched again")
                position += len(chunk)
                if chunk[old:]:
                    yield chunk[old:]
        finally:
            rest.close()
