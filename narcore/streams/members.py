"""The decompression loop for all codecs whose files are concatenated streams, frames or members."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

from narcore.errors import CorruptStream, TruncatedStream

# A decoder gets its input in pieces of this many bytes, because it copies unused input from one call to the next. Measured: pieces
# of 32 to 256 KiB are unpacked equally fast. With smaller pieces, less is copied in a file of many tiny members.
FEED_SIZE = 64 * 1024


class Decoder(Protocol):
    """The interface of a decoder of one member. ``bz2.BZ2Decompressor`` has the same interface."""

    @property
    def eof(self) -> bool:
        """Whether the end of the member was reached, with correct checksums."""

    @property
    def needs_input(self) -> bool:
        """False if more output is available without further input."""

    @property
    def unused_data(self) -> bytes | None:
        """The part of the last input after the member; valid once ``eof`` is true."""

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        """Decode ``data`` and return at most ``max_length`` bytes of output."""


class Codec(NamedTuple):
    """How to unpack the members of one compression."""

    name: str
    new_decoder: Callable[[], Decoder]
    errors: tuple[type[Exception], ...]  # the exceptions of the library for bad input
    padding: int = 0  # zero bytes may follow a member in multiples of this number; 0: no padding is allowed


def unpack_members(codec: Codec, chunks: Iterable[bytes], chunk_size: int) -> Iterator[bytes]:
    """Unpack all members of ``chunks`` into chunks of 1 to ``chunk_size`` bytes.

    Raises TruncatedStream if the input ends inside a member or is empty, and CorruptStream if the decoder refuses the input,
    including bytes after the last member.
    """
    decoder = codec.new_decoder()
    zeros = 0
    for data in _pieces(chunks):
        while data:
            if decoder.eof:
                data, zeros = _skip_padding(codec, data, zeros)
                if not data:
                    break
                decoder, zeros = codec.new_decoder(), 0
            yield from _unpack_piece(codec, decoder, data, chunk_size)
            data = (decoder.unused_data or b"") if decoder.eof else b""
    yield from _drain(codec, decoder, chunk_size)
    if zeros:
        raise TruncatedStream(f"{codec.name}: the padding at the end is not a multiple of {codec.padding} bytes")


def _pieces(chunks: Iterable[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        for start in range(0, len(chunk), FEED_SIZE):
            yield chunk[start : start + FEED_SIZE]


def _skip_padding(codec: Codec, data: bytes, zeros: int) -> tuple[bytes, int]:
    """Return ``data`` without leading zero bytes, and the number of zero bytes so far modulo the codec's padding."""
    if not codec.padding:
        return data, 0
    rest = data.lstrip(b"\0")
    zeros = (zeros + len(data) - len(rest)) % codec.padding
    if rest and zeros:
        raise CorruptStream(f"{codec.name}: the padding between streams is not a multiple of {codec.padding} bytes")
    return rest, zeros


def _unpack_piece(codec: Codec, decoder: Decoder, data: bytes, chunk_size: int) -> Iterator[bytes]:
    if output := _decompress(codec, decoder, data, chunk_size):
        yield output
    while not decoder.needs_input and not decoder.eof:
        if output := _decompress(codec, decoder, b"", chunk_size):
            yield output


def _drain(codec: Codec, decoder: Decoder, chunk_size: int) -> Iterator[bytes]:
    """Yield the remaining output: isal, zlib and brotli may still hold output after they have taken all input."""
    while not decoder.eof:
        if output := _decompress(codec, decoder, b"", chunk_size):
            yield output
        elif not decoder.eof:
            raise TruncatedStream(f"{codec.name}: the input ends before the end of the stream")


def _decompress(codec: Codec, decoder: Decoder, data: bytes, chunk_size: int) -> bytes:
    try:
        return decoder.decompress(data, chunk_size)
    except codec.errors as error:
        raise CorruptStream(f"{codec.name}: {error}") from error
