"""Every codec unpacks any number of streams in any chunking."""

import sys
from collections.abc import Callable

import lz4.frame
import pytest
import zstandard

from narcore.errors import CorruptStream, TruncatedStream, UnknownCompression
from narcore.streams.compression import SUPPORTED, decompress, sniff
from narcore.streams.decoders import gzip_codec
from tests.streams.codecs import CONCATENATED, PACK, PACKED, SAMPLE, Source, pieces

pytestmark = pytest.mark.usefixtures("default_gzip")

INPUT_SIZES = [1, 7, 65536]
BIG = SAMPLE * 150  # hundreds of KiB: more than one piece of input, one zstd block or one brotli step
SKIPPABLE = b"\x5a\x2a\x4d\x18\x05\x00\x00\x00hello"  # RFC 8878, section 3.1.2; lz4 uses the same format


@pytest.fixture
def default_gzip() -> None:
    gzip_codec.cache_clear()


def unpack(name: str, packed: bytes, input_size: int = 65536, chunk_size: int = 1000) -> bytes:
    chunks = list(decompress(name, pieces(packed, input_size), chunk_size=chunk_size))
    assert all(type(chunk) is bytes and 0 < len(chunk) <= chunk_size for chunk in chunks)
    return b"".join(chunks)


def test_every_supported_compression_is_tested() -> None:
    assert set(PACK) == SUPPORTED


@pytest.mark.parametrize("input_size", INPUT_SIZES)
@pytest.mark.parametrize("name", sorted(PACK))
def test_one_stream_is_unpacked(name: str, input_size: int) -> None:
    assert unpack(name, PACK[name](SAMPLE), input_size) == SAMPLE


@pytest.mark.parametrize("chunk_size", [1, 999, 65536, 256 * 1024])
@pytest.mark.parametrize("name", sorted(PACK))
def test_output_chunks_are_bounded(name: str, chunk_size: int) -> None:
    content = BIG if chunk_size > 1 else SAMPLE
    assert unpack(name, PACK[name](content), 1 << 20, chunk_size) == content


@pytest.mark.parametrize("input_size", INPUT_SIZES)
@pytest.mark.parametrize("name", CONCATENATED)
def test_concatenated_streams_are_unpacked(name: str, input_size: int) -> None:
    packed = PACK[name](SAMPLE) + PACK[name](b"") + PACK[name](b"short") + PACK[name](SAMPLE)
    assert unpack(name, packed, input_size) == SAMPLE + b"short" + SAMPLE


@pytest.mark.parametrize("input_size", INPUT_SIZES)
def test_gzip_is_unpacked_by_both_libraries(gzip_library: str, input_size: int) -> None:
    assert gzip_codec().new_decoder.__module__ == (
        "functools" if gzip_library == "isal" else "narcore.streams.decoders"
    )
    packed = PACK["gzip"](BIG) + PACK["gzip"](b"") + PACK["gzip"](SAMPLE)
    assert unpack("gzip", packed, input_size) == BIG + SAMPLE


@pytest.mark.parametrize("name", PACKED)
def test_a_stream_without_contents_is_unpacked(name: str) -> None:
    assert unpack(name, PACK[name](b""), 1) == b""


@pytest.mark.parametrize("name", PACKED)
def test_empty_input_chunks_are_not_the_end(name: str) -> None:
    packed = PACK[name](SAMPLE)
    assert b"".join(decompress(name, [b"", packed[:20], b"", b"", packed[20:], b""])) == SAMPLE


@pytest.mark.parametrize("name", sorted(PACK))
def test_output_starts_before_the_input_ends(name: str) -> None:
    # bzip2 outputs nothing before a complete block of up to 900 kB, so use two streams; for brotli, one long stream.
    packed = PACK[name](SAMPLE) + PACK[name](BIG) if name in CONCATENATED else PACK[name](BIG)
    source = Source(*pieces(packed, len(PACK[name](SAMPLE)) + 8))
    next(decompress(name, source))
    assert source.read <= 2


@pytest.mark.parametrize("input_size", INPUT_SIZES)
@pytest.mark.parametrize("between", [0, 4, 8, 65536 + 4])
def test_xz_stream_padding_is_skipped(between: int, input_size: int) -> None:
    stream = PACK["xz"](SAMPLE)
    assert unpack("xz", stream + bytes(between) + stream + bytes(between), input_size) == SAMPLE * 2


@pytest.mark.parametrize("input_size", INPUT_SIZES)
@pytest.mark.parametrize("wrong", [1, 2, 3, 5, 65536 + 7])
def test_xz_stream_padding_must_be_a_multiple_of_four(wrong: int, input_size: int) -> None:
    stream = PACK["xz"](SAMPLE)
    with pytest.raises(CorruptStream, match="multiple of 4"):
        unpack("xz", stream + bytes(wrong) + stream, input_size)
    with pytest.raises(TruncatedStream, match="multiple of 4"):
        unpack("xz", stream + bytes(wrong), input_size)


@pytest.mark.parametrize("input_size", INPUT_SIZES)
@pytest.mark.parametrize("name", ["zstd", "lz4"])
def test_skippable_frames_are_skipped(name: str, input_size: int) -> None:
    packed = SKIPPABLE + PACK[name](SAMPLE) + SKIPPABLE + PACK[name](SAMPLE) + SKIPPABLE
    assert unpack(name, packed, input_size) == SAMPLE * 2


def _zstd_frames() -> dict[str, Callable[[bytes], bytes]]:
    """Return the variants of a frame header: with and without content size and checksum, single segment or not."""

    def streamed(content: bytes) -> bytes:
        packer = zstandard.ZstdCompressor().compressobj()
        return packer.compress(content) + packer.flush()

    return {
        "unknown size": streamed,
        "no checksum": zstandard.ZstdCompressor(write_checksum=False).compress,
        "no content size": zstandard.ZstdCompressor(write_content_size=False).compress,
        "level 19": zstandard.ZstdCompressor(level=19, write_checksum=True).compress,
    }


@pytest.mark.parametrize("content", [b"x", SAMPLE[:255], SAMPLE, BIG, bytes(300_000)], ids=len)
@pytest.mark.parametrize("form", _zstd_frames())
def test_every_variant_of_a_zstd_frame_is_unpacked(form: str, content: bytes) -> None:
    packed = _zstd_frames()[form](content)
    assert unpack("zstd", packed * 2, 7, 65536) == content * 2
    with pytest.raises(TruncatedStream):
        unpack("zstd", packed * 2 + packed[:-1], 65536, 65536)


def test_lz4_with_linked_blocks_is_unpacked() -> None:
    packed = lz4.frame.compress(BIG, block_linked=True, content_checksum=False, store_size=False)
    assert unpack("lz4", packed, 4096, 65536) == BIG


def test_lzma_with_a_known_size_is_unpacked() -> None:
    packed = PACK["lzma"](SAMPLE)
    assert unpack("lzma", packed[:5] + len(SAMPLE).to_bytes(8, "little") + packed[13:]) == SAMPLE


@pytest.mark.parametrize("name", ["compress", "grzip", "lrzip", "lzop"])
def test_an_unsupported_compression_is_refused(name: str) -> None:
    with pytest.raises(UnknownCompression, match=f"'{name}' is not supported"):
        decompress(name, [])


@pytest.mark.parametrize("name", ["", "lzw", "XZ", "gz"])
def test_an_unknown_compression_is_refused(name: str) -> None:
    source = Source(b"")
    with pytest.raises(UnknownCompression, match=f"'{name}' is unknown"):
        decompress(name, source)
    assert source.closed


def test_lz4_without_its_package_is_refused_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lz4", None)
    monkeypatch.setitem(sys.modules, "lz4.frame", None)
    with pytest.raises(UnknownCompression, match=r"pip install '\.\[lz4\]'"):
        decompress("lz4", [])


@pytest.mark.parametrize("name", ["none", "br", "zstd", "xz", "gzip"])
def test_the_compression_is_detected_by_the_first_bytes(name: str) -> None:
    assert sniff(PACK[name](b'{"version":1}')) == name
