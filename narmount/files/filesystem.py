"""The file system: answers the kernel's requests for store paths.

Every store path can be looked up in the root directory. Listing the root shows the store paths that have been looked up.
"""

import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial

from narcore.binarycache import BinaryCache
from narcore.errors import CacheFailure
from narcore.formats.listing import Kind, Node
from narcore.formats.names import to_bytes, to_text
from narcore.formats.storepath import is_base_name
from narcore.nars.opennar import OpenNar
from narmount.files.opennars import OpenNars
from narmount.files.passthrough import PLAIN, PassthroughFiles
from narmount.files.storepaths import FOREVER, OpenPath, StorePaths, root_id
from narmount.fuse import protocol
from narmount.fuse.protocol import ROOT_ID, Notify, NotifyKernel, Opcode, Open
from narmount.fuse.server import Slow

ROOT_SECONDS = 1  # the kernel may cache the attributes of the root

LINKS = b".links"  # Nix expects this directory in a store that is the lower layer of a local-overlay store
LINKS_ID = 2

# A smaller file is read through the worker even where passthrough works: one or two requests bring it into the kernel's cache, and
# no unpacked copy on the disk is needed.
PASSTHROUGH_SIZE = 128 * 1024

# After a read, the kernel's cache has the bytes twice: as pages of the mounted file and of the NAR. The NAR's pages are dropped a
# block at a time, when a read crosses the end of a block. The reason: the kernel drops a folio (at most 4 MiB) only as a whole.
DROP_BLOCK = 4 << 20

_DIRECTORY = stat.S_IFDIR | 0o555
_OPENED_PLAIN = protocol.OPENED.pack(0, Open.KEEP_CACHE, 0)


class FileSystem:
    """Answers the kernel's requests. Thread-safe."""

    def __init__(
        self,
        cache: BinaryCache,
        paths: StorePaths,
        passthrough: PassthroughFiles | None,
        notify: NotifyKernel,
    ) -> None:
        """``passthrough`` is None if the kernel can't read files of the disk cache itself."""
        self._cache = cache
        self._paths = paths
        self._passthrough = passthrough
        self._notify = notify
        self._nars = OpenNars()
        self.read_bytes = 0
        self._handlers: dict[int, Callable[[int, memoryview], bytes]] = {
            Opcode.LOOKUP: self._look_up,
            Opcode.GETATTR: self._get_attributes,
            Opcode.READLINK: self._read_link,
            Opcode.READ: self._read,
            Opcode.READDIR: partial(self._read_directory, plus=False),
            Opcode.READDIRPLUS: partial(self._read_directory, plus=True),
            Opcode.STATFS: self._status,
            Opcode.IOCTL: self._no_ioctl,
        }
        if passthrough is not None:
            self._handlers[Opcode.OPEN] = self._open
            self._handlers[Opcode.RELEASE] = self._release

    @property
    def open_nars(self) -> int:
        return len(self._nars)

    # --- for the server

    def answer(self, opcode: int, node_id: int, body: memoryview) -> bytes:
        """Return the body of the answer. Raises OSError with the errno to answer, or Slow.

        If the answer is ENOSYS, the kernel never sends this opcode again. After ENOSYS for OPEN, opening a file costs no request.
        """
        handler = self._handlers.get(opcode)
        if handler is None:
            raise OSError(errno.ENOSYS, "not implemented")
        return handler(node_id, body)

    def forget(self, node_ids: list[int]) -> None:
        if self._passthrough is not None:
            self._passthrough.forget(node_ids)

    def sweep(self) -> None:
        """Close NARs and files that have not been used for a while. The caller calls this every few seconds."""
        self._nars.sweep()
        if self._passthrough is not None and (inherited := self._passthrough.sweep()):
            self._notify(Notify.PRUNE, protocol.prune(inherited))

    def close(self) -> None:
        self._nars.close()

    # --- names and attributes

    def _look_up(self, node_id: int, body: memoryview) -> bytes:
        name = bytes(body[:-1])
        if node_id == ROOT_ID:
            return self._look_up_path(name)
        if node_id == LINKS_ID:
            return protocol.no_entry(FOREVER)
        path, directory = self._directory(node_id)
        node = path.listing.child(directory, to_text(name))
        return protocol.no_entry(path.seconds) if node is None else _entry(path, node)

    def _look_up_path(self, name: bytes) -> bytes:
        if name == LINKS:
            return protocol.entry(LINKS_ID, FOREVER, _directory_attributes(LINKS_ID))
        base_name = name.decode("ascii", "replace")
        if not is_base_name(base_name):
            return protocol.no_entry(FOREVER)
        found = self._paths.look_up(base_name)
        if found is None:  # with a zero timeout: otherwise overlays would not see that a name has appeared
            return protocol.no_entry(0)
        if isinstance(found, OpenPath):
            return _entry(found, found.listing.root)
        return protocol.entry(root_id(found), 0, _directory_attributes(root_id(found)))

    def _directory(self, node_id: int) -> tuple[OpenPath, Node]:
        path, node = self._paths.node(node_id)
        if node.kind is not Kind.DIRECTORY:
            raise OSError(errno.ENOTDIR, "not a directory")
        return path, node

    def _get_attributes(self, node_id: int, body: memoryview) -> bytes:
        if node_id in (ROOT_ID, LINKS_ID):
            return protocol.attr_answer(
                FOREVER if node_id == LINKS_ID else ROOT_SECONDS, _directory_attributes(node_id)
            )
        path, node = self._paths.node(node_id)
        return protocol.attr_answer(path.seconds, _attributes(node_id, node))

    def _read_link(self, node_id: int, body: memoryview) -> bytes:
        _, node = self._paths.node(node_id)
        if node.kind is not Kind.SYMLINK:
            raise OSError(errno.EINVAL, "not a link")
        return to_bytes(node.target)

    def _status(self, node_id: int, body: memoryview) -> bytes:
        """Answer STATFS like a full file system, since nothing can be written."""
        return protocol.STATFS.pack(0, 0, 0, len(self._paths), 0, 4096, 255, 4096, 0)

    def _no_ioctl(self, node_id: int, body: memoryview) -> bytes:
        raise OSError(errno.ENOTTY, "no ioctl is supported")

    # --- directories

    def _read_directory(self, node_id: int, body: memoryview, *, plus: bool) -> bytes:
        _, offset, size, *_ = protocol.READ.unpack_from(body)
        found = bytearray()
        for record in self._records(node_id, offset, plus=plus):
            if len(found) + len(record) > size:
                break
            found += record
        return bytes(found)

    def _records(self, node_id: int, offset: int, *, plus: bool) -> Iterator[bytes]:
        """Return the records after ``offset``. The first two are ``.`` and ``..``, whose attributes the kernel knows."""
        for place, name in ((1, b"."), (2, b"..")):
            if offset < place:
                head = bytes(protocol.ENTRY.size + protocol.ATTR.size if plus else 0)
                yield head + protocol.dirent(node_id, place, name, _DIRECTORY)
        start = max(0, offset - 2)
        if node_id == ROOT_ID:
            yield from self._root_records(start, plus=plus)
        elif node_id != LINKS_ID:
            path, directory = self._directory(node_id)
            for place, node in enumerate(path.listing.children(directory, start), start + 3):
                yield _record(path, node, place, to_bytes(node.name), plus=plus)

    def _root_records(self, start: int, *, plus: bool) -> Iterator[bytes]:
        """Yield the store paths in the order in which they were looked up.

        A store path that is not in memory has a name, but no attributes.
        """
        for row, base_name, path in self._paths.listed(start + 1):
            name = base_name.encode("ascii")
            if path is not None:
                yield _record(path, path.listing.root, row + 2, name, plus=plus)
            else:
                head = protocol.no_entry(0) if plus else b""
                yield head + protocol.dirent(root_id(row), row + 2, name, 0)

    # --- contents

    def _open(self, node_id: int, body: memoryview) -> bytes:
        """Answer OPEN. Without passthrough, the first OPEN gets ENOSYS, and the kernel sends no further OPEN."""
        assert self._passthrough is not None
        path, (_, length) = self._paths.contents(node_id)
        if length < PASSTHROUGH_SIZE:
            return _OPENED_PLAIN
        if not path.verified:
            self._passthrough.add(node_id, None)
        opened = self._passthrough.open(node_id)
        if opened is None:
            raise self._unpacking(path, node_id)
        handle, number = opened
        if number == PLAIN:
            return protocol.OPENED.pack(handle, Open.KEEP_CACHE, 0)
        return protocol.OPENED.pack(handle, Open.PASSTHROUGH, number)

    def _release(self, node_id: int, body: memoryview) -> bytes:
        assert self._passthrough is not None
        handle, *_ = protocol.RELEASE.unpack_from(body)
        if handle:
            self._passthrough.release(node_id, handle)
        return b""

    def _unpacking(self, path: OpenPath, node_id: int) -> Slow:
        """Return the work of unpacking a regular file of a NAR into a separate file, which the kernel can read."""
        _, node = self._paths.node(node_id)
        copying = threading.Event()

        def unpack() -> None:
            with closing(self._cache.open_fetched(path.info)) as nar:
                copying.set()
                self._unpack(nar, node, node_id)

        def progress() -> int:  # never times out: unpacking ends, even if the disk is slow
            return time.monotonic_ns() if copying.is_set() else self._paths.progress(path.info)

        return Slow(("file", path.base_name, node.index), unpack, progress)

    def _unpack(self, nar: OpenNar, node: Node, node_id: int) -> None:
        assert self._passthrough is not None
        try:
            fd = nar.open_unpacked(node)
        except CacheFailure:  # the disk has no space for the file, so it is read through the worker
            self._passthrough.add(node_id, None)
            return
        try:
            nar.drop_pages(node.nar_offset, node.nar_offset + node.size)
            self._passthrough.add(node_id, fd, nar.unpacked_file(node, fd))
        finally:
            os.close(fd)

    def _read(self, node_id: int, body: memoryview) -> bytes:
        _, offset, size, *_ = protocol.READ.unpack_from(body)
        path, (nar_offset, length) = self._paths.contents(node_id)
        start, stop = nar_offset + offset, nar_offset + min(offset + size, length)
        if start >= stop:
            return b""
        data = self._read_nar(path, node_id, start, stop)
        self.read_bytes += stop - start
        return data

    def _read_nar(self, path: OpenPath, node_id: int, start: int, stop: int) -> bytes:
        entry = self._nars.acquire(path.row)
        if entry is None:
            if self._paths.early is not None and not path.verified:
                return self._paths.early.read(path.row, path.info, node_id, start, stop)
            raise self._fetching(path)
        try:
            data = entry.nar.read(start, stop)
            if stop // DROP_BLOCK > start // DROP_BLOCK:
                entry.nar.drop_pages(start // DROP_BLOCK * DROP_BLOCK, stop // DROP_BLOCK * DROP_BLOCK)
            return data
        except CacheFailure:  # the cached NAR was damaged on the disk, and has been removed: fetch the NAR again
            self._nars.drop(path.row)
            raise self._fetching(path) from None
        finally:
            self._nars.release(entry)

    def _fetching(self, path: OpenPath) -> Slow:
        def fetch() -> None:
            self._nars.put(path.row, self._cache.open_fetched(path.info))

        return Slow(("nar", path.base_name), fetch, partial(self._paths.progress, path.info))


def mode(node: Node) -> int:
    """Return file type and permissions as Nix sets them in a store."""
    if node.kind is Kind.DIRECTORY:
        return _DIRECTORY
    if node.kind is Kind.SYMLINK:
        return stat.S_IFLNK | 0o777
    return stat.S_IFREG | (0o555 if node.executable else 0o444)


def _directory_attributes(node_id: int) -> bytes:
    return protocol.attributes(node_id, _DIRECTORY, 0)


def _attributes(node_id: int, node: Node) -> bytes:
    size = len(to_bytes(node.target)) if node.kind is Kind.SYMLINK else node.size
    return protocol.attributes(node_id, mode(node), size)


def _entry(path: OpenPath, node: Node) -> bytes:
    node_id = path.node_id(node)
    return protocol.entry(node_id, path.seconds, _attributes(node_id, node))


def _record(path: OpenPath, node: Node, offset: int, name: bytes, *, plus: bool) -> bytes:
    head = _entry(path, node) if plus else b""
    return head + protocol.dirent(path.node_id(node), offset, name, mode(node))
