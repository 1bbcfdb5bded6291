"""``TierReader``: reads listings and parts of NARs from the tier. Checks bytes against a signed digest before returning them."""

import hashlib
import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Self

from narcore.concurrency.closing import Stage, close, stage
from narcore.concurrency.lru import LruMemory
from narcore.concurrency.singleflight import SingleFlight
from narcore.errors import (
    CompressionError,
    CorruptStream,
    FileNotInStore,
    FormatError,
    HashMismatch,
    IntegrityError,
    NarcoreError,
    SizeMismatch,
    StoreError,
    StoreForbidden,
    StoreUnavailable,
    StoreUnresponsive,
    TruncatedStream,
)
from narcore.formats.listing import NarListing
from narcore.formats.signature import PublicKey
from narcore.lookup.pathinfo import PathInfo
from narcore.sizes import CHUNK_SIZE
from narcore.stores import open_store
from narcore.stores.base import BinaryCacheStore, StoreFile, read_file
from narcore.stores.traced import TracedStore
from narcore.stores.waits import CountedStore, StoreWaits
from narcore.streams.slicing import skip_and_drain
from narcore.tier.index import INDEX_LIMIT, TierIndex
from narcore.tier.layout import index_name, nar_name
from narcore.tier.seekable import FRAME_SIZE
from narcore.trace import Trace, silent

log = logging.getLogger("narcore.tier")

# In bytes. For a NAR up to this size, a download of the whole NAR takes no longer than two requests to the tier.
SMALL_NAR = 1 << 20

# In bytes. Enough for four indexes of the largest size, or the indexes of some thousand usual NARs.
INDEX_MEMORY = 64 << 20

# How long the tier is not asked: for a NAR that is missing, for a NAR that is damaged, and for all NARs if the tier fails. A
# missing NAR is asked for again soon, because another instance may add it at any time.
MISSING_SECONDS = 60.0
DAMAGED_SECONDS = 600.0
UNAVAILABLE_SECONDS = 20.0

# A packed frame is at most this much larger than its contents (zstd.h, ZSTD_COMPRESSBOUND).
_PACKED_MAX = FRAME_SIZE + (FRAME_SIZE >> 8) + 64

# The failures of one object or of the whole tier. After them, the bytes come from the stores.
FAILURES = (StoreError, CompressionError, IntegrityError, FormatError)


class TierReader:
    """Reads NARs from the tier. Thread-safe.

    Only NARs of verified path infos are read. The NarHash of an unverified narinfo may be false, and could name a NAR that the
    client may not read.
    """

    def __init__(
        self,
        store: BinaryCacheStore,
        keys: Sequence[PublicKey],
        *,
        clock: Callable[[], float] = time.monotonic,
        waits: StoreWaits | None = None,
    ) -> None:
        """``waits`` limits how many requests wait for the tier while it sends nothing."""
        self._waits = waits or StoreWaits()
        self.store = store if waits is None else CountedStore(store, waits)
        self._keys = tuple(keys)
        self._clock = clock
        self._indexes: LruMemory[str, TierIndex] = LruMemory(INDEX_MEMORY, clock=clock)
        self._skipped: LruMemory[str, bool] = LruMemory(10_000, clock=clock)
        self._flights: SingleFlight[str, TierIndex | None] = SingleFlight(wait=self._waits.wait)
        self._paused_until = 0.0

    @classmethod
    def open(
        cls, url: str, keys: Sequence[PublicKey], *, trace: Trace = silent, waits: StoreWaits | None = None
    ) -> Self:
        """Open the tier at a store URL, without connecting to it. Raises SettingsError if it is not the URL of a store."""
        return cls(TracedStore(open_store(url), trace), keys, waits=waits)

    def close(self) -> None:
        self.store.close()

    def listing(self, info: PathInfo) -> NarListing | None:
        """Return the verified listing of the NAR; None if the tier does not have the NAR or can't be used."""
        index = self._index(info)
        return index.listing if index else None

    def read(self, info: PathInfo, start: int, stop: int) -> "TierBytes | None":
        """Open bytes ``start`` to ``stop`` of the NAR, and check the first frame; None if the tier can't be used for this NAR.

        Reading the rest raises StoreError if a frame is damaged or the tier fails.
        """
        index = self._index(info)
        if index is None:
            return None
        on_failure = partial(self._failed, info.narinfo.nar_hash.nix32)
        try:
            part = partial(open_part, self.store, index, start, stop)
            return TierBytes(self._waits.call(self.store.url, part, discard=close), stop - start, on_failure)
        except FAILURES as error:
            on_failure(error)
            return None

    def _index(self, info: PathInfo) -> TierIndex | None:
        if not info.trust.is_verified or info.narinfo.nar_size <= SMALL_NAR or self._clock() < self._paused_until:
            return None
        digits = info.narinfo.nar_hash.nix32
        if self._skipped.get(digits):
            return None
        try:
            index = self._indexes.get(digits) or self._flights.do(digits, partial(self._fetch, digits))
        except StoreUnresponsive:  # another request is already waiting for this index, and the tier sends nothing
            return None
        # A signed narinfo with the same NarHash and another NarSize is wrong; the check of a whole NAR from a store detects that.
        return index if index and index.nar_size == info.narinfo.nar_size else None

    def _fetch(self, digits: str) -> TierIndex | None:
        try:
            read = partial(read_index, self.store, digits, self._keys)
            index = self._waits.call(self.store.url, read)
        except FAILURES as error:
            self._failed(digits, error)
            return None
        self._indexes.put(digits, index, weight=index.nbytes)
        return index

    def _failed(self, digits: str, error: NarcoreError) -> None:
        """Stop using the tier for this NAR, or for all NARs, for a while."""
        if isinstance(error, FileNotInStore):
            self._indexes.discard(digits)
            self._skipped.put(digits, True, seconds=MISSING_SECONDS)
        elif isinstance(error, StoreUnavailable | StoreForbidden):  # concerns all objects
            self._paused_until = self._clock() + UNAVAILABLE_SECONDS
            log.warning("tier %s: %s; not reading from it for %g s", self.store.url, error, UNAVAILABLE_SECONDS)
        else:
            self._indexes.discard(digits)
            self._skipped.put(digits, True, seconds=DAMAGED_SECONDS)
            log.warning(
                "tier %s: NAR %s: %s; reading it from the stores for %g s",
                self.store.url,
                digits,
                error,
                DAMAGED_SECONDS,
            )


def read_index(store: BinaryCacheStore, digits: str, keys: Sequence[PublicKey]) -> TierIndex:
    """Return the index of a NAR. Raises StoreError, UntrustedSignature and FormatError."""
    index = TierIndex.parse(read_file(store, index_name(digits), INDEX_LIMIT), keys)
    if index.nar_hash.nix32 != digits:
        raise HashMismatch(f"the index of the NAR {digits} describes the NAR {index.nar_hash.nix32}")
    return index


class TierBytes:
    """Some bytes of a NAR in the tier. All of them are verified. Iterating raises StoreError if the rest can't be read."""

    is_verified = True

    def __init__(self, chunks: Iterator[bytes], length: int, on_failure: Callable[[NarcoreError], None]) -> None:
        self.length = length
        self._source = chunks
        self._on_failure = on_failure
        self._chunks = self._read()

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def close(self) -> None:
        self._chunks.close()
        close(self._source)

    def _read(self) -> Generator[bytes]:
        try:
            yield from self._source
        except FAILURES as error:
            self._on_failure(error)
            raise StoreError(f"the rest of the NAR in the tier can't be read: {error}") from error


def open_part(store: BinaryCacheStore, index: TierIndex, start: int, stop: int) -> Iterator[bytes]:
    """Return bytes ``start`` to ``stop`` of a NAR. Sends one range request, and holds one frame at a time in memory.

    The first frame is read and checked immediately. Raises one of FAILURES, also while the rest is read.
    """
    if start == stop:
        return iter(())
    frames = index.frames.covering(start, stop)
    file = _request(store, index, frames)
    contents = unpack_frames(file, index, frames)
    try:
        first = next(contents)
    except BaseException:
        close(contents)
        raise
    offset = index.frames.unpacked[frames.start]
    return skip_and_drain(Stage(chain([first], contents), contents), start - offset, stop - offset)


@stage
def unpack_frames(packed: Iterable[bytes], index: TierIndex, frames: range) -> Iterator[bytes]:
    """Yield the contents of ``frames`` in chunks. ``packed`` yields exactly the packed bytes of these frames.

    The digest of each frame is checked before the frame is unpacked.

    Raises HashMismatch, SizeMismatch and CorruptStream.
    """
    table, chunks, rest = index.frames, iter(packed), bytearray()
    for frame in frames:
        size = table.packed[frame + 1] - table.packed[frame]
        if not 0 < size <= _PACKED_MAX:
            raise CorruptStream(f"a frame of {size} bytes is empty or too large")
        while len(rest) < size:
            chunk = next(chunks, None)
            if chunk is None:
                raise TruncatedStream("the seekable file ends early")
            rest += chunk
        content = _unpack(bytes(rest[:size]), index.digest(frame), table.unpacked[frame + 1] - table.unpacked[frame])
        del rest[:size]
        for start in range(0, len(content), CHUNK_SIZE):
            yield content[start : start + CHUNK_SIZE]
    if rest or next(chunks, None):  # also ends the request, so that its connection can be used again
        raise SizeMismatch("the store sent more bytes than requested")


def _unpack(packed: bytes, digest: bytes, size: int) -> bytes:
    """Return the contents of a frame. They must have ``size`` bytes."""
    import zstandard

    if hashlib.sha256(packed).digest() != digest:
        raise HashMismatch("a frame does not match its digest in the index")
    if not 0 < size <= FRAME_SIZE:
        raise CorruptStream(f"a frame with {size} bytes of contents is empty or too large")
    try:
        content = zstandard.ZstdDecompressor().decompress(packed, max_output_size=size)
    except zstandard.ZstdError as error:
        raise CorruptStream(f"zstd: {error}") from error
    if len(content) != size:
        raise SizeMismatch(f"a frame has {len(content)} bytes of contents; its index says {size}")
    return content


def _request(store: BinaryCacheStore, index: TierIndex, frames: range) -> StoreFile:
    """Request the frames. Raises SizeMismatch if the file is not the one that the index describes."""
    table = index.frames
    file = store.get_file(nar_name(index.nar_hash.nix32), table.packed[frames.start], table.packed[frames.stop])
    if file.size != index.file_size:
        file.close()
        raise SizeMismatch(f"the seekable file has {file.size} bytes; its index says {index.file_size}")
    return file
