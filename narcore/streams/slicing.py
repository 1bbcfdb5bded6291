"""A part of a stream."""

from collections.abc import Iterable, Iterator

from narcore.concurrency.closing import stage
from narcore.errors import TruncatedStream


@stage
def skip(chunks: Iterable[bytes], start: int) -> Iterator[bytes]:
    """All but the first ``start`` bytes of ``chunks``. One that has fewer gives none, and no error."""
    for chunk in chunks:
        if part := chunk[start:]:
            yield part
        start = max(0, start - len(chunk))


@stage
def skip_and_limit(chunks: Iterable[bytes], start: int, stop: int) -> Iterator[bytes]:
    """The bytes ``start`` to ``stop`` (excluded) of ``chunks``; ``0 <= start <= stop``.

    Only the first and the last chunk are cut, the others pass as they are. Nothing is read beyond the chunk that holds
    the last byte, and then the source is closed. Raises TruncatedStream if the source ends before ``stop``.
    """
    if start == stop:
        return
    end = 0
    for chunk in chunks:
        begin, end = end, end + len(chunk)
        if part := chunk[max(start - begin, 0) : stop - begin]:
            yield part
        if end >= stop:
            return
    raise TruncatedStream(f"the stream ends at byte {end}, before byte {stop}")


@stage
def skip_and_drain(chunks: Iterable[bytes], start: int, stop: int) -> Iterator[bytes]:
    """As `skip_and_limit`, but the source is read to its end before the last bytes are given out.

    For a source that checks itself at its end: whoever has all bytes has checked ones.
    """
    end = 0
    previous = b""
    for chunk in chunks:
        begin, end = end, end + len(chunk)
        if begin < stop and (part := chunk[max(start - begin, 0) : stop - begin]):
            if previous:
                yield previous
            previous = part
    if end < stop:
        raise TruncatedStream(f"the stream ends at byte {end}, before byte {stop}")
    if previous:
        yield previous
