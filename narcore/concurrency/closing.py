"""Closing an iterator and the source that it reads from.

A generator that was never started runs no ``finally`` block when it is closed. A WSGI server closes a generator in this
state when a client disconnects before the first byte, and the connection to the store would then stay open. Therefore every
iterator that reads from another iterator is a `Stage`.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from functools import wraps
from typing import Concatenate, ParamSpec

P = ParamSpec("P")


def close(source: object) -> None:
    """Call ``source.close()`` if the method exists."""
    method = getattr(source, "close", None)
    if method is not None:
        method()


class Stage(Iterator[bytes]):
    """An iterator of chunks that closes its source when it ends, fails or is closed, even if it was never started."""

    __slots__ = ("_chunks", "_source")

    def __init__(self, body: Iterator[bytes], source: object) -> None:
        self._chunks = _closing(body, source)
        self._source = source

    def __next__(self) -> bytes:
        return next(self._chunks)

    def close(self) -> None:
        """Close the stage and its source. Further calls have no effect."""
        try:
            self._chunks.close()
        finally:
            close(self._source)


def _closing(body: Iterator[bytes], source: object) -> Generator[bytes, None, None]:
    try:
        yield from body
    finally:
        close(source)


def stage(
    body: Callable[Concatenate[Iterable[bytes], P], Iterator[bytes]],
) -> Callable[Concatenate[Iterable[bytes], P], Iterator[bytes]]:
    """Turn a generator function, whose first argument is the source, into a function that returns a `Stage`."""

    @wraps(body)
    def start(source: Iterable[bytes], /, *args: P.args, **kwargs: P.kwargs) -> Iterator[bytes]:
        return Stage(body(source, *args, **kwargs), source)

    return start
