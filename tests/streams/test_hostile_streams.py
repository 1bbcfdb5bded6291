"""Truncated, damaged, overlong and highly compressed input gives the right bytes or a CompressionError, in bounded memory."""

import contextlib
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narcore.errors import CompressionError, CorruptStream, TruncatedStream
from narcore.streams.compression import decompress
from tests.streams.codecs import CHECKED, CONCATENATED, PACK, PACKED, SAMPLE, lzip, pieces

MIB = 1 << 20


def unpack(name: str, packed: bytes, input_size: int = 65536) -> bytes:
    return b"".join(decompress(name, pieces(packed, input_size), chunk_size=2000))


def check_every_cut(name: str) -> None:
    packed = PACK[name](SAMPLE)
    for cut in range(len(packed)):
        with pytest.raises(TruncatedStream):
            unpack(name, packed[:cut])
    for cut in range(0, len(packed), 41):
        with pytest.raises(TruncatedStream):
            unpack(name, packed[:cut], 1 + cut % 7)


def check_every_flip(name: str) -> None:
    packed = PACK[name](SAMPLE)
    for place in range(len(packed)):
        flipped = bytearray(packed)
        flipped[place] ^= 1 << place % 8
        try:
            output = unpack(name, bytes(flipped), 1 + 997 * (place % 3))
        except CompressionError:
            continue
        assert name not in CHECKED or output == SAMPLE, f"byte {place}"


@pytest.mark.parametrize("name", PACKED)
def test_input_truncated_at_any_byte_is_refused(name: str) -> None:
    check_every_cut(name)


@pytest.mark.parametrize("name", PACKED)
def test_a_flipped_bit_is_found_by_checksums_or_refused(name: str) -> None:
    check_every_flip(name)


def test_damaged_gzip_is_refused_by_both_libraries(gzip_library: str) -> None:
    check_every_cut("gzip")
    check_every_flip("gzip")


@pytest.mark.parametrize("name", sorted(set(CONCATENATED) - {"none"}))
def test_input_truncated_in_the_second_stream_is_refused(name: str) -> None:
    packed = PACK[name](SAMPLE)
    for cut in range(1, len(packed), 3):
        with pytest.raises(TruncatedStream):
            unpack(name, packed + packed[:cut], 1 + cut)


@pytest.mark.parametrize("input_size", [1, 7, 65536])
@pytest.mark.parametrize("name", PACKED)
def test_trailing_garbage_is_refused(name: str, input_size: int) -> None:
    with pytest.raises(CorruptStream):
        unpack(name, PACK[name](SAMPLE) + b"\xff" * 32, input_size)


@pytest.mark.parametrize("length", [1, 3, 4, 20])
@pytest.mark.parametrize("name", sorted(set(PACKED) - {"xz"}))
def test_zeros_after_the_end_are_refused(name: str, length: int) -> None:
    with pytest.raises(CompressionError):
        unpack(name, PACK[name](SAMPLE) + bytes(length))


@given(st.binary(max_size=300))
def test_random_input_raises_only_compression_errors(noise: bytes) -> None:
    for name in PACKED:
        # Some random input is a valid stream, such as the byte "3" for brotli.
        for packed in (noise, PACK[name](SAMPLE)[:30] + noise):
            with contextlib.suppress(CompressionError):
                unpack(name, packed, 64)


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKED)
def test_a_decompression_bomb_is_unpacked_in_bounded_memory(name: str) -> None:
    packed = PACK[name](bytes(40 * MIB))
    before = _reset_peak()
    size = 0
    for chunk in decompress(name, [packed]):
        assert len(chunk) <= 256 * 1024
        size += len(chunk)
    assert size == 40 * MIB
    assert _peak() - before < 16 * MIB


@pytest.mark.parametrize("name", CONCATENATED)
def test_many_tiny_streams_are_unpacked(name: str) -> None:
    packed = PACK[name](b"x")
    assert unpack(name, packed * 2000, 1 << 20) == b"x" * 2000


def _reset_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM
    return _peak()


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def zstd_window(exponent: int, mantissa: int = 0) -> bytes:
    """Return an empty frame: magic number, descriptor, window descriptor, and a last raw block without contents."""
    return b"\x28\xb5\x2f\xfd\x00" + bytes([(exponent - 10) << 3 | mantissa]) + b"\x01\x00\x00"


def zstd_single_segment(size: int) -> bytes:
    return b"\x28\xb5\x2f\xfd\xe0" + size.to_bytes(8, "little") + b"\x01\x00\x00"


def xz_dictionary(coded: int) -> bytes:
    """Return a stream whose block header requires another dictionary (xz file format, sections 3.1 and 5.3.1)."""
    packed = PACK["xz"](SAMPLE)
    size = 4 * (packed[12] + 1)
    header = bytearray(packed[12 : 12 + size - 4])
    assert header[2:4] == b"\x21\x01"  # LZMA2, one byte of properties
    header[4] = coded
    return packed[:12] + bytes(header) + struct.pack("<I", zlib.crc32(header)) + packed[12 + size :]


def lzma_dictionary(size: int) -> bytes:
    packed = PACK["lzma"](SAMPLE)
    return packed[:1] + struct.pack("<I", size) + packed[5:]


@pytest.mark.parametrize(
    ("name", "packed", "output"),
    [
        ("zstd", zstd_window(26), b""),
        ("xz", xz_dictionary(28), SAMPLE),
        ("lzma", lzma_dictionary(64 * MIB), SAMPLE),
        ("lzip", lzip(SAMPLE, 26), SAMPLE),
        ("lzip", lzip(SAMPLE, 26 | 7 << 5), SAMPLE),
    ],
)
def test_windows_up_to_64_mib_are_accepted(name: str, packed: bytes, output: bytes) -> None:
    assert unpack(name, packed) == output


@pytest.mark.parametrize(
    ("name", "packed"),
    [
        ("zstd", zstd_window(26, 1)),
        ("zstd", zstd_window(41, 7)),
        ("zstd", zstd_single_segment(64 * MIB + 1)),
        ("zstd", zstd_single_segment((1 << 64) - 1)),
        ("xz", xz_dictionary(29)),
        ("xz", xz_dictionary(40)),
        ("lzma", lzma_dictionary(96 * MIB)),
        ("lzip", lzip(SAMPLE, 27)),
        ("lzip", lzip(SAMPLE, 29)),
    ],
)
def test_larger_windows_are_refused(name: str, packed: bytes) -> None:
    with pytest.raises(CorruptStream, match=rf"{name}: needs a (window|dictionary) of .*64 MiB"):
        unpack(name, packed)


@pytest.mark.parametrize("coded", [0, 11, 30, 31])
def test_lzip_dictionary_sizes_out_of_bounds_are_refused(coded: int) -> None:
    with pytest.raises(CorruptStream, match="lzip: the format does not allow this dictionary size"):
        unpack("lzip", lzip(SAMPLE, coded))


@pytest.mark.parametrize("place", [-20, -16, -8], ids=["crc32", "data size", "member size"])
def test_the_lzip_trailer_is_checked(place: int) -> None:
    packed = bytearray(lzip(SAMPLE))
    packed[place] ^= 1
    with pytest.raises(CorruptStream, match="trailer"):
        unpack("lzip", bytes(packed))
