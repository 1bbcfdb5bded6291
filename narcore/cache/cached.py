"""Complete NARs in the cache, open for reading."""

import hashlib
import os
import stat
from collections.abc import Callable, Generator

from narcore.cache.errors import as_cache_failure
from narcore.cache.layout import THIS_BOOT, NarKey, is_verified, mark
from narcore.cache.listings import file_chunks
from narcore.cache.locks import alone
from narcore.concurrency.lru import LruMemory
from narcore.errors import CacheFailure
from narcore.formats import nixbase32
from narcore.sizes import CHUNK_SIZE

Stamp = tuple[int, int, int, int]


class CachedNar:
    """One complete NAR, open for reading. Its user closes it. Several CachedNars may share the descriptor ``fd``."""

    __slots__ = ("_close", "_discard", "_mtime_ns", "_size", "fd")

    def __init__(
        self, fd: int, status: os.stat_result, *, discard: Callable[[], None], close: Callable[[], None]
    ) -> None:
        """``discard`` removes the entry from the cache. ``close`` ends this user's share of the descriptor."""
        self.fd = fd
        self._size = status.st_size  # not the whole status, which takes 500 bytes: there may be thousands of readers
        self._mtime_ns = status.st_mtime_ns
        self._discard = discard
        self._close = close

    def read(self, start: int, stop: int) -> "CachedBytes":
        return CachedBytes(self, start, stop)

    def pread(self, start: int, stop: int) -> bytes:
        """Return the first bytes of a range within the NAR: at least one, but not always all of them.

        If the read fails, removes the entry and raises CacheFailure.
        """
        try:
            with as_cache_failure():
                data = os.pread(self.fd, stop - start, start)
        except CacheFailure:
            self._discard()
            raise
        if not data:
            self._discard()
            raise CacheFailure("a NAR in the cache was truncated while it was read")
        return data

    def check_untouched(self) -> None:
        """Raise CacheFailure, and remove the entry, if the file has been written to since it was opened."""
        now = os.fstat(self.fd)
        if now.st_size != self._size or not (now.st_mtime_ns == self._mtime_ns or is_verified(now)):
            self._discard()
            raise CacheFailure("a NAR in the cache was changed while it was read")

    def close(self) -> None:
        if self.fd >= 0:
            self.fd = -1
            self._close()


class CachedBytes:
    """A range of bytes of a cached NAR. ``close`` also closes the CachedNar.

    ``file`` is a pair: the descriptor of the NAR, which other readers share, and the offset of the range in the NAR.
    """

    def __init__(self, nar: CachedNar, start: int, stop: int) -> None:
        self.length = stop - start
        self.file = nar.fd, start
        self._nar = nar
        self._chunks = self._read(start, stop)

    def _read(self, start: int, stop: int) -> Generator[bytes]:
        while start < stop:
            data = self._nar.pread(start, min(start + CHUNK_SIZE, stop))
            start += len(data)
            if start == stop:  # before returning the last bytes, check that the file was not changed
                self._nar.check_untouched()
            yield data

    def __iter__(self) -> Generator[bytes]:
        return self._chunks

    def check_untouched(self) -> None:
        """Raise CacheFailure if ``file`` has been written to since it was opened. Call it after reading ``file``."""
        self._nar.check_untouched()

    def again(self, start: int, stop: int) -> bytes:
        """Always raise CacheFailure: returned bytes can't be read again, because the file may have been changed."""
        raise CacheFailure("a NAR in the cache was changed while it was read")

    def close(self) -> None:
        self._chunks.close()
        self._nar.close()


class Verifier:
    """Checks that a file contains the NAR whose hash is in its name. Thread-safe."""

    def __init__(self) -> None:
        self._unmarkable: LruMemory[Stamp, bool] = LruMemory(1000)

    def status(self, fd: int, key: NarKey) -> os.stat_result | None:
        """Return the file's status if the file contains the NAR ``key``, else None.

        A file that is not marked as verified is hashed first, by one process at a time.
        """
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size != key.size:
            return None
        if is_verified(status) or self._unmarkable.get(_stamp(status)):
            return status
        with alone(fd):
            return self._hashed_status(fd, key)

    def _hashed_status(self, fd: int, key: NarKey) -> os.stat_result | None:
        status = os.fstat(fd)
        if is_verified(status):
            return status
        if not has_digest(fd, key.digits) or _stamp(os.fstat(fd)) != _stamp(status):
            return None
        try:
            mark(fd, THIS_BOOT)
        except OSError:
            # The file can't be marked: it belongs to another user or is read-only. Remember the result, so that it is not hashed
            # for each reader.
            self._unmarkable.put(_stamp(status), True)
        return os.fstat(fd)


def _stamp(status: os.stat_result) -> Stamp:
    """Return a value that changes if the file is written to."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def has_digest(fd: int, digits: str, progress: Callable[[int], None] = lambda size: None) -> bool:
    """Return whether the SHA-256 of the open file is ``digits`` (nix32). ``progress`` is called with the size of each chunk."""
    sha256 = hashlib.sha256()
    for chunk in file_chunks(fd):
        sha256.update(chunk)
        progress(len(chunk))
    return nixbase32.encode(sha256.digest()) == digits
