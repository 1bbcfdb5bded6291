"""Writing to the tier, and checking it: order, many writers, failures, repair."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from narcore.errors import FormatError, HashMismatch, ListingError, NarcoreError, SizeMismatch, WriteError
from narcore.formats.narinfo import NarInfo
from narcore.lookup.pathinfo import Trust
from narcore.stores.local import LocalBinaryCacheStore
from narcore.stores.localwriter import LocalWriter
from narcore.stores.memory import MemoryStore
from narcore.tier import index
from narcore.tier.check import check_path
from narcore.tier.reader import TierReader
from narcore.tier.writer import TierWriter
from tests import builders
from tests.tier.tiers import (
    HASH_PART,
    INDEX_FILE,
    INFO,
    KEYS,
    NAR,
    NAR_FILE,
    NARINFO_FILE,
    OTHER_KEY,
    STORE_KEY,
    TIER_KEY,
    chunks,
    make_tier,
    open_tier,
)

ALL = ["nix-cache-info", INDEX_FILE, NAR_FILE, NARINFO_FILE]


def objects(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def check(root: Path) -> None:
    """Check the path in the tier with every check that nar-serve has."""
    narinfo = NarInfo.parse((root / NARINFO_FILE).read_bytes())
    assert narinfo.signed_by([STORE_KEY.public_key])
    check_path(LocalBinaryCacheStore(str(root)), narinfo, KEYS, lambda _count: None)


def never() -> Iterator[bytes]:
    raise AssertionError("the tier has the NAR")


def test_a_path_is_added_once(tmp_path: Path) -> None:
    writer = make_tier(tmp_path)
    assert objects(tmp_path) == sorted(ALL)
    check(tmp_path)
    assert not writer.add(INFO, never)


def test_the_same_nar_of_another_path_is_not_uploaded_again(tmp_path: Path) -> None:
    writer = make_tier(tmp_path)
    other = replace(INFO, narinfo=builders.nar_info(builders.store_path("other"), NAR, secret_key=STORE_KEY))
    assert writer.add(other, never)
    assert len(objects(tmp_path)) == len(ALL) + 1


class RecordingWriter(LocalWriter):
    """Records the order of the files, and calls ``before`` before each."""

    def __init__(self, root: Path, before: Callable[[str], None]) -> None:
        super().__init__(root)
        self._before = before

    def put(self, name: str, chunks: Iterable[bytes], headers: Mapping[str, str]) -> None:
        self._before(name)
        super().put(name, chunks, headers)


def test_readers_never_see_an_incomplete_path(tmp_path: Path) -> None:
    """At each step, and if the writer dies there, the tier has nothing, or a complete NAR without a narinfo."""
    order: list[str] = []
    store = LocalBinaryCacheStore(str(tmp_path))

    def before(name: str) -> None:
        order.append(name)
        found = TierReader(store, KEYS).read(INFO, 0, 10)
        assert (found is not None) == (INDEX_FILE in order[:-1])
        if found is not None:
            found.close()

    assert TierWriter(RecordingWriter(tmp_path, before), store, TIER_KEY, ()).add(INFO, chunks)
    assert order == [NAR_FILE, INDEX_FILE, "nix-cache-info", NARINFO_FILE]


@pytest.mark.parametrize("step", ALL)
def test_a_failed_write_is_repaired_by_the_next_one(tmp_path: Path, step: str) -> None:
    def fail(name: str) -> None:
        if name == step:
            raise WriteError("the disk is full")

    store = LocalBinaryCacheStore(str(tmp_path))
    with pytest.raises(WriteError):
        TierWriter(RecordingWriter(tmp_path, fail), store, TIER_KEY, ()).add(INFO, chunks)
    assert NARINFO_FILE not in objects(tmp_path)
    assert open_tier(tmp_path).add(INFO, chunks)
    assert objects(tmp_path) == sorted(ALL)
    check(tmp_path)


@pytest.mark.parametrize(
    ("nar", "error"),
    [
        (NAR[:-8], SizeMismatch),
        (NAR + bytes(8), SizeMismatch),
        (NAR[:1000] + b"x" + NAR[1001:], HashMismatch),
        (b"x" * len(NAR), FormatError),
    ],
)
def test_another_nar_than_that_of_the_narinfo_is_not_stored(
    tmp_path: Path, nar: bytes, error: type[NarcoreError]
) -> None:
    with pytest.raises(error):
        open_tier(tmp_path).add(INFO, lambda: chunks(nar))
    assert objects(tmp_path) == []


def test_a_nar_with_too_many_entries_is_not_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "INDEX_LIMIT", 200)
    with pytest.raises(ListingError, match="entries"):
        open_tier(tmp_path).add(INFO, chunks)
    assert objects(tmp_path) == []


def test_a_path_without_a_trusted_signature_is_not_added(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="signature"):
        open_tier(tmp_path).add(replace(INFO, trust=Trust.UNCHECKED), never)


def test_many_writers_make_one_valid_object(tmp_path: Path) -> None:
    """Each opens the NAR at most once; with a claim, only one of them reads and uploads it."""
    opened: list[None] = []
    barrier = threading.Barrier(16)

    def open_nar() -> Iterator[bytes]:
        opened.append(None)
        return chunks()

    def add(_number: int) -> bool:
        writer = open_tier(tmp_path)
        barrier.wait(30)
        return writer.add(INFO, open_nar)

    with ThreadPoolExecutor(16) as pool:
        added = list(pool.map(add, range(16)))
    assert any(added)
    assert len(opened) == 1
    assert objects(tmp_path) == sorted(ALL)
    check(tmp_path)


def test_two_writers_without_a_claim_write_the_same_bytes(tmp_path: Path) -> None:
    make_tier(tmp_path / "a")
    make_tier(tmp_path / "b")
    for name in ALL:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_an_index_of_an_unknown_key_is_replaced(tmp_path: Path) -> None:
    open_tier(tmp_path, OTHER_KEY).add(INFO, chunks)
    assert TierReader(LocalBinaryCacheStore(str(tmp_path)), KEYS).listing(INFO) is None
    (tmp_path / NARINFO_FILE).unlink()
    assert open_tier(tmp_path).add(INFO, chunks)
    check(tmp_path)


@pytest.mark.parametrize("name", [INDEX_FILE, NAR_FILE, NARINFO_FILE])
def test_any_flipped_bit_is_found_and_repaired_by_force(tmp_path: Path, name: str) -> None:
    writer = make_tier(tmp_path)
    path = tmp_path / name
    good = path.read_bytes()
    if name == NARINFO_FILE:
        places = [good.index(b"FileHash: sha256:") + 20, good.index(b"FileSize: ") + 10]
    else:
        places = [0, len(good) // 3, len(good) // 2, len(good) - 12, len(good) - 1]
    for place in places:
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(NarcoreError):
            check(tmp_path)
    assert writer.add(INFO, chunks, force=True)
    assert path.read_bytes() == good


def test_the_narinfo_is_the_stores_with_another_file(tmp_path: Path) -> None:
    make_tier(tmp_path)
    found = NarInfo.parse((tmp_path / NARINFO_FILE).read_bytes())
    assert (found.url, found.compression, found.file_size) == (NAR_FILE, "zstd", (tmp_path / NAR_FILE).stat().st_size)
    own = ("url", "compression", "file_hash", "file_size")
    original = INFO.narinfo
    assert replace(found, **{name: getattr(original, name) for name in own}) == original
    assert found.store_path.hash_part == HASH_PART


def test_a_check_compares_narinfo_and_index(tmp_path: Path) -> None:
    make_tier(tmp_path)
    files = {name: (tmp_path / name).read_bytes() for name in ALL}
    narinfo = NarInfo.parse(files[NARINFO_FILE])
    for changed in (replace(narinfo, url="nar/x"), replace(narinfo, compression="none"), replace(narinfo, file_size=1)):
        with pytest.raises(NarcoreError, match="same file"):
            check_path(MemoryStore(files), changed, KEYS, lambda _count: None)
