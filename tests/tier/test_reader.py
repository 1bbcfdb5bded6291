"""Reading from the tier: few requests, verified bytes, and None or an error instead of wrong bytes."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from narcore.errors import NarcoreError, StoreForbidden, StoreTimeout, StoreUnavailable
from narcore.formats.signature import PublicKey
from narcore.lookup.pathinfo import PathInfo, Trust
from narcore.stores.base import BinaryCacheStore, StoreFile
from narcore.stores.memory import MemoryStore
from narcore.tier.reader import DAMAGED_SECONDS, MISSING_SECONDS, UNAVAILABLE_SECONDS, TierReader
from tests import builders
from tests.clock import Clock
from tests.tier.tiers import (
    INDEX_FILE,
    INFO,
    KEYS,
    LISTING,
    NAR,
    NAR_FILE,
    OTHER_KEY,
    STORE_KEY,
    CountedStore,
    make_tier,
    node,
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a tier with the NAR."""
    root = tmp_path_factory.mktemp("tier")
    make_tier(root)
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


class Reader:
    """A reader of ``files``, its store, and its clock."""

    def __init__(self, files: dict[str, bytes], keys: tuple[PublicKey, ...] = KEYS) -> None:
        self.store = CountedStore(MemoryStore(files))
        self.clock = Clock()
        self.tier = TierReader(self.store, keys, clock=self.clock)

    def read(self, start: int, stop: int, info: PathInfo = INFO) -> bytes | None:
        found = self.tier.read(info, start, stop)
        if found is None:
            return None
        try:
            return b"".join(found)
        finally:
            found.close()


def flipped(data: bytes, place: int) -> bytes:
    changed = bytearray(data)
    changed[place] ^= 1
    return bytes(changed)


def test_a_file_takes_two_requests_and_the_next_one_takes_one(files: dict[str, bytes]) -> None:
    reader = Reader(files)
    start = node("lib/big").nar_offset + 1_500_000
    assert reader.read(start, start + 4096) == NAR[start : start + 4096]
    assert reader.store.requests == [INDEX_FILE, NAR_FILE]
    assert reader.store.bytes < len(files[INDEX_FILE]) + 2 * (1 << 20)
    file = node("z")
    assert reader.read(file.nar_offset, file.nar_offset + 10) == NAR[file.nar_offset : file.nar_offset + 10]
    assert reader.store.requests[2:] == [NAR_FILE]
    assert reader.tier.listing(INFO) == LISTING


def test_any_range_is_read(files: dict[str, bytes]) -> None:
    reader, places = Reader(files), random.Random(3)
    for _ in range(50):
        start, stop = sorted((places.randrange(len(NAR) + 1), places.randrange(len(NAR) + 1)))
        assert reader.read(start, stop) == NAR[start:stop]
    assert reader.read(0, len(NAR)) == NAR


def test_an_empty_range_needs_no_request(files: dict[str, bytes]) -> None:
    reader = Reader(files)
    assert reader.tier.listing(INFO) == LISTING
    assert reader.read(77, 77) == b""
    assert reader.store.requests == [INDEX_FILE]


def test_no_wrong_byte_is_returned_from_a_damaged_file(files: dict[str, bytes]) -> None:
    """One bit of each frame is different: the bytes before that frame are returned, and then an error."""
    places = random.Random(4)
    for place in [0, *places.sample(range(len(files[NAR_FILE]) - 100), 40)]:
        reader = Reader(files | {NAR_FILE: flipped(files[NAR_FILE], place)})
        sent = bytearray()
        with pytest.raises(NarcoreError):
            receive(reader.tier, sent)
        assert NAR.startswith(sent)
        assert reader.tier.read(INFO, 0, 1) is None, "the tier is used again for a damaged NAR"


def receive(tier: TierReader, sent: bytearray) -> None:
    """Read the whole NAR into ``sent``; raises NarcoreError if the tier can't be used."""
    found = tier.read(INFO, 0, len(NAR))
    if found is None:
        raise NarcoreError("the first frame is damaged")
    for chunk in found:
        sent += chunk


@pytest.mark.parametrize("name", [INDEX_FILE, NAR_FILE])
def test_a_missing_object_is_tried_again_after_a_minute(files: dict[str, bytes], name: str) -> None:
    present = dict(files)
    del present[name]
    reader = Reader(present)
    for _ in range(2):
        assert reader.read(0, 100) is None
    requests = len(reader.store.requests)
    assert requests == (1 if name == INDEX_FILE else 2)
    present[name] = files[name]
    reader.clock.now += MISSING_SECONDS
    assert reader.read(0, 100) == NAR[:100]


@pytest.mark.parametrize("data", [b"", b"nartier1", b"<html>", bytes(1 << 16)])
def test_an_invalid_index_is_not_read_again_for_ten_minutes(files: dict[str, bytes], data: bytes) -> None:
    present = files | {INDEX_FILE: data}
    reader = Reader(present)
    assert [reader.tier.listing(INFO) for _ in range(3)] == [None] * 3
    assert reader.store.requests == [INDEX_FILE]
    present[INDEX_FILE] = files[INDEX_FILE]
    reader.clock.now += DAMAGED_SECONDS
    assert reader.tier.listing(INFO) == LISTING


@pytest.mark.parametrize("data", [b"", NAR, NAR[:100]])
def test_another_file_than_that_of_the_index_is_not_read(files: dict[str, bytes], data: bytes) -> None:
    assert Reader(files | {NAR_FILE: data}).read(0, 100) is None


@pytest.mark.parametrize("keys", [(), (OTHER_KEY.public_key,)])
def test_without_the_right_key_nothing_is_read(files: dict[str, bytes], keys: tuple[PublicKey, ...]) -> None:
    reader = Reader(files, keys)
    assert reader.tier.listing(INFO) is None
    assert reader.read(0, 1) is None
    assert Reader(files, (*keys, *KEYS)).read(0, 1) == NAR[:1]


@pytest.mark.parametrize("trust", list(Trust))
def test_only_a_path_with_a_verified_narinfo_is_read(files: dict[str, bytes], trust: Trust) -> None:
    """A narinfo that nobody signed could name the NAR of a private path."""
    reader = Reader(files)
    assert (reader.read(0, 1, replace(INFO, trust=trust)) is not None) == trust.is_verified
    assert bool(reader.store.requests) == trust.is_verified


def test_an_index_of_another_nar_is_not_used(files: dict[str, bytes]) -> None:
    other = builders.nar({"x": bytes(2_000_000)})
    info = PathInfo(builders.nar_info(builders.store_path("x"), other, secret_key=STORE_KEY), INFO.store, INFO.trust)
    present = files | {f"nar/{info.narinfo.nar_hash.nix32}.index": files[INDEX_FILE]}
    assert Reader(present).tier.listing(info) is None
    larger = replace(INFO, narinfo=replace(INFO.narinfo, nar_size=len(NAR) + 8))
    assert Reader(files).tier.listing(larger) is None


def test_a_small_nar_is_not_looked_up(files: dict[str, bytes]) -> None:
    small = PathInfo(builders.nar_info(builders.store_path("x"), builders.nar(b"x")), INFO.store, INFO.trust)
    reader = Reader(files)
    assert reader.tier.listing(small) is None
    assert reader.store.requests == []


class _Failing(MemoryStore):
    """A store that is unavailable, or whose bodies break off."""

    def __init__(self, files: dict[str, bytes], error: Exception) -> None:
        super().__init__(files)
        self._error = error
        self.requests = 0

    def get_file(self, path: str, start: int = 0, stop: int | None = None) -> StoreFile:
        self.requests += 1
        raise self._error


@pytest.mark.parametrize("error", [StoreUnavailable("refused"), StoreTimeout("slow"), StoreForbidden("403")])
def test_an_unavailable_tier_is_left_alone_for_a_while(files: dict[str, bytes], error: Exception) -> None:
    store, clock = _Failing(files, error), Clock()
    tier = TierReader(store, KEYS, clock=clock)
    other = replace(
        INFO, narinfo=replace(INFO.narinfo, nar_hash=builders.nar_info(INFO.narinfo.store_path, b"x").nar_hash)
    )
    for info in (INFO, other, INFO):
        assert tier.listing(info) is None
    assert store.requests == 1
    clock.now += UNAVAILABLE_SECONDS
    assert tier.listing(INFO) is None
    assert store.requests == 2


def test_the_request_is_closed_if_reading_stops_early(files: dict[str, bytes]) -> None:
    open_files: list[int] = [0]

    class Watched(MemoryStore):
        def get_file(self, path: str, start: int = 0, stop: int | None = None) -> StoreFile:
            inner = super().get_file(path, start, stop)
            open_files[0] += 1
            return StoreFile(_WatchedBody(inner, open_files), size=inner.size)

    store: BinaryCacheStore = Watched(files)
    found = TierReader(store, KEYS).read(INFO, 0, len(NAR))
    assert found is not None
    next(iter(found))
    assert open_files == [1]
    found.close()
    assert open_files == [0]


class _WatchedBody:
    def __init__(self, file: StoreFile, open_files: list[int]) -> None:
        self._chunks, self._open_files, self._closed = iter(file), open_files, False

    def __iter__(self) -> "_WatchedBody":
        return self

    def __next__(self) -> bytes:
        return next(self._chunks)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._open_files[0] -= 1


def test_files_of_the_tier_can_be_read_from_a_directory(tmp_path: Path) -> None:
    make_tier(tmp_path)
    tier = TierReader.open(tmp_path.as_uri(), KEYS)
    found = tier.read(INFO, 10, 20)
    assert found is not None
    assert b"".join(found) == NAR[10:20]
    tier.close()
