"""A subtree as a tar archive."""

import tarfile
from collections.abc import Iterator

from narcore.archive.contents import Contents, walk
from narcore.formats.listing import Kind, NarListing, Node
from narcore.nars.accessor import NarAccessor

_ZEROS = bytes(tarfile.RECORDSIZE)
_TYPES = {Kind.REGULAR: tarfile.REGTYPE, Kind.DIRECTORY: tarfile.DIRTYPE, Kind.SYMLINK: tarfile.SYMTYPE}


def tar(accessor: NarAccessor, node: Node, name: str) -> Iterator[bytes]:
    """Yield the archive of ``node``, whose path in it is ``name``. The iterator raises the errors of reading."""
    contents = Contents(accessor, node)
    try:
        size = 0
        for path, entry in walk(accessor.listing, node, name):
            header = _header(path, entry)
            yield header
            if entry.size:
                yield from contents.of(entry)
                yield _ZEROS[: -entry.size % tarfile.BLOCKSIZE]
            size += len(header) + _padded(entry.size)
        yield _ZEROS[: _end(size)]
    finally:
        contents.close()


def tar_size(listing: NarListing, node: Node, name: str) -> int:
    """Return the size of the archive in bytes."""
    size = sum(len(_header(path, entry)) + _padded(entry.size) for path, entry in walk(listing, node, name))
    return size + _end(size)


def _header(path: str, node: Node) -> bytes:
    info = tarfile.TarInfo(path)
    info.type = _TYPES[node.kind]
    info.mode = 0o555 if node.executable or node.kind is Kind.DIRECTORY else 0o444
    info.mtime = 1
    info.size = node.size
    info.linkname = node.target
    if node.kind is Kind.SYMLINK:
        info.mode = 0o777
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _padded(size: int) -> int:
    return size + -size % tarfile.BLOCKSIZE


def _end(size: int) -> int:
    """Return the size of the archive's end: two blocks of zeros, and padding up to a whole record."""
    end = 2 * tarfile.BLOCKSIZE
    return end + -(size + end) % tarfile.RECORDSIZE
