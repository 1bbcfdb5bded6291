"""Room for a new NAR: the least recently used ones go, before it comes."""

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from narcore.cache.layout import LISTING, NAR, Layout, NarKey, is_nar_name, reserved_size
from narcore.cache.locks import locked
from narcore.cache.slots import reserved_parts
from narcore.errors import CacheFailure


@dataclass(frozen=True, slots=True)
class Entry:
    """A complete NAR in the directory. ``size`` counts the bytes of its listing too; ``used`` is in nanoseconds since the epoch."""

    digits: str
    size: int
    used: int


@dataclass(frozen=True, slots=True)
class _Room:
    """What the directory holds, in bytes. ``pending`` is the part of ``promised`` that is not written yet."""

    entries: list[Entry]
    promised: int  # to the fills under way
    pending: int


def entries(layout: Layout) -> list[Entry]:
    """Every complete NAR, least recently used first. Raises OSError."""
    return _entries(_scan(layout.directory))


def make_room(
    layout: Layout, key: NarKey, limit: int, *, reserve: Callable[[], None] = lambda: None
) -> list[Entry] | None:
    """Evict until ``key`` fits below ``limit`` bytes and into the file system, and call ``reserve``; the entries that went.

    What other fills have reserved is left to them: None if it fits only when some of them have ended. Raises CacheFailure if
    it doesn't fit at all, and then has evicted nothing.
    """
    own = layout.part(key).name
    with locked(layout.lock):
        files = _scan(layout.directory)
        room = _room(files, reserved_parts(layout), own)
        needed = max(0, key.size - (files[own].st_size if own in files else 0))
        used = sum(entry.size for entry in room.entries)
        free = _free(layout.directory) - room.pending
        if key.size > limit or needed > free + room.pending + used:
            raise CacheFailure(f"there is no room for a NAR of {key.size} bytes")
        if key.size + room.promised > limit or needed > free + used:
            return None
        evicted = []
        while used and (used + room.promised + key.size > limit or free < needed):
            entry = room.entries.pop(0)
            remove_entry(layout, entry.digits)
            used -= entry.size
            free = _free(layout.directory) - room.pending
            evicted.append(entry)
        reserve()
        return evicted


def remove_entry(layout: Layout, digits: str) -> None:
    """Whoever reads from it reads on: POSIX keeps an open file."""
    layout.listing(digits).unlink(missing_ok=True)  # first: a listing without a NAR would stay for ever
    layout.nar(digits).unlink(missing_ok=True)


def _room(files: dict[str, os.stat_result], reserved: set[str], own: str) -> _Room:
    promised = pending = 0
    for name, status in files.items():
        size = reserved_size(name)
        if size is None or name == own:
            continue
        # One that holds no reservation waits for its turn, or was left by a process that died: it is as large as it is.
        claim = max(size, status.st_size) if name in reserved else status.st_size
        promised += claim
        pending += claim - status.st_size
    return _Room(_entries(files), promised, pending)


def _entries(files: dict[str, os.stat_result]) -> list[Entry]:
    found = []
    for name, status in files.items():
        if is_nar_name(name):
            digits = name.removesuffix(NAR)
            listing = files.get(f"{digits}{LISTING}")
            found.append(Entry(digits, status.st_size + (listing.st_size if listing else 0), status.st_atime_ns))
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
