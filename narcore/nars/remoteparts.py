"""Parts of a NAR out of the remote file, where they can be had without the rest: see ``RemoteParts``."""

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

# A NAR up to this size costs a whole download no more than a part of it does: the round trip counts, not the bytes.
WHOLE_SIZE = 1 << 20

# Nix writes blocks of 24 MiB where it writes more than one: below, asking for the index would be a wasted round trip.
BLOCKS_SIZE = 32 << 20

# The footer and an index of some 400 blocks, in one request.
TAIL_SIZE = 4096
INDEX_LIMIT = 8 << 20

# So many parts of one NAR at once, and it is worth fetching it once for all of them.
AT_ONCE = 2

# How far before the part asked for the contents may begin, to check their tag in the same request.
NEAR = 64 << 10

REFUSED_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Blocks:
    """How the NAR's file is cut: by an xz index, or not at all (``index`` is None: every byte is its own)."""

    header: bytes = b""
    index: XzIndex | None = None

    def widened(self, start: int, stop: int) -> tuple[int, int]:
        """The smallest part around ``start`` to ``stop`` (in the NAR) that can be had."""
        if self.index is None:
            return start, stop
        blocks = self.index.covering(start, stop)
        return self.index.unpacked[blocks.start], self.index.unpacked[blocks.stop]


class RemoteParts:
    """Reads parts of NARs that are not compressed, or whose xz file has many blocks and an index.

    What is read is not hashed, since the hash is the whole NAR's. What can be checked is: the store answers with just that part
    of a file of the right size, and in the NAR the tag and the length of the contents stand right before them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._busy: dict[NarKey, int] = {}
        self._spent: LruMemory[NarKey, int] = LruMemory(10_000)
        self._blocks: LruMemory[tuple[str, str], Blocks] = LruMemory(1 << 20)
        self._refused: LruMemory[tuple[str, str], bool] = LruMemory(10_000)

    def read(self, info: PathInfo, node: Node, start: int, stop: int, *, cheap: bool) -> NarBytes | None:
        """Bytes ``start`` to ``stop`` of the NAR, all of them in the contents of ``node``; None if they can't be had so.

        ``cheap``: also None if it is worth fetching the whole NAR, because it is small, because these parts add up to half of
        it, or because several are being read.
        """
        place = (info.store.url, info.narinfo.url)
        key = info.nar_key
        if self._refused.get(place) or (cheap and key.size <= WHOLE_SIZE) or not self._enter(key, cheap=cheap):
            return None
        chunks: Iterator[bytes] | None = None
        try:
            chunks = self._find(info, key, node, start, stop, cheap=cheap)
        except StoreUnavailable:
            pass  # whatever the next source says of that is said better
        except NarcoreError:  # no ranges, not the right file, an index of one block, the tag of something else
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
            chunks = behind_tag(chunks, tag_start - first, prefix)
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
        """Raises StoreError or CompressionError."""
        narinfo = info.narinfo
        if narinfo.compression == "none":
            return Blocks()
        if narinfo.compression != "xz" or narinfo.nar_size < BLOCKS_SIZE or not narinfo.file_size:
            raise CompressionError(f"no part of a NAR in {narinfo.compression} can be had alone")
        place = (info.store.url, narinfo.url)
        blocks = self._blocks.get(place)
        if blocks is None:
            blocks = _read_index(info, narinfo.file_size)
            self._blocks.put(place, blocks, weight=len(blocks.index or ()))
        return blocks


class _Part:
    """Bytes of a remote part, which counts as being read until they are closed."""

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


def _read_index(info: PathInfo, file_size: int) -> Blocks:
    tail_start = max(0, file_size - TAIL_SIZE)
    tail = _read(info, tail_start, file_size, file_size)
    footer = XzFooter.parse(tail[-FOOTER_SIZE:])
    index_start = file_size - FOOTER_SIZE - footer.index_size
    if index_start < 0 or footer.index_size > INDEX_LIMIT:
        raise CorruptStream(f"xz: an index of {footer.index_size} bytes")
    if index_start < tail_start:
        tail = _read(info, index_start, tail_start, file_size) + tail
        tail_start = index_start
    index = XzIndex.parse(tail[index_start - tail_start : -FOOTER_SIZE])
    if index.packed[-1] != index_start or index.unpacked[-1] != info.narinfo.nar_size or len(index) < 2:
        raise CorruptStream("xz: not one stream of several blocks that make up the NAR")
    return Blocks(footer.header, index)


def _open(info: PathInfo, blocks: Blocks, first: int, last: int) -> Iterator[bytes]:
    """Bytes ``first`` to ``last`` of the NAR, which are whole blocks."""
    index = blocks.index
    if index is None:
        file = _request(info, first, last, info.narinfo.nar_size)
        return Stage(iter(file), file)
    covering = index.covering(first, last)
    packed = _request(info, index.packed[covering.start], index.packed[covering.stop], info.narinfo.file_size)
    return unpack_blocks(blocks.header, packed, last - first)


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
    chunks = behind_tag(_open(info, blocks, first, last), start - first, prefix)
    close(chunks)


def behind_tag(chunks: Iterator[bytes], start: int, tag: bytes) -> Iterator[bytes]:
    """What follows the tag, which has to stand at ``start``. Reads up to there, and raises CorruptStream if it doesn't."""
    try:
        head = b""
        while len(head) < len(tag):
            chunk = next(chunks, None)
            if chunk is None:
                raise TruncatedStream("the part of the NAR ends early")
            head += chunk[start:]
            start = max(0, start - len(chunk))
        if not head.startswith(tag):
            raise CorruptStream("there is no such file at that place of the NAR")
    except BaseException:
        close(chunks)
        raise
    return Stage(chain([head[len(tag) :]], chunks), chunks)
