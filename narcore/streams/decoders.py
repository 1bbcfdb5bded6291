"""Decoders with the interface of `members.Decoder`, for libraries that have another interface or may not be installed."""

import functools
import lzma
import zlib
from collections.abc import Callable

from narcore.errors import UnknownCompression, how_to_install
from narcore.streams.members import Codec, Decoder

# The limit of a window in bytes. A window is how far back a stream may refer to its own output; its decoder keeps this output in
# memory. `xz -9` and `zstd -21` need this much, `lzip -9` needs 32 MiB, brotli at most 16 MiB. Only `zstd --ultra -22` needs more,
# for files above 64 MiB. Nix writes frames of 16 MiB; a NAR on cache.nixos.org is one frame of level 19, with a window of 8 MiB.
MAX_WINDOW = 1 << 26

# liblzma counts its own tables in addition to the dictionary.
_LZMA_MEMORY = MAX_WINDOW + (1 << 20)

# brotli's `output_buffer_limit` is not a hard limit: the output grows in steps until it reaches the limit.
# With this value, it has up to 96 KiB.
_BROTLI_STEP = 64 * 1024


class LzmaDecoder:
    """``lzma.LZMADecompressor`` with a memory limit that its error message names."""

    __slots__ = ("_inner",)

    def __init__(self, container: int) -> None:
        self._inner = lzma.LZMADecompressor(format=container, memlimit=_LZMA_MEMORY)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return self._inner.needs_input

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        try:
            return self._inner.decompress(data, max_length)
        except lzma.LZMAError as error:
            # The exception has no code, only the message of liblzma.
            if "Memory usage limit" in str(error):
                raise lzma.LZMAError(f"needs a dictionary of more than {MAX_WINDOW >> 20} MiB") from error
            raise


class ZlibDecoder:
    """Decodes one gzip member with zlib, if isal is not installed."""

    __slots__ = ("_inner",)

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


class BrotliDecoder:
    """Decodes one brotli stream; the library itself refuses trailing bytes."""

    __slots__ = ("_inner", "_pending")

    unused_data = b""

    def __init__(self) -> None:
        import brotli

        self._inner = brotli.Decompressor()
        self._pending = b""

    @property
    def eof(self) -> bool:
        return not self._pending and bool(self._inner.is_finished())

    @property
    def needs_input(self) -> bool:
        return not self._pending and bool(self._inner.can_accept_more_data())

    def decompress(self, data: bytes, max_length: int) -> bytes:
        if not self._pending:
            self._pending = self._inner.process(data, output_buffer_limit=min(max_length, _BROTLI_STEP))
        output, self._pending = self._pending[:max_length], self._pending[max_length:]
        return output


def brotli_codec() -> Codec:
    import brotli

    return Codec("br", BrotliDecoder, (brotli.error,))


@functools.cache
def gzip_codec() -> Codec:
    """Return the gzip codec. Uses isal if it is installed, because isal is about three times as fast as zlib."""
    try:
        from isal import igzip_lib
    except ImportError:
        return Codec("gzip", ZlibDecoder, (zlib.error,))
    new_decoder: Callable[[], Decoder] = functools.partial(igzip_lib.IgzipDecompressor, flag=igzip_lib.DECOMP_GZIP)
    # isal's type stub declares the exception class as an instance.
    return Codec("gzip", new_decoder, (igzip_lib.IsalError,))  # type: ignore[arg-type]


def lz4_codec() -> Codec:
    """Return the lz4 codec. Raises UnknownCompression if the lz4 package is not installed."""
    try:
        import lz4.frame
    except ImportError as error:
        raise UnknownCompression(
            f"compression 'lz4' needs the package lz4, which is not installed; {how_to_install('lz4')}"
        ) from error
    return Codec("lz4", lz4.frame.LZ4FrameDecompressor, (RuntimeError,))
