"""NARs out of the disk cache for who reads from them again and again, such as a file system."""

import os
from contextlib import suppress

from narcore.cache.cached import CachedNar
from narcore.cache.layout import NarKey, touch
from narcore.cache.narcache import NarCache


class LocalNar:
    """One NAR on disk, whole and verified, held open. Thread-safe but for ``close``: nobody may be reading any more then.

    It can be read on after it was evicted, and takes up its space on the disk as long as it is open.
    """

    def __init__(self, cache: NarCache, key: NarKey, nar: CachedNar) -> None:
        self._cache = cache
        self._key = key
        self._nar = nar

    def read(self, start: int, stop: int) -> bytes:
        """The bytes of the NAR from ``start`` to ``stop``, all of them. Raises ValueError for a part that it has not.

        Raises CacheFailure if the disk fails or somebody has written to the file, and then the entry is removed.
        """
        if not 0 <= start <= stop <= self._key.size:
            raise ValueError(f"no bytes {start} to {stop} in a NAR of {self._key.size}")
        data = self._nar.pread(start, stop) if start < stop else b""
        while len(data) < stop - start:  # a signal came between, or it is more than the system gives at once
            data += self._nar.pread(start + len(data), stop)
        self._nar.check_untouched()
        return data

    @property
    def is_evicted(self) -> bool:
        """Whether the entry is gone from the cache, or another one is in its place."""
        return self._cache.is_evicted(self._key, self._nar)

    def touch(self) -> None:
        """Let it count as used just now."""
        touch(self._nar.fd)

    def drop_pages(self, start: int, stop: int) -> None:
        """Tell the system that these bytes need not be kept in memory, since somebody else keeps them there."""
        with suppress(OSError):  # it is but advice
            os.posix_fadvise(self._nar.fd, start, stop - start, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        self._nar.close()
