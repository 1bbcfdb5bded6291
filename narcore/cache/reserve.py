"""Room that a process keeps for the small files that it will unpack, so that not each of them takes a look at the whole directory.

It is a file without a byte in it that is as large as the room: who makes room counts it as promised, as what is being written,
and the lock on it tells that its owner lives.
"""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path

from narcore.cache.eviction import Entry, Held, make_room_for_file
from narcore.cache.layout import FileKey, Layout
from narcore.cache.locks import OPEN_FLAGS, is_still_at, try_lock
from narcore.errors import CacheFailure

# Some thousand files of usual size for one look; of a small cache, a small part.
SPARE_MAX = 64 << 20
SPARE_SHARE = 100

# A file that is larger than this part of the room is worth a look of its own.
SMALL = 8

_numbers = count()


class Spare:
    """Thread-safe. ``limit`` is that of the directory, in bytes."""

    def __init__(self, layout: Layout, limit: int) -> None:
        self._layout = layout
        self._limit = limit
        self._full = min(SPARE_MAX, limit // SPARE_SHARE)
        self._left = 0
        self._held = Held()  # of all files: each that found no room would evict as much again
        self._lock = threading.Lock()
        self._fd = -1
        self._path = Path()

    def yield_to(self, size: int) -> None:
        """Give the room back if beside it there is none for something so large, which would wait for it in vain."""
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
            return make_room_for_file(self._layout, file, self._limit, reserve=reserve, held=self._held)

    def _refill(self, file: FileKey, reserve: Callable[[], None]) -> list[Entry]:
        def reserve_both() -> None:
            reserve()
            self._set(self._full)

        self._release()
        self._open()
        return make_room_for_file(
            self._layout, file, self._limit, spare=self._full, reserve=reserve_both, held=self._held
        )

    def _open(self) -> None:
        while self._fd < 0:
            path = self._layout.spare(next(_numbers))
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
        """Give the room back. With the lock held."""
        self._left = 0
        if self._fd >= 0:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1
