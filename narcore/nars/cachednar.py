"""NARs of the disk cache that are held open and read many times, as a file system does: complete ones, and one being fetched."""

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
    """A cached NAR, complete and verified, held open. Thread-safe but for ``close``: nobody may be reading any more then.

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

    def open_unpacked(self, node: Node) -> int:
        """A descriptor of a file on disk that holds just the contents of that regular file; read-only, and to be closed.

        It is made if it is not there, which takes space in the cache, and time to copy it. Raises CacheFailure, and ValueError
        for what is no regular file in this NAR.
        """
        if node.kind is not Kind.REGULAR or node.nar_offset + node.size > self._key.size:
            raise ValueError(f"no {node.kind} of {node.size} bytes at {node.nar_offset} in a NAR of {self._key.size}")
        return self._cache.open_unpacked(FileKey(self._key.digits, node.nar_offset, node.size), self._nar)

    def unpacked_file(self, node: Node, fd: int) -> UnpackedFile:
        """The file of which `open_unpacked` returned the descriptor ``fd``: it can be watched after ``fd`` is closed."""
        return UnpackedFile.of(self._cache.layout.file(FileKey(self._key.digits, node.nar_offset, node.size)), fd)

    @property
    def is_evicted(self) -> bool:
        """Whether the entry is gone from the cache, or another one is in its place."""
        try:
            return not is_still_at(self._nar.fd, self._cache.layout.nar(self._key.digits))
        except OSError:  # nothing is known of a directory that can't be read
            return False

    def touch(self) -> None:
        """Let it count as used just now."""
        touch(self._nar.fd)

    def drop_pages(self, start: int = 0, stop: int = 0) -> None:
        """Tell the kernel to drop these bytes from its page cache (``stop`` 0: up to the end)."""
        with suppress(OSError):  # it is but advice
            os.posix_fadvise(self._nar.fd, start, stop - start if stop else 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        self._nar.close()


class ArrivingNar:
    """A NAR on its way into the cache. Thread-safe; what is under way when it is closed comes to its end.

    Unless ``whole``, bytes are given out as they come: they are verified only if `finish` has returned. It can be read on then,
    whatever becomes of the entry.
    """

    def __init__(self, fill: Fill, *, whole: bool) -> None:
        """``fill``: joined for us."""
        self._fill = fill
        self._whole = whole
        self._lock = threading.Lock()
        self._users = 1  # whoever waits or reads, and who will close it
        self._closed = False

    def wait_for(self, stop: int) -> int:
        """Wait until the bytes before ``stop`` are there, or all; how many can be read now.

        Raises what the fill has failed with, and StoreTimeout if nothing comes for long.
        """
        with self._in_use():
            return self._fill.wait_until(sys.maxsize if self._whole else stop)

    def read(self, start: int, stop: int) -> bytes:
        """The bytes of the NAR from ``start`` to ``stop``, all of them; waits for them.

        Raises as `wait_for` does, CacheFailure if the disk fails or the file was changed, and ValueError for a part that the NAR
        has not.
        """
        size = self._fill.part.key.size
        if not 0 <= start <= stop <= size:
            raise ValueError(f"no bytes {start} to {stop} in a NAR of {size}")
        with self._in_use():
            self._fill.wait_until(sys.maxsize if self._whole else stop)
            return self._fill.read_now(start, stop)

    def finish(self) -> NarListing:
        """Wait until all is there and verified; its listing. Raises as `wait_for` does."""
        with self._in_use():
            return self._fill.wait()

    def close(self) -> None:
        """If nobody else reads, the fill ends, unless it is more than half done."""
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
