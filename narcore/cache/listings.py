"""The listing beside a cached NAR. It is made of the NAR itself, and made again if the file can't be trusted."""

import os
from collections.abc import Iterator

from narcore.cache.layout import THIS_BOOT, Layout, NarKey, is_verified, mark
from narcore.errors import ListingError
from narcore.formats.listing import NarListing
from narcore.formats.nar.parser import parse_nar

CHUNK = 256 * 1024


def save_listing(layout: Layout, digits: str, listing: NarListing) -> None:
    """Raises OSError."""
    partial = layout.directory / f".{digits}.{os.getpid()}.ls"
    try:
        with partial.open("wb") as file:
            file.writelines(listing.json_chunks())
            file.flush()
            mark(file.fileno(), THIS_BOOT)
        partial.replace(layout.listing(digits))
    finally:
        partial.unlink(missing_ok=True)


def load_listing(layout: Layout, key: NarKey, nar_fd: int) -> NarListing:
    """The listing of a complete, verified NAR that is open at ``nar_fd``. Raises OSError."""
    try:
        with layout.listing(key.digits).open("rb") as file:
            if is_verified(os.fstat(file.fileno())):  # else somebody wrote to it since
                return NarListing.parse(file.read(), nar_size=key.size)
    except (FileNotFoundError, ListingError):
        pass  # made anew below
    listing = NarListing.from_events(parse_nar(file_chunks(nar_fd), contents=False))
    save_listing(layout, key.digits, listing)
    return listing


def file_chunks(fd: int) -> Iterator[bytes]:
    """A whole open file, from its start, whatever its position."""
    position = 0
    while chunk := os.pread(fd, CHUNK, position):
        yield chunk
        position += len(chunk)
