"""A whole NAR as a stream: fetched, unpacked, and checked as it comes."""

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

# After the last byte that is wanted, at most this much more of the NAR is read to check its hash; or as much as was read before.
VERIFY_REST = 8 << 20


def is_worth_verifying(done: int, nar_size: int) -> bool:
    """Whether to read a NAR to its end, to check its hash, if ``done`` of its bytes have been read and no more are wanted."""
    return nar_size - done <= max(VERIFY_REST, done)


class NarStreams:
    """Opens NARs.

    ``sources`` gives the stores to get a NAR from, the best first and each asked for only if those before it have failed.
    ``on_failure`` is told of each that could not give it, or whose bytes were not what was promised.
    """

    def __init__(self, *, sources: Callable[[PathInfo], Iterable[PathInfo]], on_failure: OnFailure) -> None:
        self._sources = sources
        self._on_failure = on_failure

    def open(self, info: PathInfo) -> Iterator[bytes]:
        """The bytes of the NAR. The last ones come only when all have been checked against NarSize and NarHash.

        Reading raises StoreError, CompressionError and IntegrityError. Where a store fails half-way, another one that has the
        same NAR goes on.
        """
        narinfo = info.narinfo
        used: list[PathInfo] = []
        plain = self._plain(info, used)
        chunks = verified(plain, nar_hash=narinfo.nar_hash, nar_size=narinfo.nar_size, hasher=BackgroundSha256())
        return Stage(self._telling(used, chunks), chunks)

    def others(self, info: PathInfo, failure: NarcoreError) -> Iterator[PathInfo]:
        """The same NAR at other stores, now that ``failure`` has shown that this one can't give it."""
        self._on_failure(info, failure)
        return (source for source in self._sources(info) if source is not info)

    def _telling(self, used: list[PathInfo], chunks: Iterator[bytes]) -> Iterator[bytes]:
        try:
            yield from chunks
        except IntegrityError as error:
            for source in used:  # if there are several, nobody knows whose bytes were the wrong ones
                self._on_failure(source, error)
            raise

    def _plain(self, info: PathInfo, used: list[PathInfo]) -> Iterator[bytes]:
        done = 0
        failure: NarcoreError | None = None
        for source in self._sources(info):
            used.append(source)
            chunks = _unpacked(source, done)
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
        raise failure or StoreUnavailable(f"no store can be asked for the NAR of {info.narinfo.store_path.base_name}")


def _unpacked(info: PathInfo, start: int) -> Iterator[bytes]:
    """The NAR from ``start`` on. Raises from the iterator, also what opening raises."""
    if start and info.narinfo.compression == "none":
        try:
            rest = _open(info, start)
        except RangeNotSupported:
            pass  # then all of it, as of a compressed one
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
