"""NARs as seekable zstd: independent frames, and a seek table in a skippable frame at the end.

The format is zstd's own (contrib/seekable_format/zstd_seekable_compression_format.md). Any zstd decoder unpacks such a file as a
whole, because decoders skip the seek table. The Python package ``zstandard`` has no reader or writer for this
format.
"""

import hashlib
import struct
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Self

from narcore.errors import CorruptStream
from narcore.formats.listing import ListingBuilder, NarListing
from narcore.formats.nar.events import NarEvent, Regular
from narcore.formats.nar.parser import NarParser

FRAME_SIZE = 1 << 20
"""The largest frame, in unpacked bytes. To read one byte, a reader fetches and unpacks a whole frame. But smaller frames compress
worse: compared with a single frame, a file is 6.4 % larger with frames of 256 KiB, 2.7 % with 1 MiB, and 0.6 % with 4 MiB (measured
with shared libraries, level 3)."""

OWN_FRAMES_SIZE = 256 << 10
"""A file larger than this (in bytes) has frames that contain no bytes of other files. So reading it unpacks no other file."""

FRAMES_MAX = 1 << 20
"""The largest number of frames in one table. It is enough for every NAR of up to 85 GiB, because any three adjacent frames contain
more than OWN_FRAMES_SIZE bytes."""

LEVEL = 3

_SKIPPABLE = 0x184D2A5E
_SEEKABLE = 0x8F92EAB1
_HEADER = struct.Struct("<II")  # magic number, size of the rest
_FOOTER = struct.Struct("<IBI")  # number of frames, descriptor, magic number
_CHECKSUMS = 0x80  # descriptor: each entry has a checksum
_RESERVED = 0x7C


@dataclass(frozen=True, slots=True)
class SeekTable:
    """The positions of the frames.

    ``packed[i]`` is the offset of frame i in the file, and ``unpacked[i]`` is its offset in the contents. Each has one more entry:
    the end of the last frame.
    """

    packed: Sequence[int]
    unpacked: Sequence[int]

    @classmethod
    def of_sizes(cls, sizes: Sequence[tuple[int, int]]) -> Self:
        """Return the table of frames of these packed and unpacked sizes."""
        return cls(
            tuple(accumulate((packed for packed, _ in sizes), initial=0)),
            tuple(accumulate((unpacked for _, unpacked in sizes), initial=0)),
        )

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read the table at the end of ``data``, the last bytes of a file. Raises CorruptStream if there is no complete table."""
        count, entry = _footer(data)
        size = count * entry.size + _FOOTER.size
        start = len(data) - size - _HEADER.size
        if start < 0:
            raise CorruptStream("zstd: the seek table is incomplete")
        if _HEADER.unpack_from(data, start) != (_SKIPPABLE, size):
            raise CorruptStream("zstd: the seek table has a wrong size")
        entries = entry.iter_unpack(data[start + _HEADER.size : -_FOOTER.size])
        return cls.of_sizes([(packed, unpacked) for packed, unpacked, *_ in entries])

    @staticmethod
    def size_at_end(data: bytes) -> int:
        """Return the size in bytes of the frame that has the table. ``data`` is the end of the file.

        Only the last 9 bytes of the file are needed. Raises CorruptStream if they are not the end of a table.
        """
        count, entry = _footer(data)
        return _HEADER.size + count * entry.size + _FOOTER.size

    def to_bytes(self) -> bytes:
        """Return the table as the skippable frame that ends a file, without checksums."""
        size = 8 * len(self) + _FOOTER.size
        offsets = zip(self.packed, self.packed[1:], self.unpacked, self.unpacked[1:], strict=False)
        entries = [_HEADER.pack(end - start, stop - begin) for start, end, begin, stop in offsets]
        return b"".join((_HEADER.pack(_SKIPPABLE, size), *entries, _FOOTER.pack(len(self), 0, _SEEKABLE)))

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.packed) - 1

    def covering(self, start: int, stop: int) -> range:
        """Return the frames that contain the bytes ``start`` to ``stop`` of the contents. The range must not be empty."""
        return range(bisect_right(self.unpacked, start) - 1, bisect_left(self.unpacked, stop))


def _footer(data: bytes) -> tuple[int, struct.Struct]:
    """Return the number of frames and the layout of an entry, from the footer of a table. Raises CorruptStream."""
    if len(data) < _FOOTER.size:
        raise CorruptStream("zstd: no seek table")
    count, descriptor, magic = _FOOTER.unpack_from(data, len(data) - _FOOTER.size)
    if magic != _SEEKABLE or descriptor & _RESERVED or count > FRAMES_MAX:
        raise CorruptStream("zstd: no seek table, or it is too large")
    return count, struct.Struct("<III" if descriptor & _CHECKSUMS else "<II")


class FrameCutter:
    """Cuts a NAR into the contents of frames, as `FRAME_SIZE` and `OWN_FRAMES_SIZE` require. Also makes the listing."""

    def __init__(self) -> None:
        self._parser = NarParser(contents=False)
        self._builder = ListingBuilder()
        self._cuts: deque[int] = deque()  # the offsets at which large files begin and end
        self._frame = bytearray()
        self._position = 0  # how many bytes of the NAR have been cut

    def receive(self, chunk: bytes) -> Iterator[bytes]:
        """Add the next bytes, and yield the frames that are complete. Raises NarError if this is not a NAR."""
        self._parser.receive_data(chunk)
        self._builder.add_all(self._noted(self._parser.events()))
        rest = memoryview(chunk)
        while rest:
            end = self._next_cut()
            if end == self._position:
                yield from self._flush()
                continue
            taken = rest[: end - self._position]
            self._frame += taken
            self._position += len(taken)
            rest = rest[len(taken) :]

    def finish(self) -> Iterator[bytes]:
        """Yield the last frame. Raises NarError if the NAR is incomplete."""
        self._parser.receive_eof()
        self._builder.add_all(self._parser.events())
        yield from self._flush()

    def listing(self) -> NarListing:
        """Return the listing of the NAR, after `finish`."""
        return self._builder.finish()

    def _noted(self, events: Iterable[NarEvent]) -> Iterator[NarEvent]:
        for event in events:
            if isinstance(event, Regular) and event.size > OWN_FRAMES_SIZE:
                self._cuts += (event.nar_offset, event.nar_offset + event.size)
            yield event

    def _next_cut(self) -> int:
        """Return the offset in the NAR at which the current frame must end."""
        while self._cuts and self._cuts[0] == self._position - len(self._frame):  # the frame begins there
            self._cuts.popleft()
        full = self._position - len(self._frame) + FRAME_SIZE
        return min(full, self._cuts[0]) if self._cuts else full

    def _flush(self) -> Iterator[bytes]:
        if self._frame:
            yield bytes(self._frame)
            self._frame.clear()


class SeekableNar:
    """The seekable zstd file of a NAR, as an iterator over its bytes: one frame at a time, then the table.

    The attributes and properties are complete after the last byte was returned. ``digests`` are the SHA-256 digests of the packed
    frames.
    """

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = chunks
        self._cutter = FrameCutter()
        self._sizes: list[tuple[int, int]] = []
        self._hash = hashlib.sha256()
        self.digests: list[bytes] = []
        self.file_size = 0

    def __iter__(self) -> Iterator[bytes]:
        """Yield the file. Raises NarError, and the errors of the chunks."""
        import zstandard

        # With the checksum, `zstd -t` detects damage. The level is fixed and no threads are used: one NAR gives one file.
        compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True, write_content_size=True)
        for frame in self._frames():
            packed = compressor.compress(frame)
            self._sizes.append((len(packed), len(frame)))
            self.digests.append(hashlib.sha256(packed).digest())
            yield self._counted(packed)
        yield self._counted(self.table.to_bytes())

    @property
    def table(self) -> SeekTable:
        return SeekTable.of_sizes(self._sizes)

    @property
    def listing(self) -> NarListing:
        return self._cutter.listing()

    @property
    def file_digest(self) -> bytes:
        """The SHA-256 digest of the file."""
        return self._hash.digest()

    def _frames(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            yield from self._cutter.receive(chunk)
        yield from self._cutter.finish()

    def _counted(self, data: bytes) -> bytes:
        self._hash.update(data)
        self.file_size += len(data)
        return data
