"""Space that a process reserves for small files that it will unpack, so that it need not scan the whole directory for each of them.

The reservation is a sparse file of that size. Other processes count it as promised, like a file that is being written, and the lock
on it shows that its owner is alive.
"""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path

from narcore.cache.eviction import Entry, RecentEvictions, make_room_for_file
from narcore.cache.layout import FileKey, Layout
from narcore.cache.locks import OPEN_FLAGS, is_still_at, try_lock
from narcore.errors import CacheFailure

# Some thousand files of usual size for one look; of a small cache, a small part.
RESERVE_MAX = 64 << 20
RESERVE_SHARE = 100

# A file that is larger than this part of the room is worth a look of its own.
SMALL = 8

_numbers = count()


class Reserve:
    """The reserved space of this process. Thread-safe. ``limit`` is that of the directory, in bytes."""

    def __init__(self, layout: Layout, limit: int) -> None:
        self._layout = layout
        self._limit = limit
        self._full = min(RESERVE_MAX, limit // RESERVE_SHARE)
        self._left = 0
        self._recent = RecentEvictions()  # of all files: each that found no room would evict as much again
        self._lock = threading.Lock()
        self._fd = -1
        self._path = Path()

    def release_for(self, size: int) -> None:
        """Give the space back if a NAR of ``size`` bytes would not fit into the cache beside it."""
        if size + self._full > self._limit:
            self.close()

    def make_room(self, file: FileKey, reserve: Callable[[], None]) -> list[Entry]:
        """Find room for a file and call ``reserve``, which takes it; the entries that went. Raises CacheFailure and OSError."""
        with self._lock:
            if self._fd >= 0 and file.size <= self._left:
                reserve()  # first: what is counted twice for an instant hurts nobody
                self._set(self._left - file.size)
                return []
            if file.size * SMALL <= self._full:
                with suppress(CacheFailure):
                    return self._refill(file, reserve)
            return make_room_for_file(self._layout, file, self._limit, reserve=reserve, recent=self._recent)

    def _refill(self, file: FileKey, reserve: Callable[[], None]) -> list[Entry]:
        def reserve_both() -> None:
            reserve()
            self._set(self._full)

        self._release()
        self._open()
        return make_room_for_file(
            self._layout, file, self._limit, extra=self._full, reserve=reserve_both, recent=self._recent
        )

    def _open(self) -> None:
        while self._fd < 0:
            path = self._layout.reserve(next(_numbers))
            fd = os.open(path, OPEN_FLAGS, 0o600)
            if try_lock(fd) and is_still_at(fd, path):
                self._fd, self._path = fd, path
            else:  # of a process with our number in another container, or a cleaner was faster than the lock
                os.close(fd)

    def _set(self, left: int) -> None:
        os.ftruncate(self._fd, left)
        self._left = left

    def close(self) -> None:
        with self._lock:
            self._release()

    def _release(self) -> None:
        """Give the room back. With the lock recent."""
        self._left = 0
        if self._fd >= 0:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1
