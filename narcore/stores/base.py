"""What a binary cache store is: files by relative path. It knows no format."""

import time
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import Protocol, Self

from narcore.errors import FileNotInStore, StoreError, StoreTimeout

# How long a small file may take: one that comes byte by byte never makes a store that waits for silence give up.
SMALL_FILE_SECONDS = 60.0


class Body(Protocol):
    """The bytes of a file on their way: an iterator that holds something open."""

    def __iter__(self) -> Iterator[bytes]: ...

    def __next__(self) -> bytes: ...

    def close(self) -> None: ...


class StoreFile:
    """One file of a store, or the part of it that was asked for, to be read once.

    Iterating gives non-empty chunks of at most ``CHUNK_SIZE`` bytes, each as soon as it is there. Reading raises
    ``StoreUnavailable`` when the bytes end before they should; a short file never ends cleanly if the store can tell.
    Close it, or use it as a context manager: reading to the end closes it too, leaving early does not.

    ``size`` is the size of the whole file, also when only a part was asked for, or None when the store does not say.
    ``content_encoding`` is what HTTP calls so (lower case): the bytes are as stored, nothing was decoded.
    """

    __slots__ = ("_body", "content_encoding", "size")

    def __init__(self, body: Body, *, size: int | None, content_encoding: str | None = None) -> None:
        self._body = body
        self.size = size
        self.content_encoding = content_encoding

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)

    def close(self) -> None:
        self._body.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class BinaryCacheStore(Protocol):
    """Files of a binary cache by relative path. Every method may be called from many threads at once.

    ``path`` is what a narinfo's ``URL`` says: relative to the store, percent-encoded, perhaps with a query. All methods
    raise ``StoreForbidden`` for a path that leads out of the store, ``StoreUnavailable`` (``StoreTimeout``) when the
    store can't answer.
    """

    @property
    def url(self) -> str:
        """The store's URL for people and logs: without user, password and parameters."""
        ...

    def get_file(self, path: str, start: int = 0, stop: int | None = None) -> StoreFile:
        """Open a file, or its bytes from ``start`` up to ``stop`` (exclusive; None: the end).

        A part is exactly the bytes asked for, else ``RangeNotSupported``: also for a part that reaches beyond the end.
        Raises ``FileNotInStore``, and ``ValueError`` for a part that is empty or runs backwards.
        """
        ...

    def check(self) -> None:
        """Raise a ``StoreError`` that says what to do if the store can't be used as it is set up.

        It is fine if it answers, even that it has no nix-cache-info. Object stores tell that apart from a file that may
        not be read, where ``get_file`` can't.
        """
        ...

    def close(self) -> None: ...


def check_part(start: int, stop: int | None) -> None:
    """Raise ``ValueError`` unless ``start`` and ``stop`` name at least one byte (HTTP has no empty range)."""
    if start < 0 or (stop is not None and stop <= start):
        raise ValueError(f"not a part of a file: bytes {start} to {stop}")


def check_by_asking(store: BinaryCacheStore) -> None:
    """``check`` for a store whose answers mean what they say."""
    with suppress(FileNotInStore):
        store.get_file("nix-cache-info").close()


def read_file(store: BinaryCacheStore, path: str, limit: int) -> bytes:
    """A small file, whole. Raises ``StoreError`` if it has more than ``limit`` bytes, ``StoreTimeout`` if it comes too slowly."""
    deadline = time.monotonic() + SMALL_FILE_SECONDS
    with store.get_file(path) as file:
        if file.size is not None and file.size > limit:
            raise StoreError(f"{store.url}: {path} has {file.size} bytes, more than the {limit} allowed")
        content = bytearray()
        for chunk in file:
            content += chunk
            if len(content) > limit:
                raise StoreError(f"{store.url}: {path} has more than the {limit} bytes allowed")
            if time.monotonic() > deadline:
                raise StoreTimeout(f"{store.url}: {path} has not come within {SMALL_FILE_SECONDS:g} s")
    return bytes(content)
