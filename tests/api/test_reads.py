"""A response counts as verified only if all of its reads are, also those after its headers were sent."""

import pytest

from api.handlers.reads import Reads
from narcore.errors import IntegrityError, StoreUnavailable
from narcore.formats.listing import Node
from narcore.formats.storepath import StorePath
from narcore.nars.accessor import NarAccessor, NarBytes
from tests.api.support import STORE_PATH, Source, listing_of

LISTING = listing_of({"a": 10, "empty": 0})
FILE, EMPTY = LISTING.children(LISTING.root)


class Accessor:
    """Makes an accessor whose reads are ``verified``, or raise ``error``."""

    def __init__(self) -> None:
        self.verified = True
        self.error: Exception | None = None
        self.source = Source(b"0123456789")

    def reads(self, *, listing: bool = True, cached: bool = False) -> Reads:
        store_path = StorePath.parse(STORE_PATH)
        return Reads(NarAccessor(store_path, LISTING, self._read, is_verified=listing, is_cached=lambda: cached))

    def _read(self, _node: Node, start: int, stop: int) -> NarBytes:
        if self.error is not None:
            raise self.error
        opened = self.source.read(start, stop)
        opened.is_verified = self.verified
        return opened


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("second", [True, False])
def test_all_reads_must_be_verified(first: bool, second: bool) -> None:
    accessor = Accessor()
    reads = accessor.reads(listing=False)
    for accessor.verified in (first, second):
        reads.of(FILE)(0, 5).close()
    assert reads.seal() == (first and second)


@pytest.mark.parametrize(
    ("node", "listing", "cached", "verified"),
    [
        (FILE, True, True, True),
        (FILE, True, False, False),
        (FILE, False, True, False),  # cached since the listing was read
        (EMPTY, True, False, True),
        (EMPTY, False, False, False),
        (None, True, False, True),
        (None, False, True, False),
    ],
)
def test_without_reads_the_listing_and_the_cache_count(
    node: Node | None, listing: bool, cached: bool, verified: bool
) -> None:
    reads = Accessor().reads(listing=listing, cached=cached)
    if node is not None:
        reads.of(node)
    assert reads.seal() == verified


def test_an_unverified_read_after_the_headers_raises_if_they_claim_more() -> None:
    accessor = Accessor()
    reads = accessor.reads()
    read = reads.of(FILE)
    read(0, 5).close()
    assert reads.seal()
    accessor.verified = False
    with pytest.raises(IntegrityError):
        read(5, 10)
    assert accessor.source.open == 0


def test_a_failed_read_makes_the_response_unverified() -> None:
    accessor = Accessor()
    reads = accessor.reads()
    accessor.error = StoreUnavailable("down")
    with pytest.raises(StoreUnavailable):
        reads.whole(FILE)
    assert not reads.seal()
