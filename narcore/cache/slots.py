"""How many fills may run at once, over all processes that share the directory, and how much room each of them has reserved."""

import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from narcore.cache.layout import Layout
from narcore.cache.locks import OPEN_FLAGS, READ_FLAGS, try_lock
from narcore.errors import CacheFailure, CapacityError

POLL_SECONDS = 0.02
CROWDED_SECONDS = 0.2  # looking for room costs more than looking for a slot


class Slot:
    """One of the lock files, held. What is written in it is the name of the part that its holder has reserved room for."""

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
    """``count`` lock files, of which a fill holds one. Who waits longer than ``patience`` seconds for one is turned away."""

    def __init__(self, layout: Layout, count: int, *, patience: float = 10.0) -> None:
        self._layout = layout
        self._count = count
        self._patience = patience

    @contextmanager
    def hold(self, find_room: Callable[[Slot], bool]) -> Generator[None]:
        """Hold a slot for which ``find_room`` has found room, and reserved it. Waits for either.

        Raises CapacityError if there is no slot, CacheFailure if there is no room for long, and OSError if the directory can't
        be written to.
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
                        "downloads, or files that were evicted and are still open, leave no room in the cache"
                    )
                raise CapacityError(f"all {self._count} downloads that may run at once are taken", retry_after=10)
            time.sleep(CROWDED_SECONDS if slot else POLL_SECONDS)

    def _try_take(self) -> Slot | None:
        for number in range(self._count):
            fd = os.open(self._layout.slot(number), OPEN_FLAGS, 0o600)
            if try_lock(fd):
                return Slot(fd)
            os.close(fd)
        return None


def _has_room(slot: Slot, find_room: Callable[[Slot], bool]) -> bool:
    """Gives the slot back if there is no room: another fill may need less."""
    found = False
    try:
        found = find_room(slot)
    finally:
        if not found:
            slot.close()
    return found


def reserved_parts(layout: Layout) -> set[str]:
    """The names of the parts that room is reserved for, by fills that run now."""
    names = set()
    for path in layout.slots():
        try:
            fd = os.open(path, READ_FLAGS)
        except FileNotFoundError:
            continue
        try:
            if not try_lock(fd):  # free: what it says is of a process that was killed
                names.add(os.pread(fd, 200, 0).decode("ascii", "replace"))
        finally:
            os.close(fd)
    return names
