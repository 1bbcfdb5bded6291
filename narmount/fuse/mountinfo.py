"""The current mounts, from /proc/self/mountinfo (proc_pid_mountinfo(5)).

Reading this file can't hang, because the kernel asks no file system for its contents.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from narmount.fuse.syscalls import SOURCE

_MOUNTINFO = Path("/proc/self/mountinfo")
_ESCAPE = re.compile(rb"\\([0-7]{3})")  # the kernel escapes white space, # and the backslash


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of mountinfo.

    ``device`` is the ``major:minor`` of the file system, and ``root`` is the directory in the file system that is
    mounted. ``options`` belong to the mount, and ``super_options`` belong to the file system.
    """

    id: int
    parent: int
    device: str
    root: str
    target: Path
    options: tuple[str, ...]
    fs_type: str
    source: str
    super_options: tuple[str, ...]

    @classmethod
    def parse(cls, line: bytes) -> "Mount":
        """Parse a line. Raises ValueError if it is not a line of mountinfo."""
        about_mount, separator, about_fs = line.partition(b" - ")  # a hyphen ends the optional fields
        if not separator:
            raise ValueError(f"not a line of mountinfo: {line[:200]!r}")
        number, parent, device, root, target, options, *_ = about_mount.split(b" ")
        fs_type, source, super_options = about_fs.split(b" ")
        return cls(
            id=int(number),
            parent=int(parent),
            device=device.decode(),
            root=_text(root),
            target=Path(_text(target)),
            options=_options(options),
            fs_type=_text(fs_type),
            source=_text(source),
            super_options=_options(super_options),
        )


def mounts() -> list[Mount]:
    """Return all mounts that this process can see, a lower mount before the mount on top of it. Raises OSError without /proc."""
    return [Mount.parse(line) for line in mountinfo_lines(_MOUNTINFO)]


def mountinfo_lines(path: Path) -> list[bytes]:
    """Return the lines of a mountinfo file. Raises OSError.

    Only a newline ends a line. In paths, the kernel escapes newlines, but no other characters at which `str.splitlines` splits.
    """
    return path.read_bytes().removesuffix(b"\n").split(b"\n")


def mounts_at(target: Path) -> list[Mount]:
    """Return the mounts at ``target``. The last one is on top of the others."""
    path = absolute(target)
    return [mount for mount in mounts() if mount.target == path]


def absolute(path: Path) -> Path:
    """Make the path absolute without following links, since a link could lead to a file system that does not answer."""
    return Path(os.path.abspath(path))  # noqa: PTH100  pathlib keeps ..


def ours_at(target: Path) -> Mount | None:
    """Return the topmost mount at the target if it is a mount of nar-serve, else None."""
    found = mounts_at(target)
    return found[-1] if found and is_ours(found[-1]) else None


def is_ours(mounted: Mount) -> bool:
    return mounted.source == SOURCE and mounted.fs_type.startswith("fuse")


def mount_of(path: Path, among: Iterable[Mount] | None = None) -> Mount:
    """Return the mount that contains ``path``, which must be absolute and without links.

    ``among`` are the mounts to search; by default, all mounts that this process can see. Raises LookupError if none of them
    contains the path: in a chroot, the mount of / is not listed.
    """
    found = mounts() if among is None else among
    holding = [mount for mount in found if path.is_relative_to(mount.target)]
    if not holding:
        raise LookupError(f"no mount contains {path}")
    deepest = max(len(mount.target.parts) for mount in holding)
    return [mount for mount in holding if len(mount.target.parts) == deepest][-1]


def _options(field: bytes) -> tuple[str, ...]:
    return tuple(_text(field).split(","))


def _text(field: bytes) -> str:
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), field))
