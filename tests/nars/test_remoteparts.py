"""Ranges of remote NARs: only the needed bytes are requested, wrong ones are rejected, and the whole NAR is fetched if cheaper."""

import io
import random
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise

import pytest
import pyzstd
import zstandard

from narcore.errors import CompressionError, FileNotInStore, RangeNotSupported, StoreError, StoreUnavailable
from narcore.formats.listing import NarListing, Node
from narcore.formats.nar.parser import parse_nar
from narcore.formats.narinfo import NarInfo
from narcore.lookup.pathinfo import PathInfo
from narcore.nars import remoteparts
from narcore.nars.accessor import NarBytes
from narcore.nars.remoteparts import RemoteParts
from narcore.stores.base import StoreFile
from narcore.stores.memory import MemoryStore
from narcore.tier.seekable import SeekTable
from tests import builders, needs

FILES = {"a": random.Random(1).randbytes(1_000_000), "b": random.Random(2).randbytes(5000), "c": bytes(1_000_000)}
NAR = builders.nar(FILES)
LISTING = NarListing.from_events(parse_nar([NAR], contents=False))


class CountingStore(MemoryStore):
    """Records each request as (start, stop), and raises ``fault`` if it is set."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(files)
        self.files = files
        self.asked: list[tuple[int, int | None]] = []
        self.fault: Exception | None = None
        self.open = 0
        self.gate: threading.Event | None = None

    def get_file(self, path: str, start: int = 0, stop: int | None = None) -> StoreFile:
        self.asked.append((start, stop))
        if self.gate is not None:
            self.gate.wait(10)
        if self.fault is not None:
            raise self.fault
        file = super().get_file(path, start, stop)
        self.open += 1
        return StoreFile(_Counted(self, iter(file)), size=file.size)

    def bytes_asked(self) -> int:
        return sum((stop or 0) - start for start, stop in self.asked)


class _Counted:
    def __init__(self, store: CountingStore, chunks: Iterator[bytes]) -> None:
        self._store, self._chunks, self._closed = store, chunks, False

    def __iter__(self) -> "_Counted":
        return self

    def __next__(self) -> bytes:
        return next(self._chunks)

    def close(self) -> None:
        self._store.open -= not self._closed
        self._closed = True


def plain(**changes: object) -> tuple[PathInfo, CountingStore]:
    """Return the uncompressed NAR."""
    info = builders.nar_info(builders.store_path("x"), NAR, compression="none")
    return _info(info, NAR, changes)


def _info(info: NarInfo, packed: bytes, changes: dict[str, object]) -> tuple[PathInfo, CountingStore]:
    store = CountingStore({info.url: packed})
    return PathInfo(replace(info, **{"file_size": len(packed)} | changes), store), store  # type: ignore[arg-type]


def in_blocks(monkeypatch: pytest.MonkeyPatch, compression: str, size: int = 300_000) -> tuple[PathInfo, CountingStore]:
    """Return the NAR in blocks of ``size`` bytes: in xz, or in zstd frames with a seek table that pyzstd wrote."""
    monkeypatch.setattr(remoteparts, "BLOCKS_SIZE", 100_000)
    info = builders.nar_info(builders.store_path("x"), NAR, compression=compression)
    return _info(info, BLOCKS[compression](size), {})


def _xz_blocks(size: int) -> bytes:
    needs.program("xz")
    command = ["xz", "-c", "-0", f"--block-size={size}"]
    return subprocess.run(command, input=NAR, stdout=subprocess.PIPE, check=True).stdout


def _zstd_frames(size: int) -> bytes:
    buffer = io.BytesIO()
    with pyzstd.SeekableZstdFile(buffer, "w", max_frame_content_size=size, level_or_option=CHECKED) as file:
        file.write(NAR)
    return buffer.getvalue()


CHECKED: dict[int, int] = {pyzstd.CParameter.checksumFlag: 1}
BLOCKS = {"xz": _xz_blocks, "zstd": _zstd_frames}
each_format = pytest.mark.parametrize("compression", BLOCKS)


def node(name: str) -> Node:
    found = LISTING.child(LISTING.root, name)
    assert found is not None
    return found


def read(
    parts: RemoteParts, info: PathInfo, of: Node, start: int = 0, stop: int | None = None, *, cheap: bool = True
) -> NarBytes | None:
    stop = of.size if stop is None else stop
    return parts.read(info, of, of.nar_offset + start, of.nar_offset + stop, cheap=cheap)


def assert_all_is_free(parts: RemoteParts, info: PathInfo) -> None:
    """Assert that as many parts can be read at once as if none had been read before."""
    held = [read(parts, info, node("b"), 0, 1) for _ in range(remoteparts.AT_ONCE)]
    for part in held:
        assert part is not None
        part.close()


def contents(part: NarBytes | None) -> bytes:
    assert part is not None
    try:
        return b"".join(part)
    finally:
        part.close()


@pytest.mark.parametrize(("start", "stop"), [(0, 5000), (0, 1), (4999, 5000), (100, 200)])
def test_range_requests_only_its_bytes_and_the_tag(start: int, stop: int) -> None:
    info, store = plain()
    assert contents(read(RemoteParts(), info, node("b"), start, stop)) == FILES["b"][start:stop]
    offset = node("b").nar_offset
    assert store.asked == [(offset - 24, offset + stop)]
    assert store.open == 0


def test_range_far_into_a_file_requests_the_tag_separately() -> None:
    info, store = plain()
    assert contents(read(RemoteParts(), info, node("a"), 600_000, 600_100)) == FILES["a"][600_000:600_100]
    assert len(store.asked) == 2
    assert store.bytes_asked() == 100 + 24
    assert store.open == 0


@each_format
def test_range_of_blocks_requests_only_these_blocks(monkeypatch: pytest.MonkeyPatch, compression: str) -> None:
    info, store = in_blocks(monkeypatch, compression)
    parts = RemoteParts()
    assert contents(read(parts, info, node("b"))) == FILES["b"]
    assert len(store.asked) == 2  # the index, and the block
    assert store.bytes_asked() <= 4096 + 310_000
    store.asked.clear()
    assert contents(read(parts, info, node("c"), 900_000, 900_100)) == bytes(100)
    assert len(store.asked) == 2  # the block of the tag, and the block of the bytes; the index is cached
    assert store.open == 0


@each_format
@pytest.mark.parametrize("small", [True, False])
def test_index_larger_than_the_first_request_is_read(
    monkeypatch: pytest.MonkeyPatch, compression: str, small: bool
) -> None:
    if small:
        monkeypatch.setattr(remoteparts, "TAIL_SIZE", 14)
    info, store = in_blocks(monkeypatch, compression, 30_000)
    assert contents(read(RemoteParts(), info, node("b"))) == FILES["b"]
    assert len(store.asked) == (3 if small else 2)


@each_format
def test_damaged_block_returns_no_bytes(monkeypatch: pytest.MonkeyPatch, compression: str) -> None:
    """Each block has a checksum, which is checked before its last bytes are returned."""
    info, store = in_blocks(monkeypatch, compression)
    (name,) = store.files
    packed = bytearray(store.files[name])
    packed[500_000] ^= 1
    store.files[name] = bytes(packed)
    part = read(RemoteParts(), info, node("a"), 400_000, 550_000)
    got = b""
    try:
        with pytest.raises(Exception, match=compression):
            got = contents(part)
    finally:
        assert got == b""
        assert store.open == 0


def _frame(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=True).compress(data)


CUTS = (0, 400_000, 1_200_000, len(NAR))
FRAMES = [_frame(NAR[start:stop]) for start, stop in pairwise(CUTS)]
SIZES = [(len(frame), stop - start) for frame, (start, stop) in zip(FRAMES, pairwise(CUTS), strict=True)]
WRONG_TABLES: dict[str, list[tuple[int, int]]] = {
    "of other frames": [(SIZES[0][0] + 1, SIZES[0][1]), (SIZES[1][0] - 1, SIZES[1][1]), SIZES[2]],
    "of other contents": [(SIZES[0][0], SIZES[0][1] + 8), (SIZES[1][0], SIZES[1][1] - 8), SIZES[2]],
    "of a shorter file": [(SIZES[0][0] - 1, SIZES[0][1]), *SIZES[1:]],
    "of a longer NAR": [*SIZES[:2], (SIZES[2][0], SIZES[2][1] + 8)],
    "of one frame": [(sum(size for size, _ in SIZES), len(NAR))],
    "of no frames": [],
}


@pytest.mark.parametrize("table", WRONG_TABLES)
@pytest.mark.parametrize("file", ["a", "b", "c"])
def test_wrong_seek_table_returns_no_wrong_byte(monkeypatch: pytest.MonkeyPatch, table: str, file: str) -> None:
    monkeypatch.setattr(remoteparts, "BLOCKS_SIZE", 100_000)
    packed = b"".join((*FRAMES, SeekTable.of_sizes(WRONG_TABLES[table]).to_bytes()))
    info, store = _info(builders.nar_info(builders.store_path("x"), NAR, compression="zstd"), packed, {})
    with suppress(CompressionError):
        part = read(RemoteParts(), info, node(file), cheap=False)
        assert part is None or contents(part) == FILES[file]
    assert store.open == 0


@pytest.mark.parametrize("footer", [b"", b"\xff" * 4 + b"\x80\xb1\xea\x92\x8f", b"\xff\xff\x0f\0\x80\xb1\xea\x92\x8f"])
def test_zstd_without_a_table_costs_one_request(monkeypatch: pytest.MonkeyPatch, footer: bytes) -> None:
    """Most zstd NARs are one frame. A table that claims to be larger than the file is refused, too."""
    monkeypatch.setattr(remoteparts, "BLOCKS_SIZE", 100_000)
    packed = _frame(NAR) + footer
    info, store = _info(builders.nar_info(builders.store_path("x"), NAR, compression="zstd"), packed, {})
    parts = RemoteParts()
    assert read(parts, info, node("b")) is None
    assert read(parts, info, node("b")) is None
    assert store.asked == [(len(packed) - 4096, len(packed))]


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"file_size": 5}, 0),  # FileSize is not checked for an uncompressed NAR, but NarSize is
        ({}, 8),  # the listing is of another NAR
        ({}, -1),
    ],
)
def test_offset_without_the_file_is_rejected_and_remembered(changes: dict[str, object], place: int) -> None:
    info, store = plain(**changes)
    parts = RemoteParts()
    moved = replace(node("b"), nar_offset=node("b").nar_offset + place)
    found = read(parts, info, moved)
    if place:
        assert found is None
        asked = len(store.asked)
        assert read(parts, info, node("b")) is None  # no requests for a while
        assert len(store.asked) == asked
    else:
        assert contents(found) == FILES["b"]
    assert store.open == 0


@pytest.mark.parametrize(
    "fault", [RangeNotSupported("no"), FileNotInStore("no"), StoreError("no"), StoreUnavailable("no")]
)
def test_store_error_returns_none(fault: Exception) -> None:
    info, store = plain()
    parts = RemoteParts()
    store.fault = fault
    assert read(parts, info, node("b")) is None
    store.fault = None
    again = read(parts, info, node("b"))
    # After a temporary error, the next call tries again; after a permanent one, ranges are not used for minutes.
    assert (again is not None) == isinstance(fault, StoreUnavailable)
    if again is not None:
        again.close()
        assert_all_is_free(parts, info)


def test_file_of_another_size_is_rejected() -> None:
    info, store = plain()
    (name,) = store.files
    store.files[name] = NAR + b"more"
    assert read(RemoteParts(), info, node("b")) is None
    assert store.open == 0


@pytest.mark.parametrize("compression", ["zstd", "bzip2", "xz"])
def test_compressed_file_without_blocks_has_no_ranges(compression: str) -> None:
    """The xz file has one block, as Nix writes it unless parallel compression is on."""
    info, store = _info(
        builders.nar_info(builders.store_path("x"), NAR, compression=compression),
        builders.COMPRESS[compression](NAR),
        {},
    )
    assert read(RemoteParts(), info, node("b")) is None
    assert store.asked == []


class TestCost:
    def test_ranges_stop_at_half_of_the_nar(self) -> None:
        info, store = plain()
        parts = RemoteParts()
        assert contents(read(parts, info, node("a"))) == FILES["a"]
        assert read(parts, info, node("c"), 0, 100_000) is None
        assert contents(read(parts, info, node("c"), cheap=False)) == FILES["c"]
        store.asked.clear()
        assert contents(read(parts, info, node("b"), 0, 100)) == FILES["b"][:100]  # still within half of the NAR

    def test_small_nar_is_not_read_in_ranges(self) -> None:
        small = builders.nar({"b": FILES["b"]})
        info, _ = _info(builders.nar_info(builders.store_path("s"), small, compression="none"), small, {})
        of = NarListing.from_events(parse_nar([small], contents=False))
        file = of.child(of.root, "b")
        assert file is not None
        assert read(RemoteParts(), info, file) is None
        assert contents(read(RemoteParts(), info, file, cheap=False)) == FILES["b"]

    def test_concurrent_ranges_are_limited(self) -> None:
        info, _ = plain()
        parts = RemoteParts()
        open_parts = [read(parts, info, node("b"), 0, 10) for _ in range(remoteparts.AT_ONCE)]
        assert all(open_parts)
        assert read(parts, info, node("b")) is None
        for part in open_parts:
            assert part is not None
            part.close()
            part.close()
        assert contents(read(parts, info, node("b"))) == FILES["b"]

    def test_ranges_that_are_being_requested_count(self) -> None:
        info, store = plain()
        parts = RemoteParts()
        store.gate = threading.Event()
        found: list[NarBytes | None] = []
        threads = [threading.Thread(target=lambda: found.append(read(parts, info, node("b")))) for _ in range(30)]
        for thread in threads:
            thread.start()
        while len(found) < len(threads) - remoteparts.AT_ONCE:
            threads[0].join(0.001)
        store.gate.set()
        for thread in threads:
            thread.join()
        assert len(store.asked) == remoteparts.AT_ONCE
        for part in filter(None, found):
            assert contents(part) == FILES["b"]
        assert store.open == 0
        assert_all_is_free(parts, info)

    def test_range_that_is_never_read_can_be_closed(self) -> None:
        info, store = plain()
        parts = RemoteParts()
        part = read(parts, info, node("a"))
        assert part is not None
        part.close()
        assert store.open == 0
        assert_all_is_free(parts, info)
