"""Checks the contents of paths that are trusted for their content address and not for a signature."""

from collections.abc import Callable, Iterator
from functools import partial

from narcore.concurrency.lru import LruMemory
from narcore.concurrency.singleflight import SingleFlight
from narcore.errors import IntegrityError, NarError
from narcore.formats.contentaddress import ContentAddress, contents_unproved, refers_to_itself
from narcore.lookup.pathinfo import OnFailure, PathInfo, Trust
from narcore.streams.contentcheck import addressed


class AddressProof:
    """Has contents checked against their address, once, and before anything of them is given out.

    A NAR with the right NarHash is no proof where the address is not made of the NarHash: anybody could have put the hash of
    another NAR into an unsigned narinfo. ``read`` gives a whole NAR; ``on_mismatch`` is told of
    a NAR that is not what its address says.
    """

    def __init__(self, read: Callable[[PathInfo], Iterator[bytes]], *, on_mismatch: OnFailure) -> None:
        self._read = read
        self._on_mismatch = on_mismatch
        self._proved: LruMemory[tuple[str, str], bool] = LruMemory(100_000)
        self._flights: SingleFlight[tuple[str, str], None] = SingleFlight()

    def check(self, info: PathInfo) -> None:
        """Raises HashMismatch or NarError if the contents are not those of the address, and what reading them raises."""
        narinfo = info.narinfo
        if info.trust is not Trust.ADDRESS or narinfo.ca is None or not contents_unproved(narinfo):
            return
        key = (str(narinfo.store_path), narinfo.nar_hash.nix32)
        if not self._proved.get(key):
            self._flights.do(key, partial(self._prove, info, narinfo.ca))
            self._proved.put(key, True)

    def _prove(self, info: PathInfo, ca: str) -> None:
        narinfo = info.narinfo
        own = narinfo.store_path.hash_part if refers_to_itself(narinfo) else ""
        address = ContentAddress.parse(ca)
        try:
            for _chunk in addressed(self._read(info), address, self_reference=own):
                pass
        except (IntegrityError, NarError) as error:
            self._on_mismatch(info, error)
            raise
