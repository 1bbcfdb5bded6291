"""xz files with several blocks: access through the index, and invalid indexes."""

import lzma
import struct
import zlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narcore.errors import CompressionError, CorruptStream, TruncatedStream
from narcore.streams.xzblocks import FOOTER_SIZE, HEADER_SIZE, XzFooter, XzIndex, unpack_blocks

BLOCKS = [b"first " * 100, b"x", bytes(range(256)) * 20, b"last"]
CONTENTS = b"".join(BLOCKS)


def vli(number: int) -> bytes:
    """Return a multibyte integer (the .xz file format, section 1.2)."""
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def with_crc(data: bytes) -> bytes:
    return data + struct.pack("<I", zlib.crc32(data))


def index_of(sizes: list[tuple[int, int]]) -> bytes:
    """Return the index of blocks with these sizes, packed (without padding) and unpacked."""
    data = b"\0" + vli(len(sizes)) + b"".join(vli(packed) + vli(unpacked) for packed, unpacked in sizes)
    return with_crc(data + bytes(-len(data) % 4))


def as_footer(size_and_flags: bytes) -> bytes:
    return struct.pack("<I", zlib.crc32(size_and_flags)) + size_and_flags + b"YZ"


def one_block(contents: bytes) -> tuple[bytes, int]:
    """Return a block written by liblzma, and its size without padding, which is the size in an index."""
    stream = lzma.compress(contents)
    footer = XzFooter.parse(stream[-FOOTER_SIZE:])
    index = stream[-FOOTER_SIZE - footer.index_size : -FOOTER_SIZE]
    size = next(size for size in range(1, len(stream)) if index_of([(size, len(contents))]) == index)
    return stream[HEADER_SIZE : -FOOTER_SIZE - len(index)], size


def xz_of(blocks: list[bytes]) -> bytes:
    """Return one stream of these blocks. Python's lzma can read such a stream but not write it."""
    header, footer = lzma.compress(b"")[:HEADER_SIZE], XzFooter.parse(lzma.compress(b"")[-FOOTER_SIZE:])
    packed = [one_block(block) for block in blocks]
    index = index_of([(size, len(block)) for (_, size), block in zip(packed, blocks, strict=True)])
    return (
        header
        + b"".join(data for data, _ in packed)
        + index
        + as_footer(struct.pack("<I", len(index) // 4 - 1) + footer.flags)
    )


FILE = xz_of(BLOCKS)


def read_index(file: bytes) -> tuple[XzFooter, XzIndex]:
    footer = XzFooter.parse(file[-FOOTER_SIZE:])
    return footer, XzIndex.parse(file[-FOOTER_SIZE - footer.index_size : -FOOTER_SIZE])


def test_the_index_describes_all_blocks() -> None:
    assert lzma.decompress(FILE) == CONTENTS
    footer, index = read_index(FILE)
    assert footer.header == FILE[:HEADER_SIZE]
    assert len(index) == len(BLOCKS)
    assert [stop - start for start, stop in pairwise(index.unpacked)] == [len(block) for block in BLOCKS]
    assert index.packed[-1] == len(FILE) - FOOTER_SIZE - footer.index_size


@given(st.integers(0, len(CONTENTS) - 1), st.integers(1, len(CONTENTS)), st.integers(1, 400))
def test_any_part_is_unpacked_from_the_blocks_that_cover_it(start: int, size: int, chunk: int) -> None:
    stop = min(start + size, len(CONTENTS))
    footer, index = read_index(FILE)
    covering = index.covering(start, stop)
    first, last = index.unpacked[covering.start], index.unpacked[covering.stop]
    packed = FILE[index.packed[covering.start] : index.packed[covering.stop]]
    chunks = (packed[at : at + chunk] for at in range(0, len(packed), chunk))
    assert first <= start
    assert stop <= last
    assert b"".join(unpack_blocks(footer.header, chunks, last - first)) == CONTENTS[first:last]
    assert all(index.unpacked[block] < stop and start < index.unpacked[block + 1] for block in covering)


def unpacked(packed: bytes, size: int) -> bytes:
    return b"".join(unpack_blocks(FILE[:HEADER_SIZE], [packed], size))


def test_blocks_that_do_not_match_the_size_are_refused() -> None:
    blocks = FILE[HEADER_SIZE : read_index(FILE)[1].packed[-1]]
    assert unpacked(blocks, len(CONTENTS)) == CONTENTS
    with pytest.raises(TruncatedStream):
        unpacked(blocks, len(CONTENTS) + 1)
    with pytest.raises(TruncatedStream):
        unpacked(blocks[:-8], len(CONTENTS) + 1)
    with pytest.raises(CorruptStream):
        unpacked(blocks, len(CONTENTS) - 1)
    with pytest.raises(CorruptStream):
        unpacked(FILE[HEADER_SIZE:], len(CONTENTS))  # followed by the index and the end of the stream


@given(st.integers(0, len(FILE) - 1), st.integers(1, 255))
def test_a_changed_byte_never_changes_the_contents(position: int, flip: int) -> None:
    changed = FILE[:position] + bytes([FILE[position] ^ flip]) + FILE[position + 1 :]
    try:
        footer, index = read_index(changed)
        got = b"".join(unpack_blocks(footer.header, [changed[HEADER_SIZE : index.packed[-1]]], index.unpacked[-1]))
    except CompressionError:
        return
    assert got == CONTENTS


huge = st.integers(0, 2**63 - 1)


@given(st.lists(st.tuples(huge, huge), max_size=6))
def test_an_index_with_sizes_up_to_63_bits_is_read(sizes: list[tuple[int, int]]) -> None:
    index = XzIndex.parse(index_of(sizes))
    assert len(index) == len(sizes)
    assert index.unpacked[-1] == sum(size for _, size in sizes)
    assert index.packed[-1] == HEADER_SIZE + sum(size + -size % 4 for size, _ in sizes)


pieces = st.one_of(
    huge.map(vli), st.sampled_from([b"\0", b"\1", b"\x7f", b"\x80", b"\xff" * 12]), st.binary(max_size=4)
)


@given(st.lists(pieces, max_size=12).map(b"".join))
def test_a_random_index_with_a_valid_checksum_is_read_or_refused(data: bytes) -> None:
    """Anyone can compute the checksum, so it does not show that an index is valid."""
    for candidate in (with_crc(b"\0" + data), with_crc(data), data):
        try:
            index = XzIndex.parse(candidate)
        except CorruptStream:
            continue
        assert len(index.unpacked) == len(index.packed) == len(index) + 1 <= len(candidate)
        assert all(start <= stop for start, stop in (*pairwise(index.packed), *pairwise(index.unpacked)))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(8),
        with_crc(b"\0\0")[:-1],
        with_crc(b"\1\0\0\0"),
        with_crc(b"\0" + vli(2**62) + bytes(3)),
        with_crc(b"\0" + vli(2) + vli(8) + vli(8)),
        with_crc(b"\0" + b"\x80" * 2000),
        with_crc(b"\0" + vli(1) + b"\xff" * 9 + b"\1" + b"\1"),
    ],
    ids=[
        "empty",
        "zeros",
        "short",
        "not an index",
        "too many blocks",
        "truncated",
        "endless number",
        "number too large",
    ],
)
def test_an_invalid_index_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptStream):
        XzIndex.parse(data)


@given(st.binary(max_size=16) | st.binary(min_size=6, max_size=6).map(as_footer))
def test_a_random_footer_is_read_or_refused(data: bytes) -> None:
    try:
        footer = XzFooter.parse(data)
    except CorruptStream:
        return
    assert 4 <= footer.index_size <= 2**34
    assert len(footer.header) == HEADER_SIZE
