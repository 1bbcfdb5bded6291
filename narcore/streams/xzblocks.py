"""Random access to an xz file with several blocks, through the index at its end.

One ``.xz`` stream is ``header block* index footer`` (the .xz file format, version 1.1, section 2). The footer contains the size of
the index. The index contains the packed and unpacked size of each block. So each block can be found and unpacked without the
others.
"""

import lzma
import struct
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Self

from narcore.concurrency.closing import Stage
from narcore.errors import CorruptStream, TruncatedStream
from narcore.sizes import CHUNK_SIZE
from narcore.streams.decoders import LzmaDecoder

HEADER_SIZE = FOOTER_SIZE = 12

_HEADER_MAGIC = b"\xfd7zXZ\x00"
_FOOTER_MAGIC = b"YZ"
_BLOCKS_MAX = 1 << 20  # a terabyte in blocks of a megabyte


@dataclass(frozen=True, slots=True)
class XzFooter:
    """The last 12 bytes of a stream: the size in bytes of the index before the footer, and flags that the header repeats."""

    index_size: int
    flags: bytes

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read the footer. Raises CorruptStream if it is invalid."""
        if len(data) != FOOTER_SIZE or data[10:] != _FOOTER_MAGIC or zlib.crc32(data[4:10]) != _u32(data[:4]):
            raise CorruptStream("xz: not the footer of a stream")
        return cls((_u32(data[4:8]) + 1) * 4, data[8:10])

    @property
    def header(self) -> bytes:
        """The header that the stream must begin with."""
        return _HEADER_MAGIC + self.flags + struct.pack("<I", zlib.crc32(self.flags))


@dataclass(frozen=True, slots=True)
class XzIndex:
    """The positions of the blocks.

    ``packed[i]`` and ``unpacked[i]`` are the offsets of block i in the file and in the contents. Each has one more entry, for the
    end of the last block.
    """

    packed: tuple[int, ...]
    unpacked: tuple[int, ...]

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read ``data``, the complete index field. Raises CorruptStream if it is invalid."""
        if len(data) < 8 or data[0] != 0 or zlib.crc32(data[:-4]) != _u32(data[-4:]):
            raise CorruptStream("xz: not an index")
        numbers = _numbers(data, 1)
        count = next(numbers)
        if count > min(_BLOCKS_MAX, len(data) // 2):
            raise CorruptStream(f"xz: the index has {count} blocks, which is too many")
        sizes = [(next(numbers), next(numbers)) for _ in range(count)]
        return cls(
            tuple(accumulate((size + -size % 4 for size, _ in sizes), initial=HEADER_SIZE)),
            tuple(accumulate((size for _, size in sizes), initial=0)),
        )

    def __len__(self) -> int:
        return len(self.packed) - 1

    def covering(self, start: int, stop: int) -> range:
        """Return the blocks that contain the bytes ``start`` to ``stop`` (exclusive) of the contents; ``start < stop``."""
        return range(bisect_right(self.unpacked, start) - 1, bisect_left(self.unpacked, stop))


def unpack_blocks(header: bytes, chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Unpack consecutive whole blocks of a stream that begins with ``header``; ``size`` is their total unpacked size in bytes.

    Raises CorruptStream, also if a block's checksum is wrong, and TruncatedStream.
    """
    return Stage(_unpack(header, chunks, size), chunks)


def _unpack(header: bytes, chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    decoder = LzmaDecoder(lzma.FORMAT_XZ)
    for packed in chain([header], chunks):
        rest = packed
        while True:
            try:
                unpacked = decoder.decompress(rest, CHUNK_SIZE)
            except lzma.LZMAError as error:
                raise CorruptStream(f"xz: {error}") from error
            size -= len(unpacked)
            if size < 0 or decoder.eof:
                raise CorruptStream("xz: the blocks do not match the index")
            if unpacked:
                yield unpacked
            if decoder.needs_input:
                break
            rest = b""
    if size:
        raise TruncatedStream(f"xz: the blocks end {size} bytes too early")


def _numbers(data: bytes, position: int) -> Iterator[int]:
    """Yield the multibyte integers (section 1.2) of an index, up to its checksum."""
    end = len(data) - 4
    while True:
        number = shift = 0
        while True:
            if position >= end or shift > 56:
                raise CorruptStream("xz: a number in the index is truncated or too long")
            byte = data[position]
            position += 1
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        yield number


def _u32(data: bytes) -> int:
    return int.from_bytes(data, "little")
