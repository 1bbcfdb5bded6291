"""The limit on concurrent fills, over all processes that share the directory, and the space that each fill has reserved."""

import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from narcore.cache.layout import Layout
from narcore.cache.locks import OPEN_FLAGS, READ_FLAGS, try_lock
from narcore.errors import CacheFailure, CapacityError

POLL_SECONDS = 0.02
NO_ROOM_POLL_SECONDS = 0.2  # looking for room costs more than looking for a slot


class Slot:
    """A lock file that this process has locked. It contains the name of the part file that space is reserved for."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def reserve(self, part_name: str) -> None:
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, part_name.encode("ascii"), 0)

    def close(self) -> None:
        try:
            os.ftruncate(self._fd, 0)
        finally:
            os.close(self._fd)


class Slots:
    """``count`` lock files. Each fill holds one, and fails if it does not get one within ``patience`` seconds."""

    def __init__(self, layout: Layout, count: int, *, patience: float = 10.0) -> None:
        self._layout = layout
        self._count = count
        self._patience = patience

    @contextmanager
    def hold(self, find_room: Callable[[Slot], bool]) -> Generator[None]:
        """Hold a slot for which ``find_room`` has found and reserved room. Waits for a slot and for room.

        Raises CapacityError if there is no slot in time, CacheFailure if there is no room in time, and OSError if the directory
        can't be written to.
        """
        slot = self._take(find_room)
        try:
            yield
        finally:
            slot.close()

    def _take(self, find_room: Callable[[Slot], bool]) -> Slot:
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
            time.sleep(NO_ROOM_POLL_SECONDS if slot else POLL_SECONDS)

    def _try_take(self) -> Slot | None:
        for number in range(self._count):
            fd = os.open(self._layout.slot(number), OPEN_FLAGS, 0o600)
            if try_lock(fd):
                return Slot(fd)
            os.close(fd)
        return None


def _has_room(slot: Slot, find_room: Callable[[Slot], bool]) -> bool:
    """Return whether ``find_room`` finds room. If not, closes the slot: another fill may need less room."""
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
            if not try_lock(fd):  # the contents of an unlocked slot are from a process that was killed
                names.add(os.pread(fd, 200, 0).decode("ascii", "replace"))
        finally:
            os.close(fd)
    return names
