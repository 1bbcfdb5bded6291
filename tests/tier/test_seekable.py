"""Seekable files: pyzstd reads them, frames begin and end with large files, and invalid tables are rejected."""

import io

import pytest
import pyzstd
from hypothesis import given
from hypothesis import strategies as st

from narcore.errors import CorruptStream, NarError
from narcore.tier.seekable import FRAME_SIZE, OWN_FRAMES_SIZE, FrameCutter, SeekableNar, SeekTable
from tests import builders
from tests.tier.tiers import LISTING, NAR, chunks, node

SIZES = st.lists(st.tuples(st.integers(1, 2**32 - 1), st.integers(1, 2**32 - 1)), max_size=20)


@pytest.fixture(scope="module")
def packed() -> bytes:
    return b"".join(SeekableNar(chunks()))


def test_pyzstd_seeks_in_a_file(packed: bytes) -> None:
    with pyzstd.SeekableZstdFile(io.BytesIO(packed)) as file:
        for start in (0, 1, FRAME_SIZE - 1, FRAME_SIZE, 2_000_000, len(NAR) - 10):
            file.seek(start)
            assert file.read(1000) == NAR[start : start + 1000]
        file.seek(0)
        assert file.read() == NAR
    assert pyzstd.SeekableZstdFile.is_seekable_format_file(io.BytesIO(packed))


def test_a_table_of_pyzstd_is_read() -> None:
    buffer = io.BytesIO()
    with pyzstd.SeekableZstdFile(buffer, "w", max_frame_content_size=700_000) as file:
        file.write(NAR)
    table = SeekTable.parse(buffer.getvalue()[-9 - 12 * 6 - 8 :])
    assert table.unpacked[:2] == (0, 700_000)
    assert table.unpacked[-1] == len(NAR)


@pytest.mark.parametrize("size", [17, 4096, 262144, len(NAR)])
def test_the_file_does_not_depend_on_the_chunks(packed: bytes, size: int) -> None:
    assert b"".join(SeekableNar(chunks(size=size))) == packed


def test_a_large_file_has_frames_of_its_own() -> None:
    nar = SeekableNar(chunks())
    assert list(nar)
    offsets = set(nar.table.unpacked)
    for path in ("lib/big", "lib/medium"):
        file = node(path)
        assert {file.nar_offset, file.nar_offset + file.size} <= offsets
    assert len(nar.table) == 7  # before, 3 of big, between, medium, after
    assert nar.listing == LISTING


@given(
    st.lists(st.sampled_from((0, 1000, OWN_FRAMES_SIZE, OWN_FRAMES_SIZE + 1, FRAME_SIZE, FRAME_SIZE + 8)), max_size=5)
)
def test_frames_are_the_nar_and_have_a_limit(sizes: list[int]) -> None:
    nar = builders.nar({f"{number}": bytes(size) for number, size in enumerate(sizes)})
    cutter = FrameCutter()
    frames = [frame for chunk in chunks(nar, 300_000) for frame in cutter.receive(chunk)] + list(cutter.finish())
    assert b"".join(frames) == nar
    assert all(0 < len(frame) <= FRAME_SIZE for frame in frames)
    sizes = [len(frame) for frame in frames]
    assert all(sum(sizes[number : number + 3]) > OWN_FRAMES_SIZE for number in range(len(sizes) - 2))


@given(SIZES)
def test_a_table_is_read_as_it_was_written(sizes: list[tuple[int, int]]) -> None:
    table = SeekTable.of_sizes(sizes)
    assert SeekTable.parse(b"frames" + table.to_bytes()) == table


@given(SIZES, st.data())
def test_an_invalid_table_is_rejected(sizes: list[tuple[int, int]], data: st.DataObject) -> None:
    raw = bytearray(SeekTable.of_sizes(sizes).to_bytes())
    place = data.draw(st.sampled_from([*range(8), *range(len(raw) - 9, len(raw))]))
    raw[place] ^= 1 << data.draw(st.integers(0, 7))
    unchanged = place == len(raw) - 5 and raw[place] in (1, 2)  # the two unused bits of the descriptor
    if not unchanged:
        with pytest.raises(CorruptStream):
            SeekTable.parse(bytes(raw))
    with pytest.raises(CorruptStream):
        SeekTable.parse(bytes(raw[1:]))


@given(st.integers(0, len(NAR) - 1), st.integers(1, len(NAR)))
def test_the_covering_frames_contain_the_range(start: int, length: int) -> None:
    stop = min(start + length, len(NAR))
    table = SeekTable((0, 10, 20, 30), (0, 100, 2_000_000, len(NAR)))
    frames = table.covering(start, stop)
    assert table.unpacked[frames.start] <= start < table.unpacked[frames.start + 1]
    assert table.unpacked[frames.stop - 1] < stop <= table.unpacked[frames.stop]


@pytest.mark.parametrize("data", [NAR[:-8], NAR + bytes(8), b"not a NAR at all" * 10])
def test_other_bytes_than_a_nar_are_rejected(data: bytes) -> None:
    with pytest.raises(NarError):
        list(SeekableNar([data]))
