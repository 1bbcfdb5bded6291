"""Decompression of streams, for each supported value of a narinfo's ``Compression``.

A new compression needs a line in ``_CODECS``; its decoder goes into ``decoders.py``, or into a module of its own. If listings can
be compressed with it, ``_MAGICS`` also needs the first bytes of its files. zstd has a module of its own, because the limits of its
frames have to be checked.
"""

import bz2
import functools
import lzma
from collections.abc import Callable, Iterable, Iterator

from narcore.concurrency.closing import Stage, close
from narcore.errors import CorruptStream, UnknownCompression
from narcore.sizes import CHUNK_SIZE
from narcore.streams.decoders import LzmaDecoder, brotli_codec, gzip_codec, lz4_codec
from narcore.streams.lzip import LzipDecoder, LzipError
from narcore.streams.members import Codec, unpack_members
from narcore.streams.zstd import unpack_zstd

# The xz file format, section 2.2: stream padding is zero bytes, in multiples of four.
_XZ = Codec("xz", functools.partial(LzmaDecoder, lzma.FORMAT_XZ), (lzma.LZMAError,), padding=4)
_LZMA = Codec("lzma", functools.partial(LzmaDecoder, lzma.FORMAT_ALONE), (lzma.LZMAError,))
_BZIP2 = Codec("bzip2", bz2.BZ2Decompressor, (OSError,))
_LZIP = Codec("lzip", LzipDecoder, (LzipError, lzma.LZMAError))

# Each codec is created at first use, so that importing this module stays cheap even if a codec needs a package.
_CODECS: dict[str, Callable[[], Codec]] = {
    "xz": lambda: _XZ,
    "bzip2": lambda: _BZIP2,
    "gzip": gzip_codec,
    "br": brotli_codec,
    "lzma": lambda: _LZMA,
    "lzip": lambda: _LZIP,
    "lz4": lz4_codec,
}

SUPPORTED = frozenset({"none", "zstd", *_CODECS})

# Compressions that Nix can write but that no maintained Python package reads.
_REFUSED = frozenset({"compress", "grzip", "lrzip", "lzop"})

_MAGICS = ((b"\x28\xb5\x2f\xfd", "zstd"), (b"\xfd7zXZ\x00", "xz"), (b"\x1f\x8b", "gzip"), (b"{", "none"))


def decompress(name: str, chunks: Iterable[bytes], *, chunk_size: int = CHUNK_SIZE) -> Iterator[bytes]:
    """Decompress ``chunks`` with the compression ``name`` (as in a narinfo) into chunks of 1 to ``chunk_size`` bytes.

    Memory is bounded for any input: by the window of the stream (a window of more than 64 MiB is refused) and a few chunks.
    The input may contain several streams, frames or members, one after another, except for ``br``: its format forbids that.

    Raises UnknownCompression immediately. The iterator raises TruncatedStream if the input ends too early or is empty, and
    CorruptStream if the codec refuses the input, including trailing bytes. Some formats have no checksums, so only the
    NarHash proves that the output is correct. ``chunks`` is closed together with the iterator, or if this function raises.
    """
    try:
        body = _unpack(name, chunks, chunk_size)
    except UnknownCompression:
        close(chunks)
        raise
    return Stage(body, chunks)


def sniff(head: bytes) -> str:
    """Return the compression of a listing or a narinfo, judged by its first bytes; ``br`` if they are not a known magic number."""
    for magic, name in _MAGICS:
        if head.startswith(magic):
            return name
    return "br"


def unpack_small(packed: bytes, limit: int) -> bytes:
    """Decompress a small file with the compression that `sniff` finds. Raises CompressionError.

    Output of more than ``limit`` bytes is an error, too.
    """
    unpacked = bytearray()
    for chunk in decompress(sniff(packed[:8]), [packed]):
        unpacked += chunk
        if len(unpacked) > limit:
            raise CorruptStream(f"the unpacked file has more than {limit} bytes")
    return bytes(unpacked)


def _unpack(name: str, chunks: Iterable[bytes], chunk_size: int) -> Iterator[bytes]:
    if name == "none":
        return _split(chunks, chunk_size)
    if name == "zstd":
        return unpack_zstd(chunks, chunk_size)
    if name in _CODECS:
        return unpack_members(_CODECS[name](), chunks, chunk_size)
    fault = "is not supported" if name in _REFUSED else "is unknown"
    raise UnknownCompression(f"compression {name!r} {fault}; supported: {', '.join(sorted(SUPPORTED))}")


def _split(chunks: Iterable[bytes], chunk_size: int) -> Iterator[bytes]:
    for chunk in chunks:
        for start in range(0, len(chunk), chunk_size):
            yield chunk[start : start + chunk_size]
