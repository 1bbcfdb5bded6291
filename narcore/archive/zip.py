"""A subtree as a zip archive."""

import stat
import struct
import zipfile
from collections.abc import Iterator

from narcore.accessor import NarAccessor
from narcore.archive.contents import Contents, walk
from narcore.formats.listing import Kind, Node

# Info-ZIP's extended timestamp, which is local to no time zone and goes back to 1970: only the modification time, 1 s.
_TIME = struct.pack("<HHBi", 0x5455, 5, 1, 1)
_UNIX = 3


def zip_archive(accessor: NarAccessor, node: Node, name: str) -> Iterator[bytes]:
    """The archive of ``node``, whose path in it is ``name``. Raises from the iterator what reading raises.

    Files are stored as they are: deflating takes ten times as long as all the rest. Names are UTF-8 in a zip; bytes of one that are
    none are spelled as in a URL, ``%FF``.
    """
    sink = _Sink()
    contents = Contents(accessor, node)
    try:
        with zipfile.ZipFile(sink, "w") as archive:
            for path, entry in walk(accessor.listing, node, name):
                yield from _member(archive, sink, path, entry, contents)
        yield sink.taken()
    finally:
        contents.close()


def _member(archive: zipfile.ZipFile, sink: "_Sink", path: str, node: Node, contents: Contents) -> Iterator[bytes]:
    info = zipfile.ZipInfo(_spelled_out(path) + ("/" if node.kind is Kind.DIRECTORY else ""))
    info.create_system = _UNIX
    info.external_attr = _mode(node) << 16 | (0x10 if node.kind is Kind.DIRECTORY else 0)
    info.extra = _TIME
    info.file_size = node.size
    with archive.open(info, "w") as member:
        if node.kind is Kind.SYMLINK:
            member.write(node.target.encode("utf-8", "surrogateescape"))
        elif node.kind is Kind.REGULAR:
            for chunk in contents.of(node):
                member.write(chunk)
                yield sink.taken()
    yield sink.taken()


def _mode(node: Node) -> int:
    match node.kind:
        case Kind.DIRECTORY:
            return stat.S_IFDIR | 0o555
        case Kind.SYMLINK:
            return stat.S_IFLNK | 0o777
        case Kind.REGULAR:
            return stat.S_IFREG | (0o555 if node.executable else 0o444)


def _spelled_out(path: str) -> str:
    return "".join(f"%{ord(char) - 0xDC00:02X}" if "\udc80" <= char <= "\udcff" else char for char in path)


class _Sink:
    """What ZipFile writes to: it can't seek, so sizes and check sums follow the contents."""

    def __init__(self) -> None:
        self._written: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._written.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Everything is taken from here, nothing is passed on."""

    def close(self) -> None:
        """There is nothing to close."""

    def taken(self) -> bytes:
        """What was written since the last time."""
        data = b"".join(self._written)
        self._written.clear()
        return data
