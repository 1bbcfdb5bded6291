"""What lies in the cache directory, and what the names and marks there mean.

::

    <narhash>.nar           a NAR, unpacked, whole                     (the layout of Nix's own local-nar-cache)
    <narhash>.ls            its listing, with every narOffset
    <narhash>.<size>.part   a NAR on its way: grows from its start; locked by whoever fills it
    <narhash>.<size>.readers   locked (shared) by every process that reads from the part
    <narhash>.<size>.error  why the last fill failed, for seconds
    <narhash>.<start>.<size>.file   the bytes of the NAR from <start> on, <size> of them: a file in it, to be opened as one
    .lock                   held while room is made
    .slot-<n>               locked by a fill; holds the name of the part that room is reserved for
    .counters               what happened so far
    .spare.<who>.new        as large as the room that its owner keeps for files to unpack; locked, and without a byte in it
    .<name>.<who>.new       what becomes <name> when it is complete; locked while it is written

The names with a dot in front are ours alone, as are those in ``.part``, ``.readers`` and ``.error``: without a lock on it, a part
or a new file was left by a process that died.

``<narhash>`` is the SHA-256 in nix32, ``<size>`` the NarSize that the fill was promised: so much room is made for the part, and
a narinfo that lies about the size is kept away from an honest one of the same hash.

A NAR is known to be verified by its modification time: 1 s after the epoch (as in the Nix store) once it has also reached the
disk; before that a number that stands for the running boot. Writing to the file changes the time, and a file that Nix, a backup
or a crash put there has another: such an entry is hashed before it is used. A ``.file`` is marked in the same way, for the running
boot only; one that is not marked is made again, of the NAR.
"""

import os
import re
import time
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

NAR = ".nar"
LISTING = ".ls"
PART = ".part"
READERS = ".readers"
ERROR = ".error"
FILE = ".file"

_DIGITS = r"[0-9a-z]{52}"
_NAR_NAME = re.compile(rf"{_DIGITS}\.nar")
_PART_NAME = re.compile(rf"{_DIGITS}\.([0-9]{{1,19}})\.part")
_READERS_NAME = re.compile(rf"({_DIGITS}\.[0-9]{{1,19}})\.readers")
_LISTING_NAME = re.compile(rf"{_DIGITS}\.ls")
_ERROR_NAME = re.compile(rf"{_DIGITS}\.[0-9]{{1,19}}\.error")
_NEW_NAME = re.compile(rf"\.(\.counters|{_DIGITS}\.ls|{_DIGITS}\.[0-9]{{1,19}}\.error)\.[0-9]+-[0-9]+\.new")
_FILE_NAME = re.compile(rf"({_DIGITS})\.([0-9]{{1,19}})\.([0-9]{{1,19}})\.file")
_NEW_FILE_NAME = re.compile(rf"\.(spare|{_FILE_NAME.pattern})\.[0-9]+-[0-9]+\.new")
_SLOT_NAME = re.compile(r"\.slot-[0-9]+")

DURABLE = 1  # seconds since the epoch


@dataclass(frozen=True, slots=True)
class NarKey:
    """Which NAR: its SHA-256 (``digits`` in nix32) and its size in bytes."""

    digits: str
    size: int


@dataclass(frozen=True, slots=True)
class FileKey:
    """Which bytes of which NAR an unpacked file holds; so its contents are known by its name, whatever a listing says."""

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

    def reserve(self, number: int) -> Path:
        return self.directory / f".spare.{os.getpid()}-{number}.new"

    def slots(self) -> list[Path]:
        """All slots that there are; other processes may be allowed more of them."""
        return [self.directory / name for name in os.listdir(self.directory) if _SLOT_NAME.fullmatch(name)]

    def leftovers(self) -> "Leftovers":
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
                if _LISTING_NAME.fullmatch(name) and not (nar := self.nar(name[: -len(LISTING)])).exists()
            ],
        )


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What processes that died may have left.

    ``parts`` (each with its readers' file in front of it) and ``new`` files are locked if their owner lives; ``errors`` are of
    no use when they are old; ``listings`` (each with the path that its NAR would have) lack the NAR.
    """

    parts: list[tuple[Path, Path]]
    new: list[Path]
    errors: list[Path]
    listings: list[tuple[Path, Path]]


def is_nar_name(name: str) -> bool:
    return _NAR_NAME.fullmatch(name) is not None


def file_of(name: str) -> FileKey | None:
    """What the unpacked file of that name holds; None if it is no such file's name."""
    match = _FILE_NAME.fullmatch(name)
    return FileKey(match[1], int(match[2]), int(match[3])) if match else None


def is_new_file(name: str) -> bool:
    """Whether it is the name of an unpacked file that is not complete yet, or of the room for some to come."""
    return _NEW_FILE_NAME.fullmatch(name) is not None


def reserved_size(name: str) -> int | None:
    """How many bytes the part of that name is promised to have; None if it is no part's name."""
    match = _PART_NAME.fullmatch(name)
    return int(match[1]) if match else None


def _boot_mark() -> int:
    """A time that no clock shows (before 1987) and that another boot of the machine does not have, most likely."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:  # not Linux: as if each process were a boot of its own
        boot = os.urandom(16)
    return 2 + zlib.crc32(boot) % (1 << 29)


THIS_BOOT = _boot_mark()


def is_verified(status: os.stat_result) -> bool:
    return status.st_mtime_ns in (DURABLE * 10**9, THIS_BOOT * 10**9)


def mark(fd: int, seconds: int) -> None:
    """Note on the file itself that it was verified. The access time, by which the least recently used go, stays."""
    status = os.fstat(fd)
    os.utime(fd, ns=(status.st_atime_ns, seconds * 10**9))


def touch(fd: int) -> None:
    """Note on the file that it was used just now."""
    with suppress(OSError):  # read-only: then who goes first in an eviction does not matter either
        os.utime(fd, ns=(time.time_ns(), os.fstat(fd).st_mtime_ns))
