"""The interface of a binary cache store: files by relative path, regardless of their format."""

import time
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import Protocol, Self

from narcore.errors import FileNotInStore, StoreError, StoreTimeout

# How long a small file may take to arrive. A read timeout is not enough: a file that arrives byte by byte never exceeds it.
SMALL_FILE_SECONDS = 60.0


class Body(Protocol):
    """The bytes of a file as they arrive: an iterator that must be closed."""

    def __iter__(self) -> Iterator[bytes]: ...

    def __next__(self) -> bytes: ...

    def close(self) -> None: ...


class StoreFile:
    """One file of a store, or the requested part of it. It can be read once.

    Iterating yields non-empty chunks of at most ``CHUNK_SIZE`` bytes, each as soon as it arrives. Reading raises
    ``StoreUnavailable`` if the bytes end early, as far as the store can detect that.
    Close the file, or use it as a context manager. Reading to the end also closes it; stopping early does not.

    ``size`` is the size of the whole file, even if only a part was requested, or None if the store does not report it.
    ``content_encoding`` is the Content-Encoding of HTTP, in lower case. The bytes are not decoded.
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
    """The files of a binary cache, by relative path. Every method may be called from many threads at once.

    ``path`` has the form of the ``URL`` field of a narinfo: relative to the store, percent-encoded, possibly with a query. All
    methods raise ``StoreForbidden`` if the path leads out of the store, and ``StoreUnavailable`` (or its subclass
    ``StoreTimeout``) if the store can't answer.
    """

    @property
    def url(self) -> str:
        """The store's URL for messages and logs: without user, password and parameters."""
        ...

    def get_file(self, path: str, start: int = 0, stop: int | None = None) -> StoreFile:
        """Open a file, or its bytes from ``start`` up to ``stop`` (exclusive; None: the end).

        Raises ``FileNotInStore`` if there is no such file, ``RangeNotSupported`` if the store can't return exactly the
        requested bytes (for example because the range reaches beyond the end of the file), and ``ValueError`` if
        ``stop <= start``.
        """
        ...

    def check(self) -> None:
        """Raise a ``StoreError`` that says what to do if the store can't be used with its settings.

        A store without nix-cache-info passes the check. In object stores, ``get_file`` can't distinguish a missing file from a file
        that may not be read; this method can.
        """
        ...

    def close(self) -> None: ...


def check_part(start: int, stop: int | None) -> None:
    """Raise ``ValueError`` unless ``start`` and ``stop`` name at least one byte (HTTP has no empty range)."""
    if start < 0 or (stop is not None and stop <= start):
        raise ValueError(f"not a part of a file: bytes {start} to {stop}")


def check_by_asking(store: BinaryCacheStore) -> None:
    """Implement ``check`` for a store that reports missing files and denied access differently."""
    with suppress(FileNotInStore):
        store.get_file("nix-cache-info").close()


def read_file(store: BinaryCacheStore, path: str, limit: int) -> bytes:
    """Return the contents of a small file.

    Raises ``StoreError`` if the file has more than ``limit`` bytes, and ``StoreTimeout`` if it takes more than SMALL_FILE_SECONDS.
    """
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
                raise StoreTimeout(f"{store.url}: {path} did not arrive within {SMALL_FILE_SECONDS:g} s")
    return bytes(content)
