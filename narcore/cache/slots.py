"""The limit on concurrent fills, for all processes that share the directory, and the space that each fill has reserved."""

import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from narcore.cache.layout import Layout
from narcore.cache.locks import OPEN_FLAGS, READ_FLAGS, locked, try_lock
from narcore.errors import CacheFailure, CapacityError

POLL_SECONDS = 0.02
NO_ROOM_POLL_SECONDS = 0.2  # longer than POLL_SECONDS, because looking for room costs more than looking for a slot


class Slot:
    """A lock file that this process has locked. It contains the name of the part file that space is reserved for."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.is_slow = False

    def reserve(self, part_name: str) -> None:
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, part_name.encode("ascii"), 0)

    def become_slow(self, fd: int) -> None:
        """Hold the locked file ``fd``, which is for slow fills, instead of the current slot file."""
        os.ftruncate(fd, 0)
        os.pwrite(fd, os.pread(self._fd, 200, 0), 0)
        self.close()
        self._fd, self.is_slow = fd, True

    def close(self) -> None:
        try:
            os.ftruncate(self._fd, 0)
        finally:
            os.close(self._fd)


class Slots:
    """``count`` lock files. Each fill holds one, and fails if it does not get one within ``patience`` seconds.

    In addition, up to ``count`` slow fills continue without a slot; each has another lock file.
    """

    def __init__(self, layout: Layout, count: int, *, patience: float = 10.0) -> None:
        self._layout = layout
        self._count = count
        self._patience = patience

    @contextmanager
    def hold(self, find_room: Callable[[Slot], bool], *, on_wait: Callable[[], None] = lambda: None) -> Generator[Slot]:
        """Hold a slot for which ``find_room`` has found and reserved room. Waits for a slot and for room.

        While it waits, it calls ``on_wait`` several times per second.

        Raises CapacityError if there is no slot in time, CacheFailure if there is no room in time, and OSError if the directory
        can't be written to.
        """
        slot = self._take(find_room, on_wait)
        try:
            yield slot
        finally:
            slot.close()

    def release_slow(self, slot: Slot) -> None:
        """Free the slot of a slow fill, which continues without a slot. No effect if there are already ``count`` such fills."""
        if slot.is_slow:
            return
        fd = self._lock_one(self._layout.slow_slot)
        if fd is not None:
            with locked(self._layout.lock):  # other fills that look for room must always see the reservation
                slot.become_slow(fd)

    def _take(self, find_room: Callable[[Slot], bool], on_wait: Callable[[], None]) -> Slot:
        deadline = time.monotonic() + self._patience
        while True:
            slot = self._try_take()
            if slot is not None and _has_room(slot, find_room):
                return slot
            if time.monotonic() >= deadline:
                if slot is not None:
                    raise CacheFailure(
                        "running downloads, or evicted files that are still open, leave no room in the cache"
                    )
                raise CapacityError(f"{self._count} downloads are running, which is the limit", retry_after=10)
            on_wait()
            time.sleep(NO_ROOM_POLL_SECONDS if slot else POLL_SECONDS)

    def _try_take(self) -> Slot | None:
        fd = self._lock_one(self._layout.slot)
        return Slot(fd) if fd is not None else None

    def _lock_one(self, path: Callable[[int], Path]) -> int | None:
        """Lock the first free slot file and return its descriptor; return None if none is free."""
        for number in range(self._count):
            fd = os.open(path(number), OPEN_FLAGS, 0o600)
            if try_lock(fd):
                return fd
            os.close(fd)
        return None


def _has_room(slot: Slot, find_room: Callable[[Slot], bool]) -> bool:
    """Return whether ``find_room`` finds room. If it finds none, closes the slot, because another fill may need less room."""
    found = False
    try:
        found = find_room(slot)
    finally:
        if not found:
            slot.close()
    return found


def reserved_parts(layout: Layout) -> set[str]:
    """Return the names of the part files for which running fills have reserved space."""
    names = set()
    for path in layout.slots():
        try:
            fd = os.open(path, READ_FLAGS)
        except FileNotFoundError:
            continue
        try:
            if not try_lock(fd):  # an unlocked slot file has contents only if its process was killed
                names.add(os.pread(fd, 200, 0).decode("ascii", "replace"))
        finally:
            os.close(fd)
    return names
