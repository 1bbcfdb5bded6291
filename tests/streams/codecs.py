"""Compressed samples for the tests of this folder, and a source that records reading and closing."""

import bz2
import gzip
import lzma
import struct
import zlib
from collections.abc import Callable, Iterator
from random import Random

import brotli
import lz4.frame
import zstandard

_WORDS = [bytes(Random(7).choices(b"etaoinshrdlu", k=1 + n % 9)) for n in range(80)]
SAMPLE = b" ".join(Random(11).choices(_WORDS, k=400)) + Random(13).randbytes(200)


def lzip(data: bytes, coded_dictionary: int = 20) -> bytes:
    """Return one lzip member, written from the description of the format; the dictionary has 1 MiB."""
    lzma1 = {"id": lzma.FILTER_LZMA1, "dict_size": 1 << 20, "lc": 3, "lp": 0, "pb": 2}
    stream = lzma.compress(data, lzma.FORMAT_RAW, filters=[lzma1])
    trailer = struct.pack("<IQQ", zlib.crc32(data), len(data), len(stream) + 26)
    return b"LZIP\x01" + bytes([coded_dictionary]) + stream + trailer


def _zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


def _br(data: bytes) -> bytes:
    return bytes(brotli.compress(data, quality=5))


def _lz4(data: bytes) -> bytes:
    return bytes(lz4.frame.compress(data, content_checksum=True, block_size=lz4.frame.BLOCKSIZE_MAX64KB))


PACK: dict[str, Callable[[bytes], bytes]] = {
    "none": bytes,
    "xz": lambda data: lzma.compress(data, preset=0),
    "bzip2": bz2.compress,
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "zstd": _zstd,
    "br": _br,
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE, preset=0),
    "lzip": lzip,
    "lz4": _lz4,
}

CONCATENATED = sorted(set(PACK) - {"br"})
PACKED = sorted(set(PACK) - {"none"})
CHECKED = sorted(set(PACK) - {"none", "br", "lzma"})  # the formats with checksums of their contents


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


class Source(Iterator[bytes]):
    """Chunks, then an error if there is one. Counts the chunks read, and records whether it was closed."""

    def __init__(self, *chunks: bytes, error: Exception | None = None) -> None:
        self._chunks = iter(chunks)
        self._error = error
        self.read = 0
        self.closed = False

    def __next__(self) -> bytes:
        for chunk in self._chunks:
            self.read += 1
            return chunk
        if self._error:
            raise self._error
        raise StopIteration

    def close(self) -> None:
        self.closed = True
