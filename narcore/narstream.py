"""A whole NAR as a stream: fetched, unpacked, and checked as it comes."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from narcore.cache.hashing import BackgroundSha256
from narcore.errors import CompressionError, FileNotInStore, IntegrityError, NarcoreError, StoreError, StoreUnavailable
from narcore.pathinfo import PathInfo
from narcore.streams.closing import Stage, close
from narcore.streams.compression import decompress
from narcore.streams.integrity import verified
from narcore.streams.slicing import skip


class NarStreams:
    """Opens NARs. ``others`` gives the same NAR from other stores; ``on_lie`` is told of one that is not what was promised."""

    def __init__(self, *, others: Callable[[PathInfo], Iterable[PathInfo]], on_lie: Callable[[PathInfo], None]) -> None:
        self._others = others
        self._on_lie = on_lie

    def open(self, info: PathInfo) -> Iterator[bytes]:
        """The bytes of the NAR. The last ones come only when all have been checked against NarSize and NarHash.

        Reading raises StoreError, CompressionError and IntegrityError. Where a store fails half-way, another one that has the
        same NAR goes on.
        """
        narinfo = info.narinfo
        chunks = verified(
            self._plain(info), nar_hash=narinfo.nar_hash, nar_size=narinfo.nar_size, hasher=BackgroundSha256()
        )
        return Stage(self._telling(info, chunks), chunks)

    def _telling(self, info: PathInfo, chunks: Iterator[bytes]) -> Iterator[bytes]:
        try:
            yield from chunks
        except IntegrityError:
            self._on_lie(info)
            raise

    def _plain(self, info: PathInfo) -> Iterator[bytes]:
        done = 0
        failure: NarcoreError | None = None
        for source in chain([info], self._others(info)):
            chunks = skip(_unpacked(source), done) if done else _unpacked(source)
            try:
                for chunk in chunks:
                    done += len(chunk)
                    yield chunk
            except (StoreError, CompressionError) as error:
                failure = failure or error
            else:
                return
            finally:
                close(chunks)
        assert failure is not None
        raise failure


def _unpacked(info: PathInfo) -> Iterator[bytes]:
    """Raises from the iterator, also what opening raises."""
    try:
        packed = info.store.get_file(info.narinfo.url)
    except FileNotInStore as error:
        base_name = info.narinfo.store_path.base_name
        raise StoreUnavailable(f"{info.store.url} has a narinfo of {base_name}, but not its NAR") from error
    yield from decompress(info.narinfo.compression, packed)
