"""The files: what the kernel's questions mean for store paths.

A node id is the row of its store path in the table of names, and its place in the NAR, as in the listing: both are the same in the
next worker. In the root every store path can be looked up, and those that were are listed.

Before something of a store path can be seen, its NAR has been fetched and verified as a whole: nothing of one that is not what its
narinfo says is ever visible. (``early`` relaxes that, see there.)

Nobody should wait for a NAR in a look-up in the root. The kernel lets all who look the same name up wait for the first one, so that
they can't be killed, and holds the root's lock meanwhile: once somebody tries to create a file there, every look-up waits. So what
is a directory by its store's listing is answered as one at once, for no time: whoever then wants to know more of it (the first is
always its attributes) waits by itself. Should the listing have lied, that is an error.
"""

import errno
import logging
import os
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

from narcore.binarycache import BinaryCache
from narcore.concurrency.lru import LruMemory
from narcore.errors import CacheFailure, FileNotInStore, NarcoreError
from narcore.formats.listing import Kind, NarListing, Node
from narcore.formats.names import to_bytes, to_text
from narcore.formats.storepath import HASH_PART_LENGTH, is_base_name
from narcore.lookup.pathinfo import PathInfo
from narcore.nars.cachednar import OpenNar
from narmount.files.early import EarlyReads
from narmount.files.missingnames import MissingNames
from narmount.files.opennars import OpenNars
from narmount.files.passthrough import PLAIN, PassthroughFiles
from narmount.files.pathnumbers import PathNumbers, TooManyPaths
from narmount.fuse import protocol
from narmount.fuse.protocol import ROOT_ID, Notify, Opcode, Open
from narmount.fuse.server import Slow

log = logging.getLogger("narmount")

# What is in a store path never changes: the kernel may keep it as long as it likes.
FOREVER = 30 * 24 * 3600
ROOT_SECONDS = 1

# What a listing says that is not verified has to be asked for again soon: it may turn out to be wrong. (To have the kernel drop a
# name of the root takes its lock on that directory, which every look-up holds that waits for us.)
UNVERIFIED_SECONDS = 1

MISSING_SECONDS = 2  # then the stores are asked again, of whom 5 s are remembered (Lookup)

LINKS = b".links"  # Nix wants one in a store that it uses as a lower layer
LINKS_ID = 2

LISTINGS_MAX = 500_000  # entries of all listings that are kept in memory; 50 to 100 bytes each
PATH_WEIGHT = 50  # of a store path itself, in entries

# A smaller file is read through us also where others are passed through: it is in the kernel's cache after one or two requests,
# and does not need a file of its own on disk.
PASSTHROUGH_SIZE = 128 * 1024

# What was read is dropped from the kernel's cache of the NAR: it keeps it as the mounted file's. In blocks, when a read goes beyond
# the end of one: what the kernel holds in one piece (4 MiB at most) it drops only as a whole.
DROP_BLOCK = 4 << 20

_SLASH = "/"

_INDEX = 0xFFFFFFFF  # of a node id, where the node is in its NAR, counted from 1

_DIRECTORY = stat.S_IFDIR | 0o555
_OPENED_PLAIN = protocol.OPENED.pack(0, Open.KEEP_CACHE, 0)


@dataclass(frozen=True, slots=True)
class OpenPath:
    """A store path that has been looked up. A listing that is not ``verified`` is the store's word."""

    row: int
    base_name: str
    info: PathInfo
    listing: NarListing
    verified: bool

    @property
    def seconds(self) -> int:
        """How long the kernel may keep what it is told of it."""
        return FOREVER if self.verified else UNVERIFIED_SECONDS


class FileSystem:
    """Answers requests. Thread-safe. ``passthrough``: None where the kernel does not read files itself."""

    def __init__(
        self,
        cache: BinaryCache,
        numbers: PathNumbers,
        passthrough: PassthroughFiles | None,
        *,
        early: bool,
        prunes: bool,
        notify: Callable[[Notify, bytes], None],
        announce: Callable[[str], None],
    ) -> None:
        """``notify`` tells the kernel, ``announce`` is told of a name that had been denied and is there now.

        ``prunes``: the kernel knows how to forget what it is told to.
        """
        self._cache = cache
        self._numbers = numbers
        self._passthrough = passthrough
        self._early = EarlyReads(cache, numbers, notify=notify, on_end=self._arrived) if early else None
        self._prunes = prunes
        self._notify = notify
        self._announce = announce
        self._paths: LruMemory[int, OpenPath] = LruMemory(LISTINGS_MAX)
        self._recently_missing: LruMemory[str, bool] = LruMemory(10_000)
        self._nars = OpenNars()
        self._lock = threading.Lock()
        self.missing_names = MissingNames()
        self.lookups: Counter[str] = Counter()
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
        """The kernel remembers for good that a kind of request is not answered (ENOSYS): opening then costs none, for one."""
        handler = self._handlers.get(opcode)
        if handler is None:
            raise OSError(errno.ENOSYS, "not implemented")
        return handler(node_id, body)

    def forget(self, node_ids: list[int]) -> None:
        if self._passthrough is not None:
            self._passthrough.forget(node_ids)

    def sweep(self) -> None:
        """Now and then: let go of what is not used."""
        self._nars.sweep()
        if self._passthrough is not None:
            left = self._passthrough.sweep()
            if left and self._prunes:
                self._notify(Notify.PRUNE, protocol.prune(left))

    def close(self) -> None:
        self._nars.close()

    # --- store paths

    def find(self, base_name: str) -> OpenPath | None:
        """Look the store path up, and fetch what is needed to show what is in it; None if no store has it. Waits.

        Raises NarcoreError, and OSError if the table of names is full.
        """
        info = self._path_info(base_name)
        if info is None:
            return None
        found = self._open_path(info)
        self._is_there(base_name)
        return found

    def look_for(self, base_name: str) -> None:
        """As `find`, and does not wait for the NAR of what a listing promises to be a directory."""
        info = self._path_info(base_name)
        if info is None:
            return
        if not self._is_promised(info):
            self._open_path(info)
        self._is_there(base_name)

    def _path_info(self, base_name: str) -> PathInfo | None:
        try:
            info = self._cache.path_info_anywhere(base_name[:HASH_PART_LENGTH])
        except FileNotInStore:
            info = None
        if info is None or info.narinfo.store_path.base_name != base_name:
            self._recently_missing.put(base_name, True, seconds=MISSING_SECONDS)
            self.missing_names.add(base_name)
            self._count("miss")
            return None
        return info

    def _is_there(self, base_name: str) -> None:
        self._count("hit")
        self._recently_missing.discard(base_name)
        if self.missing_names.discard(base_name):
            self._announce(base_name)

    def _is_promised(self, info: PathInfo) -> bool:
        """Whether it takes a while to see it, and it is a directory, as far as its store says; then it has a row."""
        if self._early is not None:
            return False
        nar = self._cache.open_cached(info)
        if nar is not None:
            nar.close()
            return False
        if self._cache.promised_kind(info) is not Kind.DIRECTORY:
            return False
        self._row(info, _identity(info, Kind.DIRECTORY), seen=False)
        return True

    def _open_path(self, info: PathInfo) -> OpenPath:
        accessor = self._cache.open(info)
        base_name, listing = info.narinfo.store_path.base_name, accessor.listing
        identity = self._early.identity(info, listing) if self._early else _identity(info, listing.root.kind)
        listed = self._numbers.row(base_name)
        if listed is not None and not self._numbers.is_seen(listed):
            listed = None
        row = self._row(info, identity, seen=True)
        found = OpenPath(row, base_name, info, listing, accessor.is_verified)
        self._remember(found)
        if row != listed:  # the kernel keeps what the root was last listed as
            self._notify(Notify.INVAL_INODE, protocol.INVAL_INODE.pack(ROOT_ID, 0, -1))
        return found

    def _row(self, info: PathInfo, identity: str, *, seen: bool) -> int:
        try:
            return self._numbers.add(
                info.narinfo.store_path.base_name, identity, self._cache.to_record(info), seen=seen
            )
        except TooManyPaths as error:
            raise OSError(errno.ENFILE, str(error)) from error

    def _remember(self, path: OpenPath) -> None:
        self._paths.put(path.row, path, weight=len(path.listing) + PATH_WEIGHT)

    def _arrived(self, row: int, right: bool) -> None:
        """A NAR that was read before it was verified has been verified, or is not what was promised."""
        path = self._paths.get(row)
        if path is not None and right:
            self._remember(replace(path, verified=True))
        elif not right:
            self._paths.discard(row)

    def _path(self, row: int) -> OpenPath:
        found = self._paths.get(row)
        if found is not None:
            return found
        try:
            newest = self._numbers.is_newest(row)
        except KeyError:
            newest = False
        if not newest:  # there is another one of that name by now: the kernel looks the name up again
            raise OSError(errno.ESTALE, "not a node of this mount")
        raise self._reopening(row)

    def _reopening(self, row: int) -> Slow:
        base_name = self._numbers.base_name(row)
        what = "listing" if self._numbers.is_seen(row) else "path"  # mostly on disk, or mostly not
        return Slow((what, base_name), partial(self._reopen, row, base_name), partial(self._progress, None))

    def _reopen(self, row: int, base_name: str) -> None:
        """Out of what is known of it, so that no store is needed for what is on disk; else as if it was never looked up."""
        info = self._cache.from_record(self._numbers.record(row))
        try:
            if info is not None:
                self._open_path(info)
                return
        except NarcoreError as error:  # its store may have packed it anew since
            log.info("%s: %s; its narinfo is asked for again", base_name, error)
        if self.find(base_name) is None:
            raise OSError(errno.ESTALE, "the store path is gone from its store")

    def _progress(self, info: PathInfo | None) -> int:
        """Bytes of the NAR so far; while it waits for its turn, of all that are fetched."""
        return (self._cache.bytes_fetched(info) if info else 0) or self._cache.total_bytes_fetched()

    def _count(self, outcome: str) -> None:
        with self._lock:
            self.lookups[outcome] += 1

    def _node(self, node_id: int) -> tuple[OpenPath, Node]:
        path = self._path(node_id >> 32)
        try:
            return path, path.listing.node((node_id & _INDEX) - 1)
        except IndexError:
            raise OSError(errno.ESTALE, "not a node of this mount") from None

    def _contents(self, node_id: int) -> tuple[OpenPath, tuple[int, int]]:
        """Where the contents of a regular file are in the NAR, and their length."""
        path = self._path(node_id >> 32)
        try:
            place = path.listing.contents((node_id & _INDEX) - 1)
        except IndexError:
            raise OSError(errno.ESTALE, "not a node of this mount") from None
        if place is None:
            raise OSError(errno.EISDIR, "not a file")
        return path, place

    # --- names and attributes

    def _look_up(self, node_id: int, body: memoryview) -> bytes:
        name = bytes(body[:-1])
        if node_id == ROOT_ID:
            return self._look_up_path(name)
        if node_id == LINKS_ID:
            return protocol.no_entry(FOREVER)
        path, directory = self._node(node_id)
        if directory.kind is not Kind.DIRECTORY:
            raise OSError(errno.ENOTDIR, "not a directory")
        node = path.listing.child(directory, to_text(name))
        return protocol.no_entry(path.seconds) if node is None else _entry(path, node)

    def _look_up_path(self, name: bytes) -> bytes:
        if name == LINKS:
            return protocol.entry(LINKS_ID, FOREVER, protocol.attributes(LINKS_ID, _DIRECTORY, 0))
        text = name.decode("ascii", "replace")
        if not is_base_name(text):
            return protocol.no_entry(FOREVER)
        row = self._numbers.row(text)
        if row is not None:
            path = self._paths.get(row)
            if path is not None:
                return _entry(path, path.listing.root)
            if self._recently_missing.get(text):  # it was there, and is not any more
                return protocol.no_entry(0)
            if _is_directory(self._numbers.identity(row)):
                return protocol.entry(row << 32 | 1, 0, protocol.attributes(row << 32 | 1, _DIRECTORY, 0))
            raise self._reopening(row)
        if self._recently_missing.get(
            text
        ):  # for no time: the kernel would hide from overlays that the name is there now
            return protocol.no_entry(0)
        raise Slow(("name", text), partial(self._look_for_counted, text), partial(self._progress, None))

    def _look_for_counted(self, base_name: str) -> None:
        try:
            self.look_for(base_name)
        except BaseException:
            self._count("error")
            raise

    def _get_attributes(self, node_id: int, body: memoryview) -> bytes:
        if node_id == ROOT_ID:
            return protocol.attr_answer(ROOT_SECONDS, protocol.attributes(ROOT_ID, _DIRECTORY, 0))
        if node_id == LINKS_ID:
            return protocol.attr_answer(FOREVER, protocol.attributes(LINKS_ID, _DIRECTORY, 0))
        path, node = self._node(node_id)
        return protocol.attr_answer(path.seconds, _attributes(node_id, node))

    def _read_link(self, node_id: int, body: memoryview) -> bytes:
        _, node = self._node(node_id)
        if node.kind is not Kind.SYMLINK:
            raise OSError(errno.EINVAL, "not a link")
        return to_bytes(node.target)

    def _status(self, node_id: int, body: memoryview) -> bytes:
        """As of a file system without a free byte: nothing can be written."""
        return protocol.STATFS.pack(0, 0, 0, len(self._numbers), 0, 4096, 255, 4096, 0)

    def _no_ioctl(self, node_id: int, body: memoryview) -> bytes:
        raise OSError(errno.ENOTTY, "no ioctl is known here")

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
        """Those behind ``offset``. The first two are the directory itself and its parent, which the kernel knows."""
        for place, name in ((1, b"."), (2, b"..")):
            if offset < place:
                yield bytes(protocol.ENTRY.size + protocol.ATTR.size if plus else 0) + protocol.dirent(
                    node_id, place, name, _DIRECTORY
                )
        start = max(0, offset - 2)
        if node_id == ROOT_ID:
            yield from self._root_records(start, plus=plus)
        elif node_id != LINKS_ID:
            path, directory = self._node(node_id)
            if directory.kind is not Kind.DIRECTORY:
                raise OSError(errno.ENOTDIR, "not a directory")
            for place, node in enumerate(path.listing.children(directory, start), start + 3):
                yield _record(path, node, place, to_bytes(node.name), plus=plus)

    def _root_records(self, start: int, *, plus: bool) -> Iterator[bytes]:
        """The store paths that have been looked up, in that order; of one that has left our memory, the name alone."""
        for row, base_name in self._numbers.newest(start + 1):
            path, name = self._paths.get(row), base_name.encode("ascii")
            if path is not None:
                yield _record(path, path.listing.root, row + 2, name, plus=plus)
            else:
                head = protocol.no_entry(0) if plus else b""
                yield head + protocol.dirent(row << 32 | 1, row + 2, name, 0)

    # --- contents

    def _open(self, node_id: int, body: memoryview) -> bytes:
        """Only where the kernel can read files itself; else that there is nothing to open was said once, and is known."""
        assert self._passthrough is not None
        path, (_, length) = self._contents(node_id)
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
        """Make a file of its own of a regular file in a NAR, for the kernel to read."""
        node = path.listing.node((node_id & _INDEX) - 1)
        copying = threading.Event()

        def unpack() -> None:
            with closing(self._cache.open_fetched(path.info)) as nar:
                copying.set()
                self._unpack(nar, node, node_id)

        def progress() -> int:  # what is copied on the disk ends by itself, however slow that is
            return time.monotonic_ns() if copying.is_set() else self._progress(path.info)

        return Slow(("file", path.base_name, node.index), unpack, progress)

    def _unpack(self, nar: OpenNar, node: Node, node_id: int) -> None:
        assert self._passthrough is not None
        try:
            fd = nar.open_unpacked(node)
        except CacheFailure:  # no room for it: it is read as if there were no passthrough
            self._passthrough.add(node_id, None)
            return
        try:
            nar.drop_pages(node.nar_offset, node.nar_offset + node.size)
            self._passthrough.add(node_id, fd, nar.unpacked_file(node, fd))
        finally:
            os.close(fd)

    def _read(self, node_id: int, body: memoryview) -> bytes:
        _, offset, size, *_ = protocol.READ.unpack_from(body)
        path, (nar_offset, length) = self._contents(node_id)
        stop = min(offset + size, length)
        if offset >= stop:
            return b""
        return self._read_nar(path, node_id, nar_offset + offset, nar_offset + stop)

    def _read_nar(self, path: OpenPath, node_id: int, start: int, stop: int) -> bytes:
        entry = self._nars.acquire(path.row)
        if entry is None:
            if self._early is not None and not path.verified:
                data = self._early.read(path.row, path.info, node_id, start, stop)
                self.read_bytes += stop - start
                return data
            raise self._fetching(path)
        try:
            data = entry.nar.read(start, stop)
            if stop // DROP_BLOCK > start // DROP_BLOCK:
                entry.nar.drop_pages(start // DROP_BLOCK * DROP_BLOCK, stop // DROP_BLOCK * DROP_BLOCK)
        except CacheFailure:  # it was changed or cut, and is removed: fetch it again
            self._nars.drop(path.row)
            raise self._fetching(path) from None
        finally:
            self._nars.release(entry)
        self.read_bytes += stop - start
        return data

    def _fetching(self, path: OpenPath) -> Slow:
        def fetch() -> None:
            self._nars.put(path.row, self._cache.open_fetched(path.info))

        return Slow(("nar", path.base_name), fetch, partial(self._progress, path.info))


def _identity(info: PathInfo, kind: Kind) -> str:
    """Of a verified NAR, or one that will be. What it is belongs to it: a node of the kernel's never turns into another kind."""
    return info.narinfo.nar_hash.nix32 + (_SLASH if kind is Kind.DIRECTORY else "")


def _is_directory(identity: str) -> bool:
    return identity.endswith(_SLASH)


def mode(node: Node) -> int:
    """As Nix leaves them in a store."""
    if node.kind is Kind.DIRECTORY:
        return _DIRECTORY
    if node.kind is Kind.SYMLINK:
        return stat.S_IFLNK | 0o777
    return stat.S_IFREG | (0o555 if node.executable else 0o444)


def _attributes(node_id: int, node: Node) -> bytes:
    size = len(to_bytes(node.target)) if node.kind is Kind.SYMLINK else node.size
    return protocol.attributes(node_id, mode(node), size)


def _entry(path: OpenPath, node: Node) -> bytes:
    node_id = path.row << 32 | node.index + 1
    return protocol.entry(node_id, path.seconds, _attributes(node_id, node))


def _record(path: OpenPath, node: Node, offset: int, name: bytes, *, plus: bool) -> bytes:
    head = _entry(path, node) if plus else b""
    return head + protocol.dirent(path.row << 32 | node.index + 1, offset, name, mode(node))
