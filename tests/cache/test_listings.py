"""The listing next to a cached NAR: a lookup reads a small part of a large file, and a wrong file is replaced."""

import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from narcore.cache import listings
from narcore.cache.layout import THIS_BOOT, is_verified
from narcore.cache.narcache import NarCache
from narcore.formats.listing import NarListing
from narcore.formats.nar.parser import parse_nar
from narcore.formats.resolve import Found, resolve
from tests import builders
from tests.cache.support import add_to_cache, key_of

ENTRIES = 40_000
NAR = builders.nar({"lib": {f"file-{number}": b"" for number in range(ENTRIES)}, "z": {"link": builders.link("x")}})
KEY = key_of(NAR)
LISTING = NarListing.from_events(parse_nar([NAR], contents=False))


@pytest.fixture
def path(cache: NarCache) -> Path:
    """The listing of the cached NAR."""
    add_to_cache(cache, NAR)
    return cache.layout.listing(KEY.digits)


def listing_of(cache: NarCache) -> NarListing:
    listing = cache.listing(KEY)
    assert listing is not None
    return listing


@pytest.mark.parametrize("is_mapped", [True, False])
def test_a_listing_of_any_size_is_read_back(
    cache: NarCache, path: Path, monkeypatch: pytest.MonkeyPatch, is_mapped: bool
) -> None:
    assert path.stat().st_size > listings.MAPPED_SIZE
    if not is_mapped:
        monkeypatch.setattr(listings, "MAPPED_SIZE", path.stat().st_size)
    listing = listing_of(cache)
    assert listing == LISTING
    assert b"".join(listing.json_chunks()) == b"".join(LISTING.json_chunks())
    assert listing.fingerprint(listing.root) == LISTING.fingerprint(LISTING.root)
    assert listing.total_size(listing.root) == 0


def test_a_lookup_in_a_large_listing_takes_little_memory(cache: NarCache, path: Path) -> None:
    """The file has more than a megabyte; the memory does not depend on the number of entries."""
    store_path = builders.store_path("x")
    tracemalloc.start()
    try:
        outcome = resolve(listing_of(cache), store_path, "lib/file-12345")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(outcome, Found)
    assert outcome.node == next(node for node in map(LISTING.node, range(len(LISTING))) if node.name == "file-12345")
    assert peak < 100_000


def test_a_listing_can_be_searched_after_its_file_was_removed(cache: NarCache, path: Path) -> None:
    listing = listing_of(cache)
    cache.clear()
    assert listing == LISTING


@pytest.mark.parametrize(
    "content",
    [
        lambda data: b"",
        lambda data: data[:7],
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: b"narlist0" + data[8:],
        lambda data: bytes(len(data)),
        lambda data: b'{"type":"regular","size":1}',
    ],
)
@pytest.mark.parametrize("is_mapped", [True, False])
def test_a_file_that_is_not_a_listing_is_replaced(
    cache: NarCache,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: Callable[[bytes], bytes],
    is_mapped: bool,
) -> None:
    monkeypatch.setattr(listings, "MAPPED_SIZE", -1 if is_mapped else 1 << 30)
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(content(data))
    os.utime(path, (0, THIS_BOOT))
    assert listing_of(cache) == LISTING
    assert path.read_bytes() == data
    assert is_verified(path.stat())


def test_a_listing_that_was_written_to_is_replaced(cache: NarCache, path: Path) -> None:
    data = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(data[:100] + b"\xff" * 100 + data[200:])
    assert listing_of(cache) == LISTING
    assert path.read_bytes() == data
