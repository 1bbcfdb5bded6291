"""Room for what is new, a NAR or a file out of one: the least recently used go, before it comes."""

import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from narcore.cache.layout import (
    LISTING,
    NAR,
    FileKey,
    Layout,
    NarKey,
    file_of,
    is_nar_name,
    is_new_file,
    reserved_size,
)
from narcore.cache.locks import locked, remove_if_free
from narcore.cache.slots import reserved_parts
from narcore.errors import CacheFailure


@dataclass(frozen=True, slots=True)
class Entry:
    """A complete NAR in the directory, or the unpacked ``file`` of one.

    ``size`` counts the bytes of a NAR's listing too; ``used`` is in nanoseconds since the epoch.
    """

    digits: str
    size: int
    used: int
    file: FileKey | None = None

    def path(self, layout: Layout) -> Path:
        return layout.file(self.file) if self.file else layout.nar(self.digits)


@dataclass(frozen=True, slots=True)
class _Room:
    """What the directory holds, in bytes. ``pending`` is the part of ``promised`` that is not written yet."""

    entries: list[Entry]
    promised: int  # to what is on its way
    pending: int


# An evicted file keeps its space on the disk until it is closed. A process that keeps files open for the next reader checks every
# few seconds whether they were evicted.
RELEASE_SECONDS = 7.0


class RecentEvictions:
    """What was evicted to make room, and may still be open somewhere.

    Nothing more is evicted before the processes that have it open had time to close it: else every entry would go, one after the
    other, and free no space.
    """

    def __init__(self) -> None:
        self._until = 0.0
        self._size = 0
        self._unreported: list[Entry] = []

    def add(self, evicted: list[Entry]) -> None:
        self._size = self.size + sum(entry.size for entry in evicted)
        self._until = time.monotonic() + RELEASE_SECONDS
        self._unreported += evicted

    @property
    def size(self) -> int:
        """How many bytes the entries have; some of them may be free by now."""
        return self._size if time.monotonic() < self._until else 0

    def finish(self) -> list[Entry]:
        """The room was found: forget the sizes. Returns the entries that were not reported yet."""
        self._size = 0
        return self.take_unreported()

    def take_unreported(self) -> list[Entry]:
        """The entries that were evicted since the last call."""
        unreported, self._unreported = self._unreported, []
        return unreported


def entries(layout: Layout) -> list[Entry]:
    """Every complete NAR and unpacked file, least recently used first. Raises OSError."""
    return _entries(_scan(layout.directory))


def make_room(
    layout: Layout,
    key: NarKey,
    limit: int,
    *,
    reserve: Callable[[], None] = lambda: None,
    recent: RecentEvictions | None = None,
) -> list[Entry] | None:
    """Evict until ``key`` fits below ``limit`` bytes and into the file system, and call ``reserve``; the entries that went.

    What other fills have reserved is left to them: None if it fits only when some of them have ended, or when what went is not
    open any more: ``recent`` is for who tries again, and then has what went so far. Raises CacheFailure if it doesn't fit at all,
    and then has evicted nothing.
    """
    return _make_room(layout, key.size, limit, reserve, own=layout.part(key).name, recent=recent or RecentEvictions())


def make_room_for_file(
    layout: Layout, file: FileKey, limit: int, *, extra: int = 0, reserve: Callable[[], None], recent: RecentEvictions
) -> list[Entry]:
    """As `make_room`, and raises CacheFailure too where that gives None. ``extra``: how many more bytes to find.

    The NAR that the file is made of stays: else where only one of both has room, they would drive out each other for ever.
    """
    evicted = _make_room(layout, file.size + extra, limit, reserve, keep=file.digits, recent=recent)
    if evicted is None:
        others = "its NAR, the downloads under way and what was evicted and is still open"
        raise CacheFailure(f"there is no room for a file of {file.size} bytes beside {others}")
    return evicted


def _make_room(
    layout: Layout,
    size: int,
    limit: int,
    reserve: Callable[[], None],
    *,
    own: str = "",
    keep: str = "",
    recent: RecentEvictions,
) -> list[Entry] | None:
    """``own`` is the name of the part that it is for; the NAR ``keep`` is not evicted."""
    with locked(layout.lock):
        files = _scan(layout.directory)
        room = _room(layout, files, own, keep)
        needed = max(0, size - (files[own].st_size if own in files else 0))
        used = sum(entry.size for entry in room.entries)
        free = _free(layout.directory) - room.pending
        if size > limit or needed > free + room.pending + used + recent.size:
            raise CacheFailure(f"there is no room for {size} bytes")
        if size + room.promised > limit or needed > free + used + recent.size:
            return None
        evicted, coming = [], free + recent.size
        while used and (used + room.promised + size > limit or coming < needed):
            entry = room.entries.pop(0)
            remove(layout, entry)
            used -= entry.size
            coming += entry.size
            evicted.append(entry)
        if evicted:
            recent.add(evicted)
        if needed > _free(layout.directory) - room.pending:
            return None
        reserve()
        return recent.finish()


def remove(layout: Layout, entry: Entry) -> None:
    """Whoever reads from it reads on: POSIX keeps an open file."""
    if entry.file is None:
        remove_entry(layout, entry.digits)
    else:
        layout.file(entry.file).unlink(missing_ok=True)


def remove_entry(layout: Layout, digits: str) -> None:
    """Remove a NAR."""
    layout.listing(digits).unlink(missing_ok=True)  # first: a listing without a NAR would stay for ever
    layout.nar(digits).unlink(missing_ok=True)


def _room(layout: Layout, files: dict[str, os.stat_result], own: str, keep: str) -> _Room:
    promised = pending = 0
    reserved = reserved_parts(layout)
    for name, status in files.items():
        size = reserved_size(name)
        if is_new_file(name):
            claim, written = _claim(layout.directory / name, status)
        elif size is not None and name != own:
            # One that holds no reservation waits for its turn, or was left by a process that died: it is as large as it is.
            claim = max(size, status.st_size) if name in reserved else status.st_size
            written = status.st_size
        else:
            continue
        promised += claim
        pending += claim - written
    found = _entries(files)
    protected = sum(entry.size for entry in found if _is_nar(entry, keep))
    return _Room([entry for entry in found if not _is_nar(entry, keep)], promised + protected, pending)


def _is_nar(entry: Entry, digits: str) -> bool:
    return entry.file is None and entry.digits == digits


def _claim(path: Path, status: os.stat_result) -> tuple[int, int]:
    """How large an unpacked file will be that is on its way, and how much of it is written. It has its size from the start.

    One that a process has left which died is removed.
    """
    with suppress(OSError):  # another user's
        if remove_if_free(path):
            return 0, 0
    return status.st_size, min(status.st_size, status.st_blocks * 512)


def _entries(files: dict[str, os.stat_result]) -> list[Entry]:
    found = []
    for name, status in files.items():
        if is_nar_name(name):
            digits = name.removesuffix(NAR)
            listing = files.get(f"{digits}{LISTING}")
            found.append(Entry(digits, status.st_size + (listing.st_size if listing else 0), status.st_atime_ns))
        elif file := file_of(name):
            found.append(Entry(file.digits, status.st_size, status.st_atime_ns, file))
    return sorted(found, key=lambda entry: entry.used)


def _free(directory: Path) -> int:
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


def _scan(directory: Path) -> dict[str, os.stat_result]:
    """The regular files in the directory."""
    found = {}
    with os.scandir(directory) as items:
        for item in items:
            try:
                status = item.stat(follow_symlinks=False)
            except FileNotFoundError:  # evicted by another process since the directory was read
                continue
            if stat.S_ISREG(status.st_mode):
                found[item.name] = status
    return found
