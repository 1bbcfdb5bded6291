"""Ranges of a NAR from the remote file, if a range can be read without the rest of the file: see ``RemoteParts``."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from narcore.cache.layout import NarKey
from narcore.concurrency.closing import Stage, close
from narcore.concurrency.lru import LruMemory
from narcore.errors import CompressionError, CorruptStream, NarcoreError, StoreError, StoreUnavailable, TruncatedStream
from narcore.formats.listing import Node, contents_prefix
from narcore.lookup.pathinfo import PathInfo
from narcore.nars.accessor import NarBytes
from narcore.stores.base import StoreFile
from narcore.streams.slicing import skip_and_drain
from narcore.streams.xzblocks import FOOTER_SIZE, XzFooter, XzIndex, unpack_blocks
from narcore.streams.zstd import unpack_whole_frames
from narcore.tier.seekable import SeekTable

# In bytes. Up to this size, a download of the whole NAR takes no longer than a range: most of the time is the round trip.
WHOLE_SIZE = 1 << 20

# In bytes. If Nix writes several xz blocks, each has 24 MiB; most zstd files have no seek table. For a NAR below this size, a
# request for the index or the seek table would usually be wasted.
BLOCKS_SIZE = 32 << 20

# In bytes. Large enough to get the footer and the index of about 400 blocks or frames in one request.
TAIL_SIZE = 4096
INDEX_LIMIT = 8 << 20

# At most this many ranges of one NAR are read at the same time. For more readers, the whole NAR is fetched once instead.
AT_ONCE = 2

# The tag is the bytes of the NAR before the contents of a file; it includes their length. If the requested bytes begin at most this
# many bytes after the tag begins, one request reads both. Otherwise a separate request reads the tag.
NEAR = 64 << 10

# How long no range of a remote file is requested after ranges of this file could not be read.
REFUSED_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Blocks:
    """The blocks of the NAR's file: the blocks in an xz index, or the frames in a zstd seek table.

    ``index`` is None for an uncompressed file, of which any range can be read. ``header`` is the stream header of an xz file.
    """

    header: bytes = b""
    index: XzIndex | SeekTable | None = None

    def widened(self, start: int, stop: int) -> tuple[int, int]:
        """Return the smallest readable range of the NAR that contains ``start`` to ``stop``."""
        if self.index is None:
            return start, stop
        blocks = self.index.covering(start, stop)
        return self.index.unpacked[blocks.start], self.index.unpacked[blocks.stop]


class RemoteParts:
    """Reads ranges of a NAR whose file is uncompressed, xz with several blocks, or zstd with a seek table. Thread-safe.

    The bytes can't be verified, because the NarHash covers the whole NAR. Only two things are checked: the store sends exactly the
    requested range of a file of the right size, and the tag, which includes the length, precedes the contents in the NAR.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._busy: dict[NarKey, int] = {}
        self._spent: LruMemory[NarKey, int] = LruMemory(10_000)
        self._blocks: LruMemory[tuple[str, str], Blocks] = LruMemory(1 << 20)
        self._refused: LruMemory[tuple[str, str], bool] = LruMemory(10_000)

    def read(self, info: PathInfo, node: Node, start: int, stop: int, *, cheap: bool) -> NarBytes | None:
        """Read bytes ``start`` to ``stop`` of the NAR, all within the contents of ``node``; None if the range can't be read.

        With ``cheap``, also returns None if fetching the whole NAR costs less: the NAR is small, this range and the earlier ranges
        add up to more than half of it, or AT_ONCE of its ranges are being read.
        """
        place = (info.store.url, info.narinfo.url)
        key = info.nar_key
        if self._refused.get(place) or (cheap and key.size <= WHOLE_SIZE) or not self._enter(key, cheap=cheap):
            return None
        chunks: Iterator[bytes] | None = None
        try:
            chunks = self._find(info, key, node, start, stop, cheap=cheap)
        except StoreUnavailable:
            pass  # the next source reports the error
        except NarcoreError:  # no ranges, another file size, no index, an index of one block, or another tag
            self._refused.put(place, True, seconds=REFUSED_SECONDS)
        finally:
            if chunks is None:
                self.leave(key)
        return None if chunks is None else _Part(self, key, chunks, stop - start)

    def _find(
        self, info: PathInfo, key: NarKey, node: Node, start: int, stop: int, *, cheap: bool
    ) -> Iterator[bytes] | None:
        blocks = self._find_blocks(info)
        prefix = contents_prefix(node)
        tag_start = node.nar_offset - len(prefix)
        near = start - tag_start <= NEAR
        first, last = blocks.widened(tag_start if near else start, stop)
        if cheap and not self._may_spend(key, last - first):
            return None
        if not near:
            _check_tag(info, blocks, node)
        chunks = _open(info, blocks, first, last)
        if near:
            chunks = after_tag(chunks, tag_start - first, prefix)
            first = node.nar_offset
        return skip_and_drain(chunks, start - first, stop - first)

    def _enter(self, key: NarKey, *, cheap: bool) -> bool:
        with self._lock:
            busy = self._busy.get(key, 0)
            if cheap and busy >= AT_ONCE:
                return False
            self._busy[key] = busy + 1
            return True

    def leave(self, key: NarKey) -> None:
        with self._lock:
            self._busy[key] -= 1
            if not self._busy[key]:
                del self._busy[key]

    def _may_spend(self, key: NarKey, size: int) -> bool:
        with self._lock:
            spent = (self._spent.get(key) or 0) + size
            if spent > key.size // 2:
                return False
            self._spent.put(key, spent)
            return True

    def _find_blocks(self, info: PathInfo) -> Blocks:
        """Return the blocks of the NAR's file. Raises StoreError, or CompressionError if ranges of it can't be read."""
        narinfo = info.narinfo
        if narinfo.compression == "none":
            return Blocks()
        if narinfo.compression not in _READ_BLOCKS or narinfo.nar_size < BLOCKS_SIZE or not narinfo.file_size:
            raise CompressionError(f"can't read only a range of this NAR (compression: {narinfo.compression})")
        place = (info.store.url, narinfo.url)
        blocks = self._blocks.get(place)
        if blocks is None:
            blocks = _READ_BLOCKS[narinfo.compression](info, narinfo.file_size)
            self._blocks.put(place, blocks, weight=len(blocks.index or ()))
        return blocks


class _Part:
    """Bytes of a remote range. The range counts as being read until ``close`` is called."""

    is_verified = False

    def __init__(self, remote: RemoteParts, key: NarKey, chunks: Iterator[bytes], length: int) -> None:
        self.length = length
        self._remote: RemoteParts | None = remote
        self._key = key
        self._chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def close(self) -> None:
        close(self._chunks)
        if self._remote is not None:
            self._remote.leave(self._key)
            self._remote = None


def _read_xz_index(info: PathInfo, file_size: int) -> Blocks:
    tail = _read_tail(info, file_size, min(TAIL_SIZE, file_size))
    footer = XzFooter.parse(tail[-FOOTER_SIZE:])
    tail = _read_tail(info, file_size, footer.index_size + FOOTER_SIZE, tail)
    index = XzIndex.parse(tail[-footer.index_size - FOOTER_SIZE : -FOOTER_SIZE])
    _check_index(index, info, file_size - FOOTER_SIZE - footer.index_size)
    return Blocks(footer.header, index)


def _read_seek_table(info: PathInfo, file_size: int) -> Blocks:
    tail = _read_tail(info, file_size, min(TAIL_SIZE, file_size))
    size = SeekTable.size_at_end(tail)
    table = SeekTable.parse(_read_tail(info, file_size, size, tail))
    _check_index(table, info, file_size - size)
    return Blocks(index=table)


_READ_BLOCKS = {"xz": _read_xz_index, "zstd": _read_seek_table}


def _check_index(index: XzIndex | SeekTable, info: PathInfo, end: int) -> None:
    """Raise CorruptStream unless the index has several blocks that make up the NAR and end at offset ``end`` of the file."""
    if index.packed[-1] != end or index.unpacked[-1] != info.narinfo.nar_size or len(index) < 2:
        raise CorruptStream(
            "the file is not a single stream of several blocks or frames, or its unpacked size differs from the NarSize"
        )


def _read_tail(info: PathInfo, file_size: int, size: int, tail: bytes = b"") -> bytes:
    """Return at least the last ``size`` bytes of the file. ``tail`` has the last bytes of the file, which are not read again.

    Raises CorruptStream if ``size`` exceeds ``file_size`` or INDEX_LIMIT.
    """
    if size > min(file_size, INDEX_LIMIT):
        raise CorruptStream(
            f"the index would have {size} bytes; the file has {file_size} bytes, and the limit is {INDEX_LIMIT} bytes"
        )
    if size <= len(tail):
        return tail
    return _read(info, file_size - size, file_size - len(tail), file_size) + tail


def _open(info: PathInfo, blocks: Blocks, first: int, last: int) -> Iterator[bytes]:
    """Read bytes ``first`` to ``last`` of the NAR. They must be whole blocks, if the file has blocks."""
    index = blocks.index
    if index is None:
        file = _request(info, first, last, info.narinfo.nar_size)
        return Stage(iter(file), file)
    covering = index.covering(first, last)
    packed = _request(info, index.packed[covering.start], index.packed[covering.stop], info.narinfo.file_size)
    if isinstance(index, XzIndex):
        return unpack_blocks(blocks.header, packed, last - first)
    return unpack_whole_frames(packed, last - first)


def _request(info: PathInfo, start: int, stop: int, file_size: int | None) -> StoreFile:
    file = info.store.get_file(info.narinfo.url, start, stop)
    if file.size != file_size:
        file.close()
        raise StoreError(f"the NAR's file has {file.size} bytes, not {file_size}")
    return file


def _read(info: PathInfo, start: int, stop: int, file_size: int) -> bytes:
    with _request(info, start, stop, file_size) as file:
        return b"".join(file)


def _check_tag(info: PathInfo, blocks: Blocks, node: Node) -> None:
    prefix = contents_prefix(node)
    start = node.nar_offset - len(prefix)
    first, last = blocks.widened(start, node.nar_offset)
    chunks = after_tag(_open(info, blocks, first, last), start - first, prefix)
    close(chunks)


def after_tag(chunks: Iterator[bytes], start: int, tag: bytes) -> Iterator[bytes]:
    """Return the bytes that follow ``tag``, which must begin at offset ``start`` of the chunks. Reads the tag immediately.

    Raises CorruptStream if there are other bytes at ``start``, and TruncatedStream if the chunks end before the end of the tag.
    """
    try:
        head = b""
        while len(head) < len(tag):
            chunk = next(chunks, None)
            if chunk is None:
                raise TruncatedStream("the range of the NAR ends early")
            head += chunk[start:]
            start = max(0, start - len(chunk))
        if not head.startswith(tag):
            raise CorruptStream("the NAR has no file of this size at this offset")
    except BaseException:
        close(chunks)
        raise
    return Stage(chain([head[len(tag) :]], chunks), chunks)
