"""A whole NAR as a stream: fetched, decompressed and verified on the fly."""

from collections.abc import Callable, Iterable, Iterator

from narcore.concurrency.closing import Stage, close
from narcore.concurrency.hashing import BackgroundSha256
from narcore.errors import (
    CompressionError,
    FileNotInStore,
    IntegrityError,
    NarcoreError,
    RangeNotSupported,
    StoreError,
    StoreUnavailable,
)
from narcore.lookup.pathinfo import OnFailure, PathInfo
from narcore.stores.base import StoreFile
from narcore.streams.compression import decompress
from narcore.streams.integrity import verified
from narcore.streams.slicing import skip

# After the last requested byte, the rest of a NAR is read only to check the hash. This is done if the rest has at most this many
# bytes, or is at most as large as the part that was read.
VERIFY_REST = 8 << 20


def is_worth_verifying(done: int, nar_size: int) -> bool:
    """Return whether to read the rest of a NAR, to check its hash, after ``done`` bytes were read and no more are requested."""
    return nar_size - done <= max(VERIFY_REST, done)


class NarStreams:
    """Opens NARs as streams.

    ``sources`` yields a PathInfo for each store that can send the NAR, the best first. It is asked for the next one only if the
    previous ones failed.
    ``on_failure`` is called for each store that could not send the NAR, or whose bytes did not match the narinfo.
    """

    def __init__(self, *, sources: Callable[[PathInfo], Iterable[PathInfo]], on_failure: OnFailure) -> None:
        self._sources = sources
        self._on_failure = on_failure

    def open(self, info: PathInfo) -> Iterator[bytes]:
        """Return the bytes of the NAR. The last bytes are returned only after NarSize and NarHash have been checked.

        If a store fails before the end, the stream continues from another store that has the same NAR. Reading raises StoreError,
        CompressionError and IntegrityError.
        """
        narinfo = info.narinfo
        used: list[PathInfo] = []
        plain = self._plain(info, used)
        chunks = verified(plain, nar_hash=narinfo.nar_hash, nar_size=narinfo.nar_size, hasher=BackgroundSha256())
        return Stage(self._reporting(used, chunks), chunks)

    def others(self, info: PathInfo, failure: NarcoreError) -> Iterator[PathInfo]:
        """Report the ``failure`` of a store, and return other stores that have the same NAR."""
        self._on_failure(info, failure)
        return (source for source in self._sources(info) if source is not info)

    def _reporting(self, used: list[PathInfo], chunks: Iterator[bytes]) -> Iterator[bytes]:
        try:
            yield from chunks
        except IntegrityError as error:
            for source in used:  # with several stores, it is unknown which one sent the wrong bytes
                self._on_failure(source, error)
            raise

    def _plain(self, info: PathInfo, used: list[PathInfo]) -> Iterator[bytes]:
        done = 0
        failure: NarcoreError | None = None
        for source in self._sources(info):
            used.append(source)
            chunks = _decompressed(source, done)
            try:
                for chunk in chunks:
                    done += len(chunk)
                    yield chunk
            except (StoreError, CompressionError) as error:
                self._on_failure(source, error)
                failure = failure or error
            else:
                return
            finally:
                close(chunks)
        raise failure or StoreUnavailable(f"no store is available for the NAR of {info.narinfo.store_path.base_name}")


def _decompressed(info: PathInfo, start: int) -> Iterator[bytes]:
    """Yield the NAR from ``start`` on. The iterator raises all errors, also the errors of opening the file."""
    if start and info.narinfo.compression == "none":
        try:
            rest = _open(info, start)
        except RangeNotSupported:
            pass  # the NAR is read from its beginning below, like a compressed NAR
        else:
            yield from Stage(iter(rest), rest)
            return
    yield from skip(decompress(info.narinfo.compression, _open(info)), start)


def _open(info: PathInfo, start: int = 0) -> StoreFile:
    try:
        return info.store.get_file(info.narinfo.url, start)
    except FileNotInStore as error:
        base_name = info.narinfo.store_path.base_name
        raise StoreUnavailable(f"{info.store.url} has a narinfo of {base_name}, but not its NAR") from error
