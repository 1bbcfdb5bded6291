"""Makes room for a new NAR or unpacked file: evicts the least recently used entries before the new file is written."""

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
    NIX_LISTING,
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
    """A complete NAR in the directory, or an unpacked file, which ``file`` identifies.

    ``size`` is in bytes and includes the listings of a NAR. ``used`` is the time of the last use, in nanoseconds since the epoch.
    """

    digits: str
    size: int
    used: int
    file: FileKey | None = None

    def path(self, layout: Layout) -> Path:
        return layout.file(self.file) if self.file else layout.nar(self.digits)


@dataclass(frozen=True, slots=True)
class _Usage:
    """The contents of the cache directory. ``promised`` and ``pending`` are in bytes."""

    entries: list[Entry]
    promised: int  # reserved for files that are being written, or used by files that must not be evicted
    pending: int  # how many bytes of ``promised`` are not on the disk yet


# An evicted file takes up disk space until it is closed. A process that keeps files open for the next reader checks every few
# seconds whether they were evicted.
RELEASE_SECONDS = 7.0


class RecentEvictions:
    """Entries that were evicted to make room, but may still be open in some process.

    For RELEASE_SECONDS, their space counts as if it were free already, because the processes need this time to close the files.
    Otherwise all entries would be evicted, one after the other, without freeing space.
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
        """The total size in bytes of the recently evicted entries. Some of this space may be free by now."""
        return self._size if time.monotonic() < self._until else 0

    def finish(self) -> list[Entry]:
        """Reset ``size`` to 0, since there is room now. Returns the evicted entries that were not reported yet."""
        self._size = 0
        return self.take_unreported()

    def take_unreported(self) -> list[Entry]:
        """Return the entries that were evicted since the last call."""
        unreported, self._unreported = self._unreported, []
        return unreported


def entries(layout: Layout) -> list[Entry]:
    """Return every complete NAR and unpacked file, least recently used first. Raises OSError."""
    return _entries(_scan(layout.directory))


def make_room(
    layout: Layout,
    key: NarKey,
    limit: int,
    *,
    reserve: Callable[[], None] = lambda: None,
    recent: RecentEvictions | None = None,
) -> list[Entry] | None:
    """Evict entries until the NAR ``key`` fits into ``limit`` bytes and into the file system, then call ``reserve``.

    Returns the evicted entries. Returns None if the NAR does not fit yet, because other fills have reserved space or evicted
    entries are still open: the caller may try again with the same ``recent``, which has the entries evicted so far. Raises
    CacheFailure, without evicting anything, if the NAR can't fit at all.
    """
    return _make_room(layout, key.size, limit, reserve, own=layout.part(key).name, recent=recent or RecentEvictions())


def make_room_for_file(
    layout: Layout, file: FileKey, limit: int, *, extra: int = 0, reserve: Callable[[], None], recent: RecentEvictions
) -> list[Entry]:
    """Make room for an unpacked file, and for ``extra`` more bytes, as `make_room` does. Returns the evicted entries.

    Raises CacheFailure if there is no room, also in the cases where `make_room` returns None. Never evicts the NAR that contains
    the file: if there were room for only one of the two, they would evict each other again and again.
    """
    evicted = _make_room(layout, file.size + extra, limit, reserve, protected=file.digits, recent=recent)
    if evicted is None:
        others = "its NAR, the running downloads, and evicted files that are still open"
        raise CacheFailure(f"the cache has no room for a file of {file.size} bytes besides {others}")
    return evicted


def _make_room(
    layout: Layout,
    size: int,
    limit: int,
    reserve: Callable[[], None],
    *,
    own: str = "",
    protected: str = "",
    recent: RecentEvictions,
) -> list[Entry] | None:
    """Make room as `make_room` does.

    ``own`` is the name of the part file that needs the room, or "". The NAR ``protected`` is not evicted.
    """
    with locked(layout.lock):
        files = _scan(layout.directory)
        usage = _usage(layout, files, own, protected)
        needed = max(0, size - (files[own].st_size if own in files else 0))
        used = sum(entry.size for entry in usage.entries)
        free = free_bytes(layout.directory) - usage.pending
        if size > limit or needed > free + usage.pending + used + recent.size:
            raise CacheFailure(f"there is no room for {size} bytes")
        if size + usage.promised > limit or needed > free + used + recent.size:
            return None
        evicted, expected_free = [], free + recent.size
        while used and (used + usage.promised + size > limit or expected_free < needed):
            entry = usage.entries.pop(0)
            remove(layout, entry)
            used -= entry.size
            expected_free += entry.size
            evicted.append(entry)
        if evicted:
            recent.add(evicted)
        if needed > free_bytes(layout.directory) - usage.pending:
            return None
        reserve()
        return recent.finish()


def remove(layout: Layout, entry: Entry) -> None:
    """Remove an entry. Readers that have it open can continue: POSIX keeps the contents of a removed file until it is closed."""
    if entry.file is None:
        remove_entry(layout, entry.digits)
    else:
        layout.file(entry.file).unlink(missing_ok=True)


def remove_entry(layout: Layout, digits: str) -> None:
    """Remove a NAR and its listings."""
    layout.listing(digits).unlink(missing_ok=True)  # first, so that no listing without a NAR remains
    layout.nix_listing(digits).unlink(missing_ok=True)
    layout.nar(digits).unlink(missing_ok=True)


def _usage(layout: Layout, files: dict[str, os.stat_result], own: str, protected: str) -> _Usage:
    promised = pending = 0
    reserved = reserved_parts(layout)
    for name, status in files.items():
        size = reserved_size(name)
        if is_new_file(name):
            claim, written = _claim(layout.directory / name, status)
        elif size is not None and name != own:
            # While its fill waits for a slot, or if its process died, a part file has no reservation: its current size counts.
            claim = max(size, status.st_size) if name in reserved else status.st_size
            written = status.st_size
        else:
            continue
        promised += claim
        pending += claim - written
    found = _entries(files)
    unevictable = sum(entry.size for entry in found if _is_nar(entry, protected))
    return _Usage([entry for entry in found if not _is_nar(entry, protected)], promised + unevictable, pending)


def _is_nar(entry: Entry, digits: str) -> bool:
    return entry.file is None and entry.digits == digits


def _claim(path: Path, status: os.stat_result) -> tuple[int, int]:
    """Return two sizes in bytes of an unpacked file that is being written: its final size, and how much of it is on the disk.

    The file is sparse and has its final size from the start. If its writer died, removes the file and returns zeros.
    """
    with suppress(OSError):  # another user's file
        if remove_if_free(path):
            return 0, 0
    return status.st_size, min(status.st_size, status.st_blocks * 512)


def _entries(files: dict[str, os.stat_result]) -> list[Entry]:
    found = []
    for name, status in files.items():
        if is_nar_name(name):
            digits = name.removesuffix(NAR)
            listings = (files.get(f"{digits}{ending}") for ending in (LISTING, NIX_LISTING))
            size = status.st_size + sum(listing.st_size for listing in listings if listing)
            found.append(Entry(digits, size, status.st_atime_ns))
        elif file := file_of(name):
            found.append(Entry(file.digits, status.st_size, status.st_atime_ns, file))
    return sorted(found, key=lambda entry: entry.used)


def free_bytes(directory: Path) -> int:
    """Return how many bytes are free for this process in the file system of the directory. Raises OSError."""
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


def _scan(directory: Path) -> dict[str, os.stat_result]:
    """Return the status of each regular file in the directory, by name."""
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
