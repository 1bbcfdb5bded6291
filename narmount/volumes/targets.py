"""Ids and targets of volumes, which come from outside: checked before anything is done with them."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from narmount.fuse.mountinfo import mount_of, mounts_at
from narmount.volumes.errors import VolumeRefused

ID_MAX = 200  # it becomes the name of a directory, and part of options of overlayfs, which have to fit a page

_ID = re.compile(r"[A-Za-z0-9._-]+")
_PATH_MAX = 4095  # path_resolution(7), without the NUL


def check_id(volume_id: str) -> str:
    """Raises VolumeRefused."""
    if not _ID.fullmatch(volume_id) or len(volume_id) > ID_MAX or volume_id in (".", ".."):
        raise VolumeRefused(
            f"{shown(volume_id)} can't be the id of a volume; it is up to {ID_MAX} letters, digits, . _ and -"
        )
    return volume_id


def check_target(target: Path | str, forbidden: Iterable[Path], within: Path | None = None) -> Path:
    """Where to mount: the path as mountinfo has it, its parent free of links. Raises VolumeRefused.

    ``forbidden`` are directories that it may not be in, nor hold; ``within`` is one that it has to be in. No file
    system that may not answer is asked.
    """
    text = os.fspath(target)
    if not text.startswith("/") or "\0" in text or len(os.fsencode(text)) > _PATH_MAX:
        raise VolumeRefused(f"{shown(text)} can't be a target; it is an absolute path")
    if os.path.normpath(text) != text or text.startswith("//") or text == "/":
        raise VolumeRefused(f"{shown(text)} can't be a target; write it without . and .., and without doubled slashes")
    real = _without_links(Path(text))
    if within is not None and within not in real.parents:
        raise VolumeRefused(f"{shown(text)} can't be a target: it is not below {within}")
    for directory in forbidden:
        if real == directory or directory in real.parents or real in directory.parents:
            raise VolumeRefused(f"{real} can't be a target: {directory} is in the way; name another directory")
    return real


def _without_links(target: Path) -> Path:
    if _may_hang(target.parent):
        raise VolumeRefused(
            f"{target} can't be a target: it is in a file system of another process; name a plain directory"
        )
    real = Path(os.path.realpath(target.parent)) / target.name
    if not mounts_at(real) and real.is_symlink():
        raise VolumeRefused(f"{target} can't be a target: it is a link; name the directory itself")
    return real


def _may_hang(path: Path) -> bool:
    """Whether that is FUSE, or an overlay on top of it."""
    try:
        mounted = mount_of(path)
    except LookupError:  # in a chroot, what is above it is not listed
        return False
    return mounted.fs_type.startswith("fuse") or mounted.source.startswith("nar-serve")


def shown(value: object) -> str:
    """Return untrusted input for a message: printable, and at most 100 characters."""
    quoted = repr(value)
    return quoted if len(quoted) <= 100 else f"{quoted[:97]}..."
