"""Reads of a NAR before it has been verified (NAR_MOUNT_EARLY).

Lookups use the store's listing, which is not signed, and reads wait only until the download has reached their bytes. If the NAR
or its listing turns out to be wrong, the files are withdrawn as far as possible: the kernel drops the cached contents immediately
and the names within a second, and further reads get EIO.
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
from narcore.nars.opennar import ArrivingNar
from narmount.files.pathnumbers import PathNumbers
from narmount.fuse import protocol
from narmount.fuse.protocol import Notify, NotifyKernel
from narmount.fuse.server import Slow

log = logging.getLogger("narmount")

BLOCK = 1 << 20  # requests for bytes of the same block share one wait

OnEnd = Callable[[int, bool], None]


@dataclass(slots=True)
class _Arrival:
    nar: ArrivingNar
    available: int = 0
    nodes: set[int] = field(default_factory=set)  # the ids of nodes that were read
    lock: threading.Lock = field(default_factory=threading.Lock)
    closed: bool = False

    def wait_for(self, stop: int) -> None:
        """Wait until the first ``stop`` bytes of the NAR are there."""
        try:
            available = self.nar.wait_for(stop)
        except ValueError:  # the NAR is complete and was closed during the wait; the request is tried again
            if not self.closed:
                raise
        else:
            self.available = max(self.available, available)


class EarlyReads:
    """NARs that are being downloaded, by their row in ``numbers``. Thread-safe."""

    def __init__(self, cache: BinaryCache, numbers: PathNumbers, *, notify: NotifyKernel, on_end: OnEnd) -> None:
        """When a NAR has arrived, ``on_end`` is called with its row and with whether the NAR and its listing are right."""
        self._cache = cache
        self._numbers = numbers
        self._notify = notify
        self._on_end = on_end
        self._lock = threading.Lock()
        self._arrivals: dict[int, _Arrival] = {}

    @staticmethod
    def identity(info: PathInfo, listing: NarListing) -> str:
        """Return a text that identifies this NAR together with this listing."""
        sha256 = hashlib.sha256(info.narinfo.nar_hash.nix32.encode())
        for chunk in listing.json_chunks():
            sha256.update(chunk)
        return sha256.hexdigest()[:32]

    def read(self, row: int, info: PathInfo, node_id: int, start: int, stop: int) -> bytes:
        """Return the bytes from ``start`` to ``stop`` of the NAR. Raises Slow if they have not arrived yet."""
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
            is_right = self.identity(info, arrival.nar.finish()) == self._numbers.identity(row)
        except NarcoreError as error:
            log.warning("%s: %s; fetching the NAR failed", self._numbers.base_name(row), error)
            is_right = False
        with self._lock:
            del self._arrivals[row]
        with arrival.lock:
            arrival.closed = True
            arrival.nar.close()
        self._on_end(row, is_right)
        if not is_right:
            self._withdraw(row, arrival.nodes)

    def _withdraw(self, row: int, nodes: set[int]) -> None:
        log.warning(
            "%s: the NAR does not match its hash or its listing; withdrawing the files that were shown",
            self._numbers.base_name(row),
        )
        for node_id in nodes:
            self._notify(Notify.INVAL_INODE, protocol.INVAL_INODE.pack(node_id, 0, -1))
