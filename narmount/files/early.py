"""Reading of a NAR before it has been verified, for who chose that (NAR_MOUNT_EARLY).

Look-ups are served by the store's listing, which is not signed, and reads wait for just the bytes that they need of the NAR on its
way. If it then turns out to be another one than was promised, or its listing is, everything that was given out is taken back as
far as that goes: the kernel drops the pages at once and the names within a second, and whoever reads on gets EIO.
"""

import hashlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from narcore.binarycache import BinaryCache
from narcore.errors import NarcoreError
from narcore.formats.listing import NarListing
from narcore.lookup.pathinfo import PathInfo
from narcore.nars.cachednar import ArrivingNar
from narmount.files.pathnumbers import PathNumbers
from narmount.fuse import protocol
from narmount.fuse.protocol import Notify, NotifyKernel
from narmount.fuse.server import Slow

log = logging.getLogger("narmount")

BLOCK = 1 << 20  # those who wait for bytes of the same block wait together

OnEnd = Callable[[int, bool], None]


@dataclass(slots=True)
class _Arrival:
    nar: ArrivingNar
    available: int = 0
    nodes: set[int] = field(default_factory=set)  # of which something was given out
    lock: threading.Lock = field(default_factory=threading.Lock)
    closed: bool = False

    def wait_for(self, stop: int) -> None:
        try:
            available = self.nar.wait_for(stop)
        except ValueError:  # all of it has arrived meanwhile, and it is closed: who waits looks again
            if not self.closed:
                raise
        else:
            self.available = max(self.available, available)


class EarlyReads:
    """The NARs on their way, by row. Thread-safe."""

    def __init__(self, cache: BinaryCache, numbers: PathNumbers, *, notify: NotifyKernel, on_end: OnEnd) -> None:
        """``on_end`` gets the row of a NAR that has arrived, and whether it is what was promised."""
        self._cache = cache
        self._numbers = numbers
        self._notify = notify
        self._on_end = on_end
        self._lock = threading.Lock()
        self._arrivals: dict[int, _Arrival] = {}

    @staticmethod
    def identity(info: PathInfo, listing: NarListing) -> str:
        """Tells one NAR with one listing from any other."""
        sha256 = hashlib.sha256(info.narinfo.nar_hash.nix32.encode())
        for chunk in listing.json_chunks():
            sha256.update(chunk)
        return sha256.hexdigest()[:32]

    def read(self, row: int, info: PathInfo, node_id: int, start: int, stop: int) -> bytes:
        """Bytes ``start`` to ``stop`` of the NAR. Raises Slow until they are there."""
        arrival = self._arrivals.get(row)
        if arrival is None:
            raise Slow(("early", info.narinfo.store_path.base_name), partial(self._begin, row, info))
        with arrival.lock:
            if not arrival.closed and arrival.available >= stop:
                arrival.nodes.add(node_id)
                return arrival.nar.read(start, stop)
        block = (stop - 1) // BLOCK + 1
        wait = partial(arrival.wait_for, min(block * BLOCK, info.narinfo.nar_size))
        raise Slow(("bytes", info.narinfo.store_path.base_name, block), wait, partial(self._cache.bytes_fetched, info))

    def _begin(self, row: int, info: PathInfo) -> None:
        arrival = _Arrival(self._cache.open_arriving(info))
        with self._lock:
            self._arrivals[row] = arrival
        threading.Thread(target=self._finish, args=(row, info, arrival), name=f"arrival-{row}", daemon=True).start()

    def _finish(self, row: int, info: PathInfo, arrival: _Arrival) -> None:
        try:
            right = self.identity(info, arrival.nar.finish()) == self._numbers.identity(row)
        except NarcoreError as error:
            log.warning("%s: %s", self._numbers.base_name(row), error)
            right = False
        with self._lock:
            del self._arrivals[row]
        with arrival.lock:
            arrival.closed = True
            arrival.nar.close()
        self._on_end(row, right)
        if not right:
            self._take_back(row, arrival.nodes)

    def _take_back(self, row: int, nodes: set[int]) -> None:
        log.warning("%s is not what was promised: what was read of it is taken back", self._numbers.base_name(row))
        for node_id in nodes:
            self._notify(Notify.INVAL_INODE, protocol.INVAL_INODE.pack(node_id, 0, -1))
