"""Room for a new NAR: the least recently used ones go, before it comes."""

import os
from dataclasses import dataclass
from pathlib import Path

from narcore.cache.layout import Layout, NarKey, is_nar_name, reserved_size
from narcore.cache.locks import locked


@dataclass(frozen=True, slots=True)
class Entry:
    """A complete NAR in the directory. ``used`` is in nanoseconds since the epoch."""

    digits: str
    size: int
    used: int


def entries(layout: Layout) -> list[Entry]:
    """Every complete NAR, least recently used first. Raises OSError."""
    found = []
    for item in _scan(layout.directory):
        if is_nar_name(item.name):
            status = _status(item)
            if status is not None:
                found.append(Entry(item.name[:52], status.st_size, status.st_atime_ns))
    return sorted(found, key=lambda entry: entry.used)


def make_room(layout: Layout, key: NarKey, limit: int) -> list[Entry] | None:
    """Evict until ``key`` fits below ``limit`` bytes and into the file system, or return None if it can't.

    What other fills have reserved is left to them. Its own part, which the caller has made and locked, is not counted twice.
    """
    with locked(layout.lock):
        kept = entries(layout)
        reserved = sum(
            size
            for name in os.listdir(layout.directory)
            if (size := reserved_size(name)) and name != layout.part(key).name
        )
        used = sum(entry.size for entry in kept)
        if reserved + key.size > limit:
            return None
        evicted = []
        while kept and (used + reserved + key.size > limit or _free(layout.directory) < _missing(layout, key)):
            entry = kept.pop(0)
            remove_entry(layout, entry.digits)
            used -= entry.size
            evicted.append(entry)
        return evicted if _free(layout.directory) >= _missing(layout, key) else None


def remove_entry(layout: Layout, digits: str) -> None:
    """Whoever reads from it reads on: POSIX keeps an open file."""
    layout.nar(digits).unlink(missing_ok=True)
    layout.listing(digits).unlink(missing_ok=True)


def _missing(layout: Layout, key: NarKey) -> int:
    """How many bytes of the NAR are not in its part yet."""
    try:
        return key.size - layout.part(key).stat().st_size
    except FileNotFoundError:
        return key.size


def _free(directory: Path) -> int:
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


def _scan(directory: Path) -> list[os.DirEntry[str]]:
    with os.scandir(directory) as items:
        return list(items)


def _status(item: os.DirEntry[str]) -> os.stat_result | None:
    try:
        return item.stat(follow_symlinks=False)
    except FileNotFoundError:  # evicted by another process since the directory was read
        return None
