"""Closing an iterator and the source that it reads from.

A generator that was never started runs no ``finally`` block when it is closed. WSGI servers do just that when a client
leaves before the first byte, and then the connection at the far end would stay open. So every iterator that
reads from another one is a `Stage`.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from functools import wraps
from typing import Concatenate, ParamSpec

P = ParamSpec("P")


def close(source: object) -> None:
    """Call ``source.close()``, if there is such a method."""
    method = getattr(source, "close", None)
    if method is not None:
        method()


class Stage(Iterator[bytes]):
    """An iterator of chunks that closes its source when it ends, fails or is closed, even if it was never started."""

    __slots__ = ("_flow", "_source")

    def __init__(self, body: Iterator[bytes], source: object) -> None:
        self._flow = _closing_behind(body, source)
        self._source = source

    def __next__(self) -> bytes:
        return next(self._flow)

    def close(self) -> None:
        """Close the stage and its source; a second call does no harm."""
        try:
            self._flow.close()
        finally:
            close(self._source)


def _closing_behind(body: Iterator[bytes], source: object) -> Generator[bytes, None, None]:
    try:
        yield from body
    finally:
        close(source)


def stage(
    body: Callable[Concatenate[Iterable[bytes], P], Iterator[bytes]],
) -> Callable[Concatenate[Iterable[bytes], P], Iterator[bytes]]:
    """Make a `Stage` of a generator function, whose first argument is the source."""

    @wraps(body)
    def start(source: Iterable[bytes], /, *args: P.args, **kwargs: P.kwargs) -> Iterator[bytes]:
        return Stage(body(source, *args, **kwargs), source)

    return start
