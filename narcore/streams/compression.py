"""From compressed chunks to plain ones, for every name that a narinfo's ``Compression`` may hold and we support."""

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

# Of those with a codec, one that needs a package is made at first use: importing this module stays cheap.
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

# Names that Nix can write and that no maintained Python package reads.
_REFUSED = frozenset({"compress", "grzip", "lrzip", "lzop"})

_MAGICS = ((b"\x28\xb5\x2f\xfd", "zstd"), (b"\xfd7zXZ\x00", "xz"), (b"\x1f\x8b", "gzip"), (b"{", "none"))


def decompress(name: str, chunks: Iterable[bytes], *, chunk_size: int = CHUNK_SIZE) -> Iterator[bytes]:
    """Unpack ``chunks`` with the compression ``name`` (as in a narinfo) into chunks of 1 to ``chunk_size`` bytes.

    Memory is bounded by the window of the stream (at most 64 MiB, more is refused) and a few chunks, whatever the
    input. Streams, frames or members may follow one another, except for ``br``, which has no such form.

    Raises UnknownCompression at once, and from the iterator TruncatedStream where the input ends too early or is empty,
    and CorruptStream for anything that the codec refuses, trailing bytes included. Not every codec has check sums: only
    the NAR's hash tells whether the bytes are right. ``chunks`` is closed with the iterator, or when this raises.
    """
    try:
        body = _unpack(name, chunks, chunk_size)
    except UnknownCompression:
        close(chunks)
        raise
    return Stage(body, chunks)


def sniff(head: bytes) -> str:
    """The compression of a NAR listing by its first bytes; what has no magic number is taken for brotli."""
    for magic, name in _MAGICS:
        if head.startswith(magic):
            return name
    return "br"


def unpack_small(packed: bytes, limit: int) -> bytes:
    """A small file, whatever its encoding: its first bytes tell. Raises CompressionError, also for more than ``limit`` bytes."""
    unpacked = bytearray()
    for chunk in decompress(sniff(packed[:8]), [packed]):
        unpacked += chunk
        if len(unpacked) > limit:
            raise CorruptStream(f"a small file of more than {limit} bytes")
    return bytes(unpacked)


def _unpack(name: str, chunks: Iterable[bytes], chunk_size: int) -> Iterator[bytes]:
    if name == "none":
        return _split(chunks, chunk_size)
    if name == "zstd":
        return unpack_zstd(chunks, chunk_size)
    if name in _CODECS:
        return unpack_members(_CODECS[name](), chunks, chunk_size)
    fault = "is not supported" if name in _REFUSED else "is unknown"
    raise UnknownCompression(f"compression {name!r} {fault}; supported are: {', '.join(sorted(SUPPORTED))}")


def _split(chunks: Iterable[bytes], chunk_size: int) -> Iterator[bytes]:
    for chunk in chunks:
        for start in range(0, len(chunk), chunk_size):
            yield chunk[start : start + chunk_size]
