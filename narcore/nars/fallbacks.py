"""Bytes of one file from one source. If the source fails, the rest comes from another source."""

from collections.abc import Callable, Generator, Iterable, Iterator

from narcore.cache.cached import CachedBytes
from narcore.cache.fill import FillBytes
from narcore.concurrency.closing import close, stage
from narcore.errors import CacheFailure, CompressionError, IntegrityError, NarcoreError, StoreError, StoreUnresponsive
from narcore.formats.listing import ListingBuilder, NarListing, Node, contents_prefix
from narcore.formats.nar.parser import NarParser
from narcore.nars.accessor import NarBytes
from narcore.nars.remoteparts import after_tag
from narcore.nars.wholenar import is_worth_verifying
from narcore.streams.slicing import skip_and_drain, skip_and_limit

Take = Callable[[Iterator[bytes], int, int], Iterator[bytes]]


class Streamed:
    """Some bytes of the file ``node`` from a stream of the NAR. The bytes before them are discarded.

    If little of the NAR follows the requested bytes (see `is_worth_verifying`), the stream is read to its end before the last
    bytes are returned. The NarHash is checked at the end, so a NAR that does not match its narinfo never yields a complete answer.
    In all cases, reading raises CorruptStream if the file does not begin at its offset in the listing.
    """

    def __init__(
        self, chunks: Iterator[bytes], node: Node, start: int, stop: int, *, nar_size: int, verify: bool = False
    ) -> None:
        """``start`` and ``stop`` are offsets in the NAR. ``verify``: read to the end of the NAR in any case."""
        self.length = stop - start
        self.is_verified = verify or is_worth_verifying(stop, nar_size)
        self._source = chunks
        take = skip_and_drain if self.is_verified else skip_and_limit
        self._chunks = self._contents(node, take, start, stop)

    def _contents(self, node: Node, take: Take, start: int, stop: int) -> Generator[bytes]:
        tag = contents_prefix(node)
        contents = after_tag(self._source, node.nar_offset - len(tag), tag)
        yield from take(contents, start - node.nar_offset, stop - node.nar_offset)

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def close(self) -> None:
        self._chunks.close()
        close(self._source)


class PartOrElsewhere:
    """Some bytes from a range of a remote file. If the range fails, the rest comes from other sources.

    ``elsewhere`` is called with the error and the offset of the next byte. It yields the sources to try, in order.
    """

    def __init__(
        self,
        part: NarBytes,
        start: int,
        elsewhere: Callable[[NarcoreError, int], Iterator[NarBytes]],
        *,
        is_verified: bool = False,
    ) -> None:
        """``is_verified``: the bytes of all sources are verified."""
        self.is_verified = is_verified
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


class CachedOrStreamed:
    """Some bytes from the cache. If the cache fails before the end, the rest comes from a new stream.

    With ``strict``, raises the error of the cache instead. Bytes that were already returned are compared with the stream; raises
    CacheFailure if the cache can't return them again for this comparison. ``stream`` must return streams that verify the NAR.

    ``file`` has the same meaning as in ``CachedBytes``. A caller that reads ``file`` directly must call ``check_untouched`` at
    the end. Such a caller does not get the rest from a stream.
    """

    is_verified = True

    def __init__(
        self, cached: FillBytes | CachedBytes, stream: Callable[[int, int], Streamed], start: int, *, strict: bool
    ) -> None:
        self.length = cached.length
        self.file = cached.file if isinstance(cached, CachedBytes) else None
        self._cached = cached
        self._open_stream = stream
        self._strict = strict
        self._chunks = self._read(start, start + cached.length)

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def check_untouched(self) -> None:
        """Raise CacheFailure if ``file`` has been written to since it was opened."""
        if isinstance(self._cached, CachedBytes):
            self._cached.check_untouched()

    def close(self) -> None:
        self._chunks.close()
        self._cached.close()

    def _read(self, start: int, stop: int) -> Generator[bytes]:
        sent = start
        try:
            for chunk in self._cached:
                yield chunk
                sent += len(chunk)
        except (CacheFailure, StoreUnresponsive):  # a stream may come from another store
            if self._strict:
                raise
            yield from self._stream(start, sent, stop)

    def _stream(self, start: int, sent: int, stop: int) -> Generator[bytes]:
        """Yield the bytes from ``sent`` on. The bytes before ``sent`` were already returned, and must be the same in the stream."""
        rest = self._open_stream(start, stop)
        try:
            position = start
            for chunk in rest:
                old = min(len(chunk), max(0, sent - position))
                if old and self._cached.again(position, position + old) != chunk[:old]:
                    raise IntegrityError("the store sent different bytes when the NAR was fetched again")
                position += len(chunk)
                if chunk[old:]:
                    yield chunk[old:]
        finally:
            rest.close()


@stage
def as_listed(chunks: Iterable[bytes], listing: NarListing, on_other: Callable[[NarListing], None]) -> Iterator[bytes]:
    """Yield the NAR as it arrives. Before the last bytes, check that ``listing`` is the listing of this NAR.

    If the listing is wrong, calls ``on_other`` with the correct listing and raises IntegrityError.
    """
    parser, builder = NarParser(contents=False), ListingBuilder()
    previous = b""
    for chunk in chunks:
        parser.receive_data(chunk)
        builder.add_all(parser.events())
        if previous:
            yield previous
        previous = chunk
    parser.receive_eof()
    builder.add_all(parser.events())
    found = builder.finish()
    if found != listing:
        on_other(found)
    check_same(found, listing)
    yield previous


def check_same(found: NarListing, expected: NarListing) -> None:
    """Raise IntegrityError if ``found``, the listing of a NAR, differs from ``expected``, the listing that its store sent."""
    if found != expected:
        raise IntegrityError("the listing that the store sent does not match the NAR")
