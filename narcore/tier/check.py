"""Checks all objects of the tier that belong to one store path."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence

from narcore.concurrency.closing import stage
from narcore.errors import CorruptStream, HashMismatch, IntegrityError
from narcore.formats.listing import NarListing
from narcore.formats.nar.parser import parse_nar
from narcore.formats.narinfo import NarInfo
from narcore.formats.nixhash import NixHash
from narcore.formats.signature import PublicKey
from narcore.stores.base import BinaryCacheStore
from narcore.streams.integrity import verified
from narcore.tier.index import TierIndex
from narcore.tier.layout import nar_name
from narcore.tier.reader import read_index, unpack_frames
from narcore.tier.seekable import SeekTable

Progress = Callable[[int], None]


def check_path(store: BinaryCacheStore, narinfo: NarInfo, keys: Sequence[PublicKey], progress: Progress) -> None:
    """Read the index and the whole NAR of a path, and check everything: signature, digests, seek table, FileHash, NarHash, listing.

    ``narinfo`` is the narinfo in the tier. ``progress`` is called with the size of each unpacked chunk. Raises StoreError,
    IntegrityError, CompressionError and FormatError.
    """
    index = read_index(store, narinfo.nar_hash.nix32, keys)
    of_narinfo = (narinfo.url, narinfo.compression, narinfo.file_hash, narinfo.file_size, narinfo.nar_size)
    if of_narinfo != (nar_name(index.nar_hash.nix32), "zstd", index.file_hash, index.file_size, index.nar_size):
        raise IntegrityError("the narinfo and the index do not describe the same file")
    file_hash = hashlib.sha256()
    found = NarListing.from_events(
        parse_nar(_contents(store, narinfo, index, file_hash.update, progress), contents=False)
    )
    if found != index.listing:
        raise IntegrityError("the listing in the index does not match the NAR")
    _check_table(store, narinfo, index, file_hash.update)
    if NixHash("sha256", file_hash.digest()) != index.file_hash:
        raise HashMismatch("the seekable file does not match its FileHash")


def _contents(
    store: BinaryCacheStore, narinfo: NarInfo, index: TierIndex, update: Callable[[bytes], None], progress: Progress
) -> Iterator[bytes]:
    """Return the NAR, unpacked from its frames and verified."""
    packed = _seen(store.get_file(narinfo.url, 0, index.frames.packed[-1]), update)
    contents = _seen(unpack_frames(packed, index, range(len(index.frames))), lambda chunk: progress(len(chunk)))
    return verified(contents, nar_hash=narinfo.nar_hash, nar_size=narinfo.nar_size)


def _check_table(store: BinaryCacheStore, narinfo: NarInfo, index: TierIndex, update: Callable[[bytes], None]) -> None:
    with store.get_file(narinfo.url, index.frames.packed[-1], index.file_size) as file:
        table = b"".join(_seen(file, update))
    found = SeekTable.parse(table)
    if found.packed != tuple(index.frames.packed) or found.unpacked != tuple(index.frames.unpacked):
        raise CorruptStream("zstd: the seek table does not match the index")


@stage
def _seen(chunks: Iterable[bytes], see: Callable[[bytes], None]) -> Iterator[bytes]:
    """Yield each chunk unchanged, after calling ``see`` with it."""
    for chunk in chunks:
        see(chunk)
        yield chunk
