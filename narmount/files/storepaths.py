"""Store paths: finding them by name or node id, and opening them.

A node id is made of the row of the store path in the table of path numbers and the place of the node in the listing. Both are the
same in every worker of a mount.

Nothing of a store path is visible before its whole NAR has been fetched and verified, unless ``early`` is used.

No process should wait for a NAR in a lookup in the root directory. Until a lookup ends, concurrent lookups of the same name wait
for it and can't be killed. Linux also holds the lock of the directory until then: as soon as a process tries to create a file
there, every lookup waits. So a store path that is a directory according to its store's listing is answered immediately as a
directory, with a zero cache timeout. A process that then asks for more, beginning with the attributes, waits in a request of
its own. If the listing is wrong, that request fails.
"""

import errno
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from narcore.binarycache import BinaryCache
from narcore.concurrency.lru import LruMemory
from narcore.errors import FileNotInStore, NarcoreError
from narcore.formats.listing import Kind, NarListing, Node
from narcore.formats.storepath import HASH_PART_LENGTH
from narcore.lookup.pathinfo import PathInfo
from narmount.files.early import EarlyReads
from narmount.files.missingnames import MissingNames
from narmount.files.pathnumbers import PathNumbers
from narmount.fuse import protocol
from narmount.fuse.protocol import ROOT_ID, Notify, NotifyKernel
from narmount.fuse.server import Slow

log = logging.getLogger("narmount")

FOREVER = 30 * 24 * 3600
"""Seconds for which the kernel may cache names and attributes in a verified store path, which never change."""

# Names and attributes from an unverified listing may turn out to be wrong, so the kernel has to ask again soon. (The worker can't
# tell the kernel to drop a name of the root: this needs the lock of the root directory, which lookups hold while they wait.)
UNVERIFIED_SECONDS = 1

MISSING_SECONDS = 2  # then narcore.lookup is asked again, which caches for 5 s that no store has the path

LISTINGS_MAX = 500_000  # the most entries of all listings in memory; each takes 50 to 100 bytes
PATH_WEIGHT = 50  # each store path counts as this number of entries, in addition to its entries

_SLASH = "/"
_INDEX_BITS = 32
# the low bits of a node id are the place of the node in its listing, counted from 1
_INDEX = (1 << _INDEX_BITS) - 1


@dataclass(frozen=True, slots=True)
class OpenPath:
    """A store path that has been looked up. Unless ``verified`` is set, ``listing`` is the unverified listing of the store."""

    row: int
    base_name: str
    info: PathInfo
    listing: NarListing
    verified: bool

    @property
    def seconds(self) -> int:
        """How long the kernel may cache names and attributes of this store path."""
        return FOREVER if self.verified else UNVERIFIED_SECONDS

    def node_id(self, node: Node) -> int:
        return root_id(self.row) + node.index


def root_id(row: int) -> int:
    """Return the node id of the store path in that row."""
    return row << _INDEX_BITS | 1


class StorePaths:
    """The store paths of a mount. Thread-safe.

    ``early`` is None if files are read only after the NAR is verified. ``missing_names`` are the names that no store has.
    ``lookups`` counts lookups by outcome: ``hit``, ``miss`` or ``error``.
    """

    def __init__(
        self,
        cache: BinaryCache,
        numbers: PathNumbers,
        *,
        early: bool,
        notify: NotifyKernel,
        announce: Callable[[str], None],
    ) -> None:
        """``announce`` is called with each name that was missing and now has been found."""
        self.early = EarlyReads(cache, numbers, notify=notify, on_end=self._arrived) if early else None
        self.missing_names = MissingNames()
        self.lookups: Counter[str] = Counter()
        self._cache = cache
        self._numbers = numbers
        self._notify = notify
        self._announce = announce
        self._paths: LruMemory[int, OpenPath] = LruMemory(LISTINGS_MAX)
        self._recently_missing: LruMemory[str, bool] = LruMemory(10_000)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._numbers)

    # --- by name

    def find(self, base_name: str) -> OpenPath | None:
        """Look up a store path, and fetch the listing or NAR that is needed to show its files. Waits for the stores.

        Returns None if no store has it. Raises NarcoreError, and TooManyPaths.
        """
        info = self._path_info(base_name)
        if info is None:
            return None
        found = self._open(info)
        self._found(base_name)
        return found

    def look_for(self, base_name: str) -> None:
        """Like `find`, but does not wait for the NAR of a store path that is a directory according to its store's listing."""
        info = self._path_info(base_name)
        if info is None:
            return
        if not self._is_promised_directory(info):
            self._open(info)
        self._found(base_name)

    def look_up(self, base_name: str) -> OpenPath | int | None:
        """Look up a store path in memory.

        Returns its row if the only known fact is that it is a directory. Returns None if no store had it a moment ago. Raises Slow
        if a store or the disk has to be asked.
        """
        row = self._numbers.row(base_name)
        path = None if row is None else self._paths.get(row)
        if path is not None:
            return path
        if self._recently_missing.get(base_name):  # also if it has a row: it may have been removed from its store
            return None
        if row is None:
            raise Slow(("name", base_name), partial(self._look_for_counted, base_name), self.progress)
        if self._numbers.identity(row).endswith(_SLASH):
            return row
        raise self._reopening(row)

    def listed(self, start: int) -> Iterator[tuple[int, str, OpenPath | None]]:
        """Yield row, base name and OpenPath (None if not in memory) of each store path that was seen, from row ``start`` on."""
        for row, base_name in self._numbers.newest(start):
            yield row, base_name, self._paths.get(row)

    # --- by node id

    def node(self, node_id: int) -> tuple[OpenPath, Node]:
        """Return the store path and the node with this id.

        Raises OSError if there is no such node any more, and Slow if the store path is not in memory.
        """
        path = self._path(node_id >> _INDEX_BITS)
        try:
            return path, path.listing.node((node_id & _INDEX) - 1)
        except IndexError:
            raise _stale() from None

    def contents(self, node_id: int) -> tuple[OpenPath, tuple[int, int]]:
        """Return where the contents of a regular file begin in the NAR, and their length. Raises like `node`."""
        path = self._path(node_id >> _INDEX_BITS)
        try:
            place = path.listing.contents((node_id & _INDEX) - 1)
        except IndexError:
            raise _stale() from None
        if place is None:
            raise OSError(errno.EISDIR, "not a file")
        return path, place

    def progress(self, info: PathInfo | None = None) -> int:
        """Return how many bytes of the NAR have been fetched. While it waits for a download slot, return the total of all NARs."""
        return (self._cache.bytes_fetched(info) if info else 0) or self._cache.total_bytes_fetched()

    # --- looking up

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

    def _found(self, base_name: str) -> None:
        self._count("hit")
        self._recently_missing.discard(base_name)
        if self.missing_names.discard(base_name):
            self._announce(base_name)

    def _look_for_counted(self, base_name: str) -> None:
        try:
            self.look_for(base_name)
        except BaseException:
            self._count("error")
            raise

    def _count(self, outcome: str) -> None:
        with self._lock:
            self.lookups[outcome] += 1

    def _is_promised_directory(self, info: PathInfo) -> bool:
        """Return whether the NAR is not cached and the store's listing says that it is a directory. If so, add a row for it."""
        if self.early is not None:
            return False
        nar = self._cache.open_cached(info)
        if nar is not None:
            nar.close()
            return False
        if self._cache.unverified_kind(info) is not Kind.DIRECTORY:
            return False
        self._row(info, _identity(info, Kind.DIRECTORY), seen=False)
        return True

    # --- opening

    def _open(self, info: PathInfo) -> OpenPath:
        accessor = self._cache.open(info)
        base_name, listing = info.narinfo.store_path.base_name, accessor.listing
        identity = self.early.identity(info, listing) if self.early else _identity(info, listing.root.kind)
        listed = self._numbers.row(base_name)
        if listed is not None and not self._numbers.is_seen(listed):
            listed = None
        row = self._row(info, identity, seen=True)
        found = OpenPath(row, base_name, info, listing, accessor.is_verified)
        self._remember(found)
        if row != listed:  # the kernel has cached the list of the root directory
            self._notify(Notify.INVAL_INODE, protocol.INVAL_INODE.pack(ROOT_ID, 0, -1))
        return found

    def _row(self, info: PathInfo, identity: str, *, seen: bool) -> int:
        record = self._cache.to_record(info)
        return self._numbers.add(info.narinfo.store_path.base_name, identity, record, seen=seen)

    def _remember(self, path: OpenPath) -> None:
        self._paths.put(path.row, path, weight=len(path.listing) + PATH_WEIGHT)

    def _arrived(self, row: int, is_right: bool) -> None:
        """Handle the end of a NAR that was read early. ``is_right`` says whether the NAR and its listing were right."""
        path = self._paths.get(row)
        if path is not None and is_right:
            self._remember(replace(path, verified=True))
        elif not is_right:
            self._paths.discard(row)

    def _path(self, row: int) -> OpenPath:
        found = self._paths.get(row)
        if found is not None:
            return found
        with suppress(KeyError):
            if self._numbers.is_newest(row):
                raise self._reopening(row)
        raise _stale()  # the name has a newer row; on ESTALE the kernel looks up the name again

    def _reopening(self, row: int) -> Slow:
        base_name = self._numbers.base_name(row)
        kind = (
            "listing" if self._numbers.is_seen(row) else "path"
        )  # a seen path usually needs only its listing from the disk; other paths usually have to be downloaded
        return Slow((kind, base_name), partial(self._reopen, row, base_name), self.progress)

    def _reopen(self, row: int, base_name: str) -> None:
        """Open a store path from the record in its row. If the NAR is cached, this needs no store. Else look up the path again."""
        info = self._cache.from_record(self._numbers.record(row))
        try:
            if info is not None:
                self._open(info)
                return
        except NarcoreError as error:  # the store may have replaced the NAR file by one with another compression
            log.info("%s: %s; asking for its narinfo again", base_name, error)
        if self.find(base_name) is None:
            raise OSError(errno.ESTALE, "the store path is gone from its store")


def _stale() -> OSError:
    return OSError(errno.ESTALE, "not a node of this mount")


def _identity(info: PathInfo, kind: Kind) -> str:
    """Return a text that differs between different NARs. Used for NARs that are verified before they are visible.

    The text includes the kind of the root (such as directory), since the kind of a node that the kernel knows must never change.
    """
    return info.narinfo.nar_hash.nix32 + (_SLASH if kind is Kind.DIRECTORY else "")
