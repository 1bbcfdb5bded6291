"""Slices of streams."""

from collections.abc import Iterable, Iterator

from narcore.concurrency.closing import stage
from narcore.errors import TruncatedStream


@stage
def skip(chunks: Iterable[bytes], start: int) -> Iterator[bytes]:
    """Yield all but the first ``start`` bytes of ``chunks``; nothing if the stream is shorter, which is not an error."""
    for chunk in chunks:
        if part := chunk[start:]:
            yield part
        start = max(0, start - len(chunk))


@stage
def skip_and_limit(chunks: Iterable[bytes], start: int, stop: int) -> Iterator[bytes]:
    """Yield the bytes from ``start`` to ``stop`` (exclusive) of ``chunks``; ``0 <= start <= stop``.

    Only the first and the last chunk are cut, the others are passed on unchanged. Nothing is read after the chunk with the last
    byte; the source is then closed. Raises TruncatedStream if the source ends before ``stop``.
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
    """Like `skip_and_limit`, but read the source to its end before the last bytes are passed on.

    For a source that verifies itself at its end: a reader that has received all bytes has verified bytes.
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
