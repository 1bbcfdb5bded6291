"""Space that a process reserves for small files that it will unpack, so that it need not scan the directory for each file.

The reservation is a sparse file of the reserved size. Other processes count the file like an unpacked file that is being written.
A lock on the file shows that its owner is alive.
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

# Enough for a few thousand files of typical size per scan of the directory. In a small cache, at most 1/RESERVE_SHARE of the cache.
RESERVE_MAX = 64 << 20
RESERVE_SHARE = 100

# A file larger than 1/SMALL of the full reserved space causes no new reservation: the directory is scanned for this file alone.
SMALL = 8

_numbers = count()


class Reserve:
    """The reserved space of this process. Thread-safe. ``limit`` is the limit of the cache directory, in bytes."""

    def __init__(self, layout: Layout, limit: int) -> None:
        self._layout = layout
        self._limit = limit
        self._full = min(RESERVE_MAX, limit // RESERVE_SHARE)
        self._left = 0
        # One object for all files: otherwise each file that finds no room would evict more entries.
        self._recent = RecentEvictions()
        self._lock = threading.Lock()
        self._fd = -1
        self._path = Path()

    def release_for(self, size: int) -> None:
        """Release the space if a NAR of ``size`` bytes and the space together would exceed the cache limit."""
        if size + self._full > self._limit:
            self.close()

    def make_room(self, file: FileKey, reserve: Callable[[], None]) -> list[Entry]:
        """Make room for a file, call ``reserve`` to take the room, and return the evicted entries.

        Raises CacheFailure and OSError.
        """
        with self._lock:
            if self._fd >= 0 and file.size <= self._left:
                reserve()  # before the reserve shrinks: counting the space twice for a moment is harmless
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
            else:  # a process with the same ID in another container has the file, or the file was removed before the lock
                os.close(fd)

    def _set(self, left: int) -> None:
        os.ftruncate(self._fd, left)
        self._left = left

    def close(self) -> None:
        with self._lock:
            self._release()

    def _release(self) -> None:
        """Release the space. Requires the lock."""
        self._left = 0
        if self._fd >= 0:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1
