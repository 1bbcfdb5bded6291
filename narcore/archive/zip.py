"""A subtree as a zip archive (PKWARE's APPNOTE.TXT, to which the section numbers refer).

The standard zipfile module is not used because it holds an object for each member until the end. This module holds only twelve
bytes per member for the central directory, because the listing has the other values.
"""

import stat
import struct
from array import array
from collections.abc import Iterator
from zlib import crc32

from narcore.archive.contents import Contents, walk
from narcore.formats.listing import Kind, Node
from narcore.formats.names import to_bytes
from narcore.nars.accessor import NarAccessor

_VERSION, _VERSION_64 = 20, 45  # 4.4.3: the version that a reader must support
_UNIX = 3
_SIZES_FOLLOW, _UTF_8 = 0x08, 0x800  # 4.4.4
_STORED = 0
_DOS_TIME, _DOS_DATE = 0, 1 << 5 | 1  # 1 January 1980, the earliest possible date
MAX_32 = 2**31 - 1  # some readers treat the fields as signed
_FULL_32, _FULL_16 = 2**32 - 1, 2**16 - 1

# Info-ZIP's extended timestamp, in seconds since 1970 in UTC. It has only the modification time, which is 1 s.
_TIME = struct.pack("<HHBi", 0x5455, 5, 1, 1)


def zip_archive(accessor: NarAccessor, node: Node, name: str) -> Iterator[bytes]:
    """Yield the archive of ``node``, whose path in it is ``name``. The iterator raises the errors of reading.

    Files are stored uncompressed: deflating takes ten times as long as everything else. Names in a zip are UTF-8; bytes of a
    name that are not UTF-8 are percent-encoded as in a URL (``%FF``).
    """
    offsets, checksums = array("Q"), array("I")
    position = 0
    contents = Contents(accessor, node)
    try:
        for path, entry in walk(accessor.listing, node, name):
            offsets.append(position)
            checksum = 0
            header = _local_header(path, entry)
            yield header
            for chunk in _data(entry, contents):
                checksum = crc32(chunk, checksum)
                yield chunk
            checksums.append(checksum)
            descriptor = _descriptor(_size(entry), checksum)
            yield descriptor
            position += len(header) + _size(entry) + len(descriptor)
    finally:
        contents.close()
    directory_size = 0
    for (path, entry), offset, checksum in zip(walk(accessor.listing, node, name), offsets, checksums, strict=True):
        record = _central_record(path, entry, offset, checksum)
        directory_size += len(record)
        yield record
    yield _end(len(offsets), directory_size, position)


def _data(node: Node, contents: Contents) -> Iterator[bytes]:
    match node.kind:
        case Kind.REGULAR:
            yield from contents.of(node)
        case Kind.SYMLINK:
            yield to_bytes(node.target)


def _size(node: Node) -> int:
    return len(to_bytes(node.target)) if node.kind is Kind.SYMLINK else node.size


def _local_header(path: str, node: Node) -> bytes:
    """Return the local header, 4.3.7. The checksum is not known yet, so a descriptor follows the data (4.4.4, bit 3)."""
    name, flags = _name(path, node)
    large = _size(node) > MAX_32
    extra = _TIME + (struct.pack("<HHQQ", 1, 16, 0, 0) if large else b"")
    version = _VERSION_64 if large else _VERSION
    fields = (version, flags, _STORED, _DOS_TIME, _DOS_DATE, 0, 0, 0, len(name), len(extra))
    return struct.pack("<4s5H3L2H", b"PK\x03\x04", *fields) + name + extra


def _descriptor(size: int, checksum: int) -> bytes:
    """Return the data descriptor, 4.3.9. Its two sizes have 64 bits if the local header has a 64-bit extra field."""
    return struct.pack("<4sLQQ" if size > MAX_32 else "<4sLLL", b"PK\x07\x08", checksum, size, size)


def _central_record(path: str, node: Node, offset: int, checksum: int) -> bytes:
    """Return the record in the central directory, 4.3.12. Large values go into the extra field, in the order of 4.5.3."""
    name, flags = _name(path, node)
    size = _size(node)
    large = [*([size, size] if size > MAX_32 else []), *([offset] if offset > MAX_32 else [])]
    extra = (struct.pack(f"<HH{len(large)}Q", 1, 8 * len(large), *large) if large else b"") + _TIME
    version = _VERSION_64 if large else _VERSION
    size = size if size <= MAX_32 else _FULL_32
    fields = (
        version,
        _UNIX,
        version,
        flags,
        _STORED,
        _DOS_TIME,
        _DOS_DATE,
        checksum,
        size,
        size,
        len(name),
        len(extra),
    )
    rest = (0, 0, 0, _attributes(node), offset if offset <= MAX_32 else _FULL_32)
    return struct.pack("<4s2B5H3L5H2L", b"PK\x01\x02", *fields, *rest) + name + extra


def _end(count: int, directory_size: int, offset: int) -> bytes:
    """Return the end of the central directory, 4.3.14 to 4.3.16."""
    large = b""
    if count > _FULL_16 or directory_size > MAX_32 or offset > MAX_32:
        sizes = (count, count, directory_size, offset)
        large = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, _VERSION_64, _VERSION_64, 0, 0, *sizes)
        large += struct.pack("<4sLQL", b"PK\x06\x07", 0, offset + directory_size, 1)
    count_16 = min(count, _FULL_16)
    sizes_32 = (min(directory_size, _FULL_32), min(offset, _FULL_32))
    return large + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count_16, count_16, *sizes_32, 0)


def _name(path: str, node: Node) -> tuple[bytes, int]:
    """Return the path as bytes, and the flags that match it."""
    text = _percent_encoded(path) + ("/" if node.kind is Kind.DIRECTORY else "")
    return text.encode(), _SIZES_FOLLOW | (0 if text.isascii() else _UTF_8)


def _attributes(node: Node) -> int:
    """Return the Unix mode in the upper 16 bits, and the MS-DOS attributes (only the directory flag) in the lower 16 bits."""
    match node.kind:
        case Kind.DIRECTORY:
            return (stat.S_IFDIR | 0o555) << 16 | 0x10
        case Kind.SYMLINK:
            return (stat.S_IFLNK | 0o777) << 16
        case Kind.REGULAR:
            return (stat.S_IFREG | (0o555 if node.executable else 0o444)) << 16


def _percent_encoded(path: str) -> str:
    return "".join(f"%{ord(char) - 0xDC00:02X}" if "\udc80" <= char <= "\udcff" else char for char in path)
