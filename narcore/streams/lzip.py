"""The decoder of lzip members (the lzip manual, chapter "File format").

::

    member  = "LZIP" version=1 dictionary-size(1) lzma-stream crc32(4) data-size(8) member-size(8)

The LZMA stream has lc=3 lp=0 pb=2 and ends with an end marker, at which liblzma's raw decoder stops.
"""

import lzma
import struct
import zlib

from narcore.streams.decoders import MAX_WINDOW

_MAGIC = b"LZIP\x01"
_HEADER_SIZE = 6
_TRAILER = struct.Struct("<IQQ")


class LzipError(Exception):
    """An invalid member. This package converts the error to CorruptStream."""


class LzipDecoder:
    """Unpacks one member and checks its trailer, with the interface of ``bz2.BZ2Decompressor``."""

    __slots__ = ("_crc", "_header", "_inner", "_packed_size", "_size", "_trailer", "eof", "unused_data")

    def __init__(self) -> None:
        self.eof = False
        self.unused_data = b""
        self._header = b""
        self._inner: lzma.LZMADecompressor | None = None
        self._trailer = b""
        self._crc = 0
        self._size = 0
        self._packed_size = _HEADER_SIZE + _TRAILER.size

    @property
    def needs_input(self) -> bool:
        return self._inner is None or self._inner.eof or self._inner.needs_input

    def decompress(self, data: bytes, max_length: int) -> bytes:
        if self._inner is None:
            data = self._read_header(data)
        if self._inner is None:
            return b""
        output = b""
        if not self._inner.eof:
            output, data = self._read_stream(self._inner, data, max_length)
        if self._inner.eof:
            self._read_trailer(data)
        return output

    def _read_header(self, data: bytes) -> bytes:
        missing = _HEADER_SIZE - len(self._header)
        self._header += data[:missing]
        if not (_MAGIC.startswith(self._header) or self._header.startswith(_MAGIC)):
            raise LzipError("not an lzip member of version 1")
        if len(self._header) == _HEADER_SIZE:
            self._inner = _raw_decoder(dictionary_size(self._header[-1]))
        return data[missing:]

    def _read_stream(self, inner: lzma.LZMADecompressor, data: bytes, max_length: int) -> tuple[bytes, bytes]:
        output = inner.decompress(data, max_length)
        rest = inner.unused_data if inner.eof else b""
        self._packed_size += len(data) - len(rest)
        self._crc = zlib.crc32(output, self._crc)
        self._size += len(output)
        return output, rest

    def _read_trailer(self, data: bytes) -> None:
        missing = _TRAILER.size - len(self._trailer)
        self._trailer += data[:missing]
        if len(self._trailer) < _TRAILER.size:
            return
        if _TRAILER.unpack(self._trailer) != (self._crc, self._size, self._packed_size):
            raise LzipError("the trailer does not match the member")
        self.unused_data = data[missing:]
        self.eof = True


def dictionary_size(coded: int) -> int:
    """Return the dictionary size in bytes that the byte ``coded`` of a header stands for.

    Bits 4-0 are the base 2 logarithm of a base size. Bits 7-5 say how many sixteenths of the base size to subtract. Raises
    LzipError if the size is out of bounds.
    """
    base = 1 << (coded & 0x1F)
    size = base - (base >> 4) * (coded >> 5)
    if not 1 << 12 <= size <= 1 << 29:
        raise LzipError("the format does not allow this dictionary size")
    if size > MAX_WINDOW:
        raise LzipError(f"needs a dictionary of more than {MAX_WINDOW >> 20} MiB")
    return size


def _raw_decoder(size: int) -> lzma.LZMADecompressor:
    lzma1 = {"id": lzma.FILTER_LZMA1, "dict_size": size, "lc": 3, "lp": 0, "pb": 2}
    return lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=[lzma1])
