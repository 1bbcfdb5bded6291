"""Slices of streams."""

from collections.abc import Iterable, Iterator

from narcore.concurrency.closing import stage
from narcore.errors import TruncatedStream


@stage
def skip(chunks: Iterable[bytes], start: int) -> Iterator[bytes]:
    """Yield all but the first ``start`` bytes of ``chunks``. A shorter stream is not an error; it yields nothing."""
    for chunk in chunks:
        if part := chunk[start:]:
            yield part
        start = max(0, start - len(chunk))


@stage
def skip_and_limit(chunks: Iterable[bytes], start: int, stop: int) -> Iterator[bytes]:
    """Yield the bytes from ``start`` to ``stop`` (exclusive) of ``chunks``; ``0 <= start <= stop``.

    Cuts only the first and the last chunk, and passes on the others unchanged. Reads nothing after the chunk with the last
    byte, and then closes the source. Raises TruncatedStream if the source ends before ``stop``.
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
    """Like `skip_and_limit`, but read the source to its end before passing on the last bytes.

    Meant for a source that verifies itself at its end: if a reader has received all bytes, the bytes are verified.
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
