"""Checks the contents of paths that are trusted because of their content address and not because of a signature."""

from collections.abc import Callable, Iterator
from functools import partial

from narcore.concurrency.lru import LruMemory
from narcore.concurrency.singleflight import SingleFlight
from narcore.errors import IntegrityError, NarError
from narcore.formats.contentaddress import ContentAddress, contents_unproved, refers_to_itself
from narcore.lookup.pathinfo import OnFailure, PathInfo, Trust
from narcore.stores.waits import StoreWaits
from narcore.streams.contentcheck import addressed


class AddressProof:
    """Checks the contents of a path against its content address, once per NAR, before any of them are returned. Thread-safe.

    Some content addresses do not contain the NarHash. For such an address, a NAR that matches the NarHash proves nothing: anyone
    can write the hash of another NAR into an unsigned narinfo. Therefore the contents themselves are hashed. ``read`` returns a
    whole NAR; ``on_mismatch`` is called if a NAR does not match its address.
    """

    def __init__(
        self,
        read: Callable[[PathInfo], Iterator[bytes]],
        *,
        on_mismatch: OnFailure,
        waits: StoreWaits | None = None,
    ) -> None:
        self._read = read
        self._on_mismatch = on_mismatch
        self._proved: LruMemory[tuple[str, str], bool] = LruMemory(100_000)
        self._flights: SingleFlight[tuple[str, str], None] = SingleFlight(wait=(waits or StoreWaits()).wait)

    def check(self, info: PathInfo) -> None:
        """Raise HashMismatch or NarError if the contents do not match the address. Also raises the errors of ``read``."""
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
