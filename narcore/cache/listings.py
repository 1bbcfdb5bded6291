"""The listing next to a cached NAR. It is made from the NAR itself, and made again if its file is not marked as verified.

Nix's RemoteFSAccessor can share the directory, and stores only the root node there: the value of ``root`` in the ``.ls`` file of
a binary cache. This module does the same.
"""

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress

from narcore.cache.layout import THIS_BOOT, Layout, NarKey, is_verified, mark
from narcore.cache.locks import alone, replacing
from narcore.errors import ListingError
from narcore.formats.listing import NarListing
from narcore.formats.nar.parser import parse_nar
from narcore.sizes import CHUNK_SIZE

_BEFORE_ROOT, _AFTER_ROOT = b'{"version":1,"root":', b"}"


@contextmanager
def new_listing(layout: Layout, digits: str, listing: NarListing) -> Generator[None]:
    """Write the listing, and move it into place at the end of the ``with`` block unless the block raises. Raises OSError."""
    with replacing(layout.listing(digits)) as fd:
        with os.fdopen(fd, "wb", closefd=False) as file:
            file.writelines(_root_chunks(listing))
        os.fchmod(fd, 0o444)
        mark(fd, THIS_BOOT)
        yield


def _root_chunks(listing: NarListing) -> Iterator[bytes]:
    previous = b""
    for number, chunk in enumerate(listing.json_chunks()):
        yield previous
        previous = chunk if number else chunk.removeprefix(_BEFORE_ROOT)
    yield previous.removesuffix(_AFTER_ROOT)


def load_listing(layout: Layout, key: NarKey, nar_fd: int) -> NarListing:
    """Return the listing of a complete, verified NAR that is open at ``nar_fd``. Raises OSError."""
    listing = _read_listing(layout, key)
    if listing is None:
        with alone(nar_fd):
            listing = _read_listing(layout, key) or _make_listing(layout, key, nar_fd)
    return listing


def _read_listing(layout: Layout, key: NarKey) -> NarListing | None:
    try:
        with layout.listing(key.digits).open("rb") as file:
            if is_verified(os.fstat(file.fileno())):  # if not, another program has written to the file
                return NarListing.parse(b"".join((_BEFORE_ROOT, file.read(), _AFTER_ROOT)), nar_size=key.size)
    except (OSError, ListingError):
        pass
    return None


def _make_listing(layout: Layout, key: NarKey, nar_fd: int) -> NarListing:
    listing = NarListing.from_events(parse_nar(file_chunks(nar_fd), contents=False))
    with suppress(OSError), new_listing(layout, key.digits, listing):
        pass  # if the disk is full or read-only, the listing is made again the next time
    return listing


def file_chunks(fd: int) -> Iterator[bytes]:
    """Yield the contents of an open file from its start, regardless of its position."""
    position = 0
    while chunk := os.pread(fd, CHUNK_SIZE, position):
        yield chunk
        position += len(chunk)
