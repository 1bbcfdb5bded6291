"""What is mounted, as /proc/self/mountinfo tells (proc_pid_mountinfo(5)). No file system is asked, and so nothing can hang."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from narmount.fuse.syscalls import SOURCE

_MOUNTINFO = Path("/proc/self/mountinfo")
_ESCAPE = re.compile(rb"\\([0-7]{3})")  # white space, # and the backslash


@dataclass(frozen=True, slots=True)
class Mount:
    """``device`` is ``major:minor`` of the file system, ``root`` what of it is shown. ``options`` are those of this mount,
    ``super_options`` those of the file system.
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
        """Raises ValueError."""
        about_mount, separator, about_fs = line.partition(b" - ")  # optional fields end here
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
    """All that the process can see, those that are on top of others behind them. Raises OSError without /proc."""
    return [Mount.parse(line) for line in mountinfo_lines(_MOUNTINFO)]


def mountinfo_lines(path: Path) -> list[bytes]:
    """Of a file. A path in one may hold what ends a line elsewhere: of those, the kernel escapes the newline. Raises OSError."""
    return path.read_bytes().removesuffix(b"\n").split(b"\n")


def mounts_at(target: Path) -> list[Mount]:
    """Those at ``target``, the one that is seen last.

    The path is made absolute by its text alone: following its links could ask a file system that does not answer.
    """
    absolute = Path(os.path.abspath(target))  # noqa: PTH100  pathlib keeps ..
    return [mount for mount in mounts() if mount.target == absolute]


def ours_at(target: Path) -> Mount | None:
    """What is seen at the target, if nar-serve has mounted it."""
    there = mounts_at(target)
    return there[-1] if there and is_ours(there[-1]) else None


def is_ours(mounted: Mount) -> bool:
    return mounted.source == SOURCE and mounted.fs_type.startswith("fuse")


def mount_of(path: Path, among: Iterable[Mount] | None = None) -> Mount:
    """Return the mount that contains ``path``, which must be absolute and free of links.

    ``among`` is what is mounted; without it, the mounts of this process. Raises LookupError if none of them contains the path:
    in a chroot, the mount of / is not listed.
    """
    found = mounts() if among is None else among
    holding = [mount for mount in found if path == mount.target or mount.target in path.parents]
    if not holding:
        raise LookupError(f"no mount contains {path}")
    deepest = max(len(mount.target.parts) for mount in holding)
    return [mount for mount in holding if len(mount.target.parts) == deepest][-1]


def _options(field: bytes) -> tuple[str, ...]:
    return tuple(_text(field).split(","))


def _text(field: bytes) -> str:
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), field))
