"""The listing next to a cached NAR. It is made from the NAR itself.
If its file is not marked as verified, the listing is made again.

The file begins with `_MAGIC`, followed by the packed form of the listing (`NarListing.packed_chunks`). A large file is mapped and
searched in place: a lookup reads only the pages that contain the names on the path. Nothing writes to the file after it got its
name: if a mapped file is truncated, the kernel kills a process that reads beyond its end. For this reason the file is not named
``.ls``: Nix stores the listings in its ``local-nar-cache`` as ``.ls`` files and overwrites them in place. If there is no ``.ls``
file, Nix reads the NAR.
"""

import mmap
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress

from narcore.cache.layout import THIS_BOOT, Layout, NarKey, is_verified, mark
from narcore.cache.locks import alone, replacing
from narcore.errors import ListingError
from narcore.formats.listing import NarListing
from narcore.formats.nar.parser import parse_nar
from narcore.sizes import CHUNK_SIZE

_MAGIC = b"narlist1"

# A file up to this size, in bytes, is read into memory, which takes less than a millisecond. A larger file is mapped. A mapping
# keeps a descriptor open, and a process has a limited number of descriptors. There are few mappings: each has at least about
# 30,000 entries, and the memory for listings is limited by the number of entries.
MAPPED_SIZE = 1 << 20


@contextmanager
def new_listing(layout: Layout, digits: str, listing: NarListing) -> Generator[None]:
    """Write the listing, and move it into place at the end of the ``with`` block unless the block raises. Raises OSError."""
    with replacing(layout.listing(digits)) as fd:
        with os.fdopen(fd, "wb", closefd=False) as file:
            file.write(_MAGIC)
            file.writelines(listing.packed_chunks())
        os.fchmod(fd, 0o444)
        mark(fd, THIS_BOOT)
        yield


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
            status = os.fstat(file.fileno())
            if is_verified(status):  # otherwise another program has written to the file
                return _parse(_map(file.fileno()) if status.st_size > MAPPED_SIZE else file.read(), key)
    except (OSError, ValueError):  # a ListingError is a ValueError, and so is the error for mapping an empty file
        pass
    return None


def _map(fd: int) -> memoryview:
    return memoryview(mmap.mmap(fd, 0, access=mmap.ACCESS_READ))


def _parse(data: bytes | memoryview, key: NarKey) -> NarListing:
    if bytes(data[: len(_MAGIC)]) != _MAGIC:
        raise ListingError("not a listing of this version")
    return NarListing.from_packed(memoryview(data)[len(_MAGIC) :], nar_size=key.size)


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
