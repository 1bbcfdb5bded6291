"""The files in the cache directory, and the meaning of their names and marks.

::

    <narhash>.nar              a complete NAR, decompressed            (the layout of Nix's own local-nar-cache)
    <narhash>.listing          the listing of the NAR
    <narhash>.ls               a listing that Nix wrote; not used, but removed together with the NAR
    <narhash>.<size>.part      a NAR that is being fetched: grows as bytes arrive; locked by the process that writes it
    <narhash>.<size>.readers   locked (shared) by every process that reads from the part file; contains the URL of the store that
                               the NAR is fetched from
    <narhash>.<size>.error     the error of the last fill; valid for a few seconds
    <narhash>.<start>.<size>.file   an unpacked file: <size> bytes of the NAR, from <start> on
    .lock                      locked while entries are evicted
    .slot-<n>                  locked by a fill; contains the name of the part file that space is reserved for
    .slot-slow-<n>             the same, for a slow fill that gave its slot to another fill
    .counters                  counts of events
    .spare.<owner>.new         a sparse file, as large as the space that a process reserves for unpacked files; locked
    .<name>.<owner>.new        becomes <name> when it is complete; locked while it is written

Only nar-serve uses names that begin with a dot or end in ``.part``, ``.readers`` and ``.error``. A part file or new file
without a lock belongs to a process that died.

``<narhash>`` is the SHA-256 in nix32. For a part file, ``<size>`` is the NarSize in the narinfo, and that many bytes
are reserved. Because the size is in the name, a narinfo with a wrong size does not disturb a correct narinfo with the same hash.

The modification time of a NAR marks it as verified: 1 s after the epoch (as in the Nix store) once the NAR has been synced to the
disk; before the sync, a time that stands for the current boot. A NAR has another time if it was changed after it was marked, if Nix
wrote it, if a backup restored it, or if it was not synced before a crash. Such a NAR is hashed before it is used. A ``.file`` is
marked in the same way, but for the current boot only; a ``.file`` without the mark is unpacked from the NAR again.
"""

import os
import re
import time
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

NAR = ".nar"
LISTING = ".listing"
NIX_LISTING = ".ls"
PART = ".part"
READERS = ".readers"
ERROR = ".error"
FILE = ".file"

_DIGITS = r"[0-9a-z]{52}"
_NAR_NAME = re.compile(rf"{_DIGITS}\.nar")
_PART_NAME = re.compile(rf"{_DIGITS}\.([0-9]{{1,19}})\.part")
_READERS_NAME = re.compile(rf"({_DIGITS}\.[0-9]{{1,19}})\.readers")
_LISTING_NAME = re.compile(rf"({_DIGITS})\.(?:listing|ls)")
_ERROR_NAME = re.compile(rf"{_DIGITS}\.[0-9]{{1,19}}\.error")
_NEW_NAME = re.compile(rf"\.(\.counters|{_DIGITS}\.listing|{_DIGITS}\.[0-9]{{1,19}}\.error)\.[0-9]+-[0-9]+\.new")
_FILE_NAME = re.compile(rf"({_DIGITS})\.([0-9]{{1,19}})\.([0-9]{{1,19}})\.file")
_NEW_FILE_NAME = re.compile(rf"\.(spare|{_FILE_NAME.pattern})\.[0-9]+-[0-9]+\.new")
_SLOT_NAME = re.compile(r"\.slot-(slow-)?[0-9]+")

DURABLE = 1  # seconds since the epoch


@dataclass(frozen=True, slots=True)
class NarKey:
    """Identifies a NAR: its SHA-256 (``digits`` in nix32) and its size in bytes."""

    digits: str
    size: int


@dataclass(frozen=True, slots=True)
class FileKey:
    """Identifies an unpacked file by the range of the NAR that it contains. So the file's name does not depend on a listing."""

    digits: str
    start: int
    size: int


class Layout:
    """The paths of one cache directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.lock = directory / ".lock"
        self.counters = directory / ".counters"

    def nar(self, digits: str) -> Path:
        return self.directory / f"{digits}{NAR}"

    def listing(self, digits: str) -> Path:
        return self.directory / f"{digits}{LISTING}"

    def nix_listing(self, digits: str) -> Path:
        return self.directory / f"{digits}{NIX_LISTING}"

    def part(self, key: NarKey) -> Path:
        return self.directory / f"{key.digits}.{key.size}{PART}"

    def readers(self, key: NarKey) -> Path:
        return self.directory / f"{key.digits}.{key.size}{READERS}"

    def error(self, key: NarKey) -> Path:
        return self.directory / f"{key.digits}.{key.size}{ERROR}"

    def file(self, file: FileKey) -> Path:
        return self.directory / f"{file.digits}.{file.start}.{file.size}{FILE}"

    def slot(self, number: int) -> Path:
        return self.directory / f".slot-{number}"

    def slow_slot(self, number: int) -> Path:
        return self.directory / f".slot-slow-{number}"

    def reserve(self, number: int) -> Path:
        return self.directory / f".spare.{os.getpid()}-{number}.new"

    def slots(self) -> list[Path]:
        """Return all slot files that exist. Processes with a higher limit may have created more than this process uses."""
        return [self.directory / name for name in os.listdir(self.directory) if _SLOT_NAME.fullmatch(name)]

    def leftovers(self) -> "Leftovers":
        """Return the files that dead processes may have left."""
        names = set(os.listdir(self.directory))
        parts = {name.removesuffix(PART) for name in names if _PART_NAME.fullmatch(name)}
        parts |= {match[1] for match in map(_READERS_NAME.fullmatch, names) if match}
        return Leftovers(
            parts=[(self.directory / f"{part}{READERS}", self.directory / f"{part}{PART}") for part in parts],
            new=[self.directory / name for name in names if _NEW_NAME.fullmatch(name) or is_new_file(name)],
            errors=[self.directory / name for name in names if _ERROR_NAME.fullmatch(name)],
            listings=[
                (self.directory / name, nar)
                for name in names
                if (match := _LISTING_NAME.fullmatch(name)) and not (nar := self.nar(match[1])).exists()
            ],
        )


@dataclass(frozen=True, slots=True)
class Leftovers:
    """Files that dead processes may have left.

    ``parts`` (each preceded by its readers file) and ``new`` files are locked if their owner is alive. ``errors`` can be
    removed if they are old. ``listings`` have no NAR; each is paired with the path that its NAR would have.
    """

    parts: list[tuple[Path, Path]]
    new: list[Path]
    errors: list[Path]
    listings: list[tuple[Path, Path]]


def is_nar_name(name: str) -> bool:
    return _NAR_NAME.fullmatch(name) is not None


def file_of(name: str) -> FileKey | None:
    """Parse the name of an unpacked file; return None if ``name`` is not such a name."""
    match = _FILE_NAME.fullmatch(name)
    return FileKey(match[1], int(match[2]), int(match[3])) if match else None


def is_new_file(name: str) -> bool:
    """Return whether ``name`` is the name of an incomplete unpacked file, or of the space that is reserved for such files."""
    return _NEW_FILE_NAME.fullmatch(name) is not None


def reserved_size(name: str) -> int | None:
    """Return the size that a part file will have when it is complete; None if ``name`` is not the name of a part file."""
    match = _PART_NAME.fullmatch(name)
    return int(match[1]) if match else None


def _boot_mark() -> int:
    """Return a time that stands for the current boot, in seconds since the epoch.

    It is before 1987, so no real modification time equals it. Two boots almost never have the same time.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:  # not Linux: use a different time for each process
        boot = os.urandom(16)
    return 2 + zlib.crc32(boot) % (1 << 29)


THIS_BOOT = _boot_mark()


def is_verified(status: os.stat_result) -> bool:
    return status.st_mtime_ns in (DURABLE * 10**9, THIS_BOOT * 10**9)


def mark(fd: int, seconds: int) -> None:
    """Mark the file as verified. Its access time, which determines the order of eviction, does not change."""
    status = os.fstat(fd)
    os.utime(fd, ns=(status.st_atime_ns, seconds * 10**9))


def touch(fd: int) -> None:
    """Set the access time of the file to now."""
    with suppress(OSError):  # in a read-only directory: nothing is evicted there, so the order does not matter
        os.utime(fd, ns=(time.time_ns(), os.fstat(fd).st_mtime_ns))
