"""Random access to xz files: any range is unpacked from its blocks alone, and invalid files raise CorruptStream."""

import lzma
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narcore.errors import CompressionError, CorruptStream, TruncatedStream
from narcore.streams.xzblocks import FOOTER_SIZE, XzFooter, XzIndex, unpack_blocks
from tests import needs

CONTENTS = bytes(range(256)) * 300
BLOCK = 10_000


def packed(*options: str) -> bytes:
    needs.program("xz")
    done = subprocess.run(["xz", "-c", "-0", *options], input=CONTENTS, stdout=subprocess.PIPE, check=True)
    return done.stdout


@pytest.fixture(scope="module", params=["crc64", "crc32", "sha256", "none"])
def blocks(request: pytest.FixtureRequest) -> bytes:
    """An xz file with eight blocks, with each kind of checksum."""
    return packed(f"--block-size={BLOCK}", f"--check={request.param}")


def index_of(file: bytes) -> tuple[XzFooter, XzIndex]:
    footer = XzFooter.parse(file[-FOOTER_SIZE:])
    return footer, XzIndex.parse(file[-FOOTER_SIZE - footer.index_size : -FOOTER_SIZE])


def unpacked(file: bytes, start: int, stop: int, chunk: int = 1000) -> bytes:
    """Return the bytes ``start`` to ``stop`` of the contents, unpacked only from their blocks and the footer."""
    footer, index = index_of(file)
    covering = index.covering(start, stop)
    first, last = index.packed[covering.start], index.packed[covering.stop]
    chunks = (file[at : min(at + chunk, last)] for at in range(first, last, chunk))
    low, high = index.unpacked[covering.start], index.unpacked[covering.stop]
    return b"".join(unpack_blocks(footer.header, chunks, high - low))[start - low : stop - low]


@given(st.integers(0, len(CONTENTS) - 1), st.integers(1, 30_000), st.sampled_from([1, 7, 4096, 1 << 20]))
def test_any_range_is_unpacked_from_its_blocks(start: int, length: int, chunk: int) -> None:
    file = cached_file()
    stop = min(start + length, len(CONTENTS))
    covering = index_of(file)[1].covering(start, stop)
    assert covering == range(start // BLOCK, (stop - 1) // BLOCK + 1)
    if chunk > 1 or length < 1000:
        assert unpacked(file, start, stop, chunk) == CONTENTS[start:stop]


_FILES: list[bytes] = []


def cached_file() -> bytes:
    if not _FILES:
        _FILES.append(packed(f"--block-size={BLOCK}"))
    return _FILES[0]


def test_files_with_every_kind_of_checksum_are_read(blocks: bytes) -> None:
    footer, index = index_of(blocks)
    assert blocks.startswith(footer.header)
    assert len(index) == len(CONTENTS) // BLOCK + 1
    assert index.unpacked[-1] == len(CONTENTS)
    assert index.packed[-1] == len(blocks) - FOOTER_SIZE - footer.index_size
    assert unpacked(blocks, 15_000, 45_000) == CONTENTS[15_000:45_000]


def test_a_file_written_by_python_has_one_block() -> None:
    file = lzma.compress(CONTENTS)
    assert len(index_of(file)[1]) == 1
    assert unpacked(file, 5, 50) == CONTENTS[5:50]


def test_a_damaged_block_is_refused() -> None:
    file = cached_file()
    _, index = index_of(file)
    for at in range(index.packed[1], index.packed[2], 97):
        damaged = file[:at] + bytes([file[at] ^ 0x55]) + file[at + 1 :]
        with pytest.raises(CompressionError):
            unpacked(damaged, BLOCK, BLOCK + 100)


@given(st.data())
def test_a_damaged_index_or_footer_is_refused(data: st.DataObject) -> None:
    file = cached_file()
    footer, _ = index_of(file)
    tail = file[-FOOTER_SIZE - footer.index_size :]
    at = data.draw(st.integers(0, len(tail) - 1))
    changed = bytes([data.draw(st.integers(0, 255).filter(lambda byte: byte != tail[at]))])
    with pytest.raises(CorruptStream):
        index_of(tail[:at] + changed + tail[at + 1 :])


@given(st.binary(max_size=40))
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(CorruptStream):
        XzFooter.parse(data[:FOOTER_SIZE])
    with pytest.raises(CorruptStream):
        XzIndex.parse(data)


@pytest.mark.parametrize("count", [b"\xff" * 8 + b"\x01", b"\xff" * 8, b"\x80" * 12, b"\xff\xff\xff\x7f", b"\x05"])
def test_an_index_with_too_few_entries_is_refused(count: bytes) -> None:
    import zlib

    field = b"\0" + count + b"\x10\x10"
    field += bytes(-len(field) % 4)
    with pytest.raises(CorruptStream):
        XzIndex.parse(field + zlib.crc32(field).to_bytes(4, "little"))


def test_blocks_that_do_not_match_the_index_are_refused() -> None:
    file = cached_file()
    footer, index = index_of(file)
    body = file[index.packed[1] : index.packed[3]]
    for size, chunks, error in [
        (BLOCK * 2 - 1, [body], CorruptStream),
        (BLOCK * 2 + 1, [body], TruncatedStream),
        (BLOCK * 2, [body[:-20]], TruncatedStream),
        (len(CONTENTS), [file[12:]], CorruptStream),  # the index is not a block
    ]:
        with pytest.raises(error):
            b"".join(unpack_blocks(footer.header, chunks, size))


def test_the_source_is_closed_even_if_nothing_was_read() -> None:
    class Source:
        closed = False

        def __iter__(self) -> "Source":
            return self

        def __next__(self) -> bytes:
            return b""

        def close(self) -> None:
            self.closed = True

    source = Source()
    unpack_blocks(b"", source, 1).close()  # type: ignore[attr-defined]
    assert source.closed
