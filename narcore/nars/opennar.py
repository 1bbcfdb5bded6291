"""NARs in the disk cache that a file system holds open and reads many times: complete NARs, and NARs that are being fetched."""

import os
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress

from narcore.cache.cached import CachedNar
from narcore.cache.fill import Fill
from narcore.cache.layout import FileKey, NarKey, touch
from narcore.cache.locks import is_still_at
from narcore.cache.narcache import NarCache
from narcore.cache.unpacked import UnpackedFile
from narcore.formats.listing import Kind, NarListing, Node


class OpenNar:
    """A cached NAR, complete and verified, held open. Thread-safe, but call ``close`` only after all reads have ended.

    The NAR can still be read after it was evicted, and takes up disk space as long as it is open.
    """

    def __init__(self, cache: NarCache, key: NarKey, nar: CachedNar) -> None:
        self._cache = cache
        self._key = key
        self._nar = nar

    def read(self, start: int, stop: int) -> bytes:
        """Return all bytes of the NAR from ``start`` to ``stop``. Raises ValueError if the range is not in the NAR.

        Raises CacheFailure, and removes the entry, if the disk fails or the file was written to.
        """
        if not 0 <= start <= stop <= self._key.size:
            raise ValueError(f"no bytes {start} to {stop} in a NAR of {self._key.size}")
        data = self._nar.pread(start, stop) if start < stop else b""
        while len(data) < stop - start:  # a signal interrupted the read, or the system returns less at once
            data += self._nar.pread(start + len(data), stop)
        self._nar.check_untouched()
        return data

    def open_unpacked(self, node: Node) -> int:
        """Return a read-only descriptor of the unpacked file of a regular file; the caller closes it.

        If the unpacked file is not in the cache, unpacks it first, which takes time and disk space. Raises CacheFailure, and
        ValueError if the node is not a regular file within this NAR.
        """
        if node.kind is not Kind.REGULAR or node.nar_offset + node.size > self._key.size:
            place = f"at {node.nar_offset} in a NAR of {self._key.size} bytes"
            raise ValueError(f"a node of type {node.kind} and size {node.size} {place} can't be unpacked")
        return self._cache.open_unpacked(FileKey(self._key.digits, node.nar_offset, node.size), self._nar)

    def unpacked_file(self, node: Node, fd: int) -> UnpackedFile:
        """Return an UnpackedFile for ``fd``, which `open_unpacked` returned. It stays usable after ``fd`` is closed."""
        return UnpackedFile.of(self._cache.layout.file(FileKey(self._key.digits, node.nar_offset, node.size)), fd)

    @property
    def is_evicted(self) -> bool:
        """Whether the entry was removed from the cache or replaced."""
        try:
            return not is_still_at(self._nar.fd, self._cache.layout.nar(self._key.digits))
        except OSError:  # unknown: the directory can't be read
            return False

    def touch(self) -> None:
        """Set the access time of the entry to now."""
        touch(self._nar.fd)

    def drop_pages(self, start: int = 0, stop: int = 0) -> None:
        """Tell the kernel to drop these bytes from its page cache (``stop`` 0: up to the end)."""
        with suppress(OSError):  # this is only advice to the kernel; nothing depends on it
            os.posix_fadvise(self._nar.fd, start, stop - start if stop else 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        self._nar.close()


class ArrivingNar:
    """A NAR that is being fetched into the cache. Thread-safe. ``close`` does not interrupt running calls.

    With ``whole``, no byte is returned before the whole NAR is verified. Otherwise bytes are returned as they arrive; they are
    verified only once `finish` has returned. The NAR can be read until this object is closed, even if its entry is evicted.
    """

    def __init__(self, fill: Fill, *, whole: bool) -> None:
        """The caller has joined ``fill``, as a reader; this object leaves it."""
        self._fill = fill
        self._whole = whole
        self._lock = threading.Lock()
        self._users = 1  # running calls, and 1 until it is closed
        self._closed = False

    def wait_for(self, stop: int) -> int:
        """Wait until the bytes before ``stop`` have arrived (with ``whole``: the whole NAR); return how many bytes can be read now.

        Raises the error of the fill if it fails, and StoreTimeout if no bytes arrive for a long time.
        """
        with self._in_use():
            return self._fill.wait_until(sys.maxsize if self._whole else stop)

    def read(self, start: int, stop: int) -> bytes:
        """Wait for the bytes of the NAR from ``start`` to ``stop``, and return all of them.

        Raises the errors of `wait_for`, CacheFailure if the disk fails or the file was changed, and ValueError if the range is
        not in the NAR.
        """
        size = self._fill.part.key.size
        if not 0 <= start <= stop <= size:
            raise ValueError(f"no bytes {start} to {stop} in a NAR of {size}")
        with self._in_use():
            self._fill.wait_until(sys.maxsize if self._whole else stop)
            return self._fill.read_now(start, stop)

    def finish(self) -> NarListing:
        """Wait until the NAR is complete and verified, and return its listing. Raises the errors of `wait_for`."""
        with self._in_use():
            return self._fill.wait()

    def close(self) -> None:
        """Leave the fill when the running calls have ended.

        A fill without readers ends, unless more than half of the NAR is fetched, little is left, or another process reads it.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._leave()

    @contextmanager
    def _in_use(self) -> Generator[None]:
        with self._lock:
            if self._closed:
                raise ValueError("this NAR is closed")
            self._users += 1
        try:
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            last = not self._users
        if last:
            self._fill.leave()
