"""Checks of the ids and target paths of volumes, which are untrusted input."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from narmount.fuse.mountinfo import mount_of, mounts_at
from narmount.volumes.errors import VolumeRefused

# Characters. An id becomes the name of files and directories, and a file name with its suffix has at most 255 bytes. The id is also
# part of the options of overlayfs, which must fit into a page. Docker's names of anonymous volumes have 64 characters.
ID_MAX = 200

# The first character is restricted: programs could read a name like -rf as options, and a hidden directory is easily overlooked.
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_PATH_MAX = 4095  # path_resolution(7), without the NUL


def check_id(volume_id: str) -> str:
    """Return a valid volume id. Raises VolumeRefused."""
    if not _ID.fullmatch(volume_id) or len(volume_id) > ID_MAX:
        raise VolumeRefused(
            f"{shown(volume_id)} can't be the id of a volume; use at most {ID_MAX} letters, digits, . _ and -, "
            "and begin with a letter, a digit or _"
        )
    return volume_id


def check_target(target: Path | str, forbidden: Iterable[Path], within: Path | None = None) -> Path:
    """Return the path of a target as mountinfo has it: the links in its parent are resolved. Raises VolumeRefused.

    The target must not be inside a directory of ``forbidden``, and must not contain such a directory. It must be inside ``within``.
    File systems that may hang are not accessed.
    """
    text = os.fspath(target)
    if not text.startswith("/") or "\0" in text or len(os.fsencode(text)) > _PATH_MAX:
        raise VolumeRefused(f"{shown(text)} can't be a target; use an absolute path")
    if os.path.normpath(text) != text or text.startswith("//") or text == "/":
        raise VolumeRefused(f"{shown(text)} can't be a target; remove . and .. and repeated slashes")
    real = _without_links(Path(text))
    if within is not None and within not in real.parents:
        raise VolumeRefused(f"{shown(text)} can't be a target: it is not below {within}")
    for directory in forbidden:
        if real == directory or directory in real.parents or real in directory.parents:
            raise VolumeRefused(f"{real} can't be a target: it overlaps {directory}; choose another directory")
    return real


def _without_links(target: Path) -> Path:
    if _may_hang(target.parent):
        raise VolumeRefused(
            f"{target} can't be a target: it is in a FUSE file system or an overlay of one; choose another directory"
        )
    real = Path(os.path.realpath(target.parent)) / target.name
    if not mounts_at(real) and real.is_symlink():
        raise VolumeRefused(f"{target} can't be a target: it is a link; use the path of the directory itself")
    return real


def _may_hang(path: Path) -> bool:
    """Return whether a path is in a FUSE file system, or in an overlay of one."""
    try:
        mounted = mount_of(path)
    except LookupError:  # in a chroot, mounts above its root are not listed
        return False
    return mounted.fs_type.startswith("fuse") or mounted.source.startswith("nar-serve")


def shown(value: object) -> str:
    """Return untrusted input for a message: printable, and at most 100 characters."""
    quoted = repr(value)
    return quoted if len(quoted) <= 100 else f"{quoted[:97]}..."
