"""Decompresses zstd with bounded memory: reads all frames and detects truncated input (RFC 8878, section 3.1).

Of the library's interfaces, only the stream reader is fast and has bounded memory, but it does not report truncated input.
Therefore `FrameWalker` follows the frames in the packed bytes that go into the stream reader. The walker parses only one header per
block, so it costs almost nothing.
"""

from collections.abc import Iterable, Iterator
from enum import Enum, auto

from narcore.concurrency.closing import stage
from narcore.errors import CorruptStream, TruncatedStream
from narcore.sizes import CHUNK_SIZE
from narcore.streams.decoders import MAX_WINDOW

_MAGIC = 0xFD2FB528
_SKIPPABLE = 0x184D2A50  # the first of 16 magic numbers, up to 0x184D2A5F
_RLE_BLOCK = 1
_RESERVED_BLOCK = 3


class _Part(Enum):
    """The kinds of bytes that the walker reads."""

    MAGIC = auto()
    DESCRIPTOR = auto()
    HEADER = auto()
    BLOCK = auto()
    SKIPPABLE_SIZE = auto()


class FrameWalker:
    """Follows frames without unpacking them.

    `receive` raises CorruptStream if a frame is invalid or needs too much memory.
    """

    __slots__ = ("_descriptor", "_part", "_partial", "_size", "_skip", "frames")

    def __init__(self) -> None:
        self.frames = 0  # the number of frames that have begun, including skippable ones
        self._part = _Part.MAGIC  # the next part to read
        self._size = 4  # the size of this part
        self._partial = b""  # the bytes of this part received so far
        self._skip = 0  # the number of bytes to skip before this part
        self._descriptor = 0

    @property
    def between_frames(self) -> bool:
        return self._part is _Part.MAGIC and not self._partial and not self._skip

    def receive(self, data: bytes) -> None:
        offset, end = 0, len(data)
        while True:
            if self._skip >= end - offset:
                self._skip -= end - offset
                return
            offset += self._skip
            self._skip = 0
            taken = data[offset : offset + self._size - len(self._partial)]
            offset += len(taken)
            self._partial += taken
            if len(self._partial) < self._size:
                return
            part, self._partial = self._partial, b""
            self._take(part)

    def _take(self, part: bytes) -> None:
        match self._part:
            case _Part.BLOCK:
                self._take_block(int.from_bytes(part, "little"))
            case _Part.MAGIC:
                self._take_magic(int.from_bytes(part, "little"))
            case _Part.SKIPPABLE_SIZE:
                self._skip = int.from_bytes(part, "little")
                self._expect(_Part.MAGIC, 4)
            case _Part.DESCRIPTOR:
                self._descriptor = part[0]
                self._expect(_Part.HEADER, _header_size(part[0]))
            case _Part.HEADER:
                _check_window(_window_size(self._descriptor, part))
                self._expect(_Part.BLOCK, 3)

    def _expect(self, part: _Part, size: int) -> None:
        self._part = part
        self._size = size

    def _take_magic(self, magic: int) -> None:
        self.frames += 1
        if magic == _MAGIC:
            self._expect(_Part.DESCRIPTOR, 1)
        elif magic & ~0xF == _SKIPPABLE:
            self._expect(_Part.SKIPPABLE_SIZE, 4)
        else:
            raise CorruptStream("zstd: expected the beginning of a frame")

    def _take_block(self, header: int) -> None:
        last, kind, size = header & 1, header >> 1 & 3, header >> 3
        if kind == _RESERVED_BLOCK:
            raise CorruptStream("zstd: a block of the reserved type")
        self._skip = 1 if kind == _RLE_BLOCK else size
        if last:
            self._skip += 4 if self._descriptor & 4 else 0  # the content checksum
            self._expect(_Part.MAGIC, 4)


def _header_size(descriptor: int) -> int:
    """Return the size of the fields between the descriptor and the first block (window, dictionary id, content size)."""
    single_segment = descriptor >> 5 & 1
    content_size = (single_segment, 2, 4, 8)[descriptor >> 6]
    return (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3] + content_size


def _window_size(descriptor: int, header: bytes) -> int:
    if not descriptor >> 5 & 1:
        base = 1 << 10 + (header[0] >> 3)
        return base + (base >> 3) * (header[0] & 7)
    content_size = header[(0, 1, 2, 4)[descriptor & 3] :]
    return int.from_bytes(content_size, "little") + (256 if len(content_size) == 2 else 0)


def _check_window(size: int) -> None:
    if size > MAX_WINDOW:
        raise CorruptStream(f"zstd: needs a window of {size} bytes, more than the allowed {MAX_WINDOW >> 20} MiB")


class _Source:
    """The library's input. `read` returns the next chunk and ignores the requested size, which avoids a copy."""

    __slots__ = ("_chunks", "walker")

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self.walker = FrameWalker()

    def read(self, size: int) -> bytes:
        for chunk in self._chunks:
            if chunk:
                self.walker.receive(chunk)
                return chunk
        return b""


def unpack_zstd(chunks: Iterable[bytes], chunk_size: int) -> Iterator[bytes]:
    """Unpack all frames into chunks of 1 to ``chunk_size`` bytes. Raises TruncatedStream and CorruptStream."""
    import zstandard

    source = _Source(chunks)
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
    # The library calls only `read` on its source; its type stub requires a complete file object.
    reader = decompressor.stream_reader(source, read_across_frames=True)  # type: ignore[arg-type]
    try:
        # read1 returns what is available; read would wait for a full chunk, which delays the first byte.
        while output := reader.read1(chunk_size):
            yield output
    except zstandard.ZstdError as error:
        raise CorruptStream(f"zstd: {error}") from error
    if not source.walker.between_frames or not source.walker.frames:
        raise TruncatedStream("zstd: the input ends before the end of a frame")


@stage
def unpack_whole_frames(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Unpack whole frames with a total unpacked size of ``size`` bytes. Raises TruncatedStream and CorruptStream."""
    for unpacked in unpack_zstd(chunks, CHUNK_SIZE):
        size -= len(unpacked)
        if size < 0:
            raise CorruptStream("zstd: the frames do not match the seek table")
        yield unpacked
    if size:
        raise TruncatedStream(f"zstd: the frames end {size} bytes too early")
