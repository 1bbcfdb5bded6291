"""mount(2) and umount2(2), through the C library: no other program is needed, and the GIL is released while a call waits.

No function here opens or reads a file of a mount. Only the kernel reads the layers of a new overlay.
"""

import ctypes
import errno
import os
from contextlib import suppress
from pathlib import Path

from narcore.errors import MountError

SOURCE = "nar-serve"
FUSE_TYPE = f"fuse.{SOURCE}"
MAX_READ = 1 << 20

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND = 1, 2, 4, 32, 4096
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8

_SAFE = MS_NOSUID | MS_NODEV

# mount(2) takes one page of options, including the NUL. overlayfs splits options at these characters.
_DATA_MAX = 4095
_SPECIAL = frozenset(",:\\")

# What the user can do about an errno, if the text of the errno does not suggest it.
_STEPS = {
    errno.EPERM: "this needs root (CAP_SYS_ADMIN), or a user namespace: unshare --user --map-root-user --mount",
    errno.EACCES: "this needs root (CAP_SYS_ADMIN), or a user namespace: unshare --user --map-root-user --mount",
    errno.ENODEV: "the kernel lacks the file system; load it with modprobe fuse or modprobe overlay",
    errno.ENOENT: "make the directory first",
    errno.ENOTDIR: "it is not a directory; choose a directory",
    errno.ENOTCONN: "the mount there is dead; remove it with nar-serve mount --unmount DIR",
    errno.EBUSY: "something is using it; find the program with lsof or fuser -m",
    errno.ESTALE: "its layers were used for another overlay; use new ones",
    errno.ELOOP: "there are too many links, or too many file systems stacked on each other",
}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)


def mount_fuse(fd: int, target: Path, *, allow_other: bool) -> None:
    """Mount a FUSE file system at ``target``. ``fd`` is an open /dev/fuse. Raises MountError.

    The kernel checks modes and owners (default_permissions), so the server does not have to.
    """
    options = (
        f"fd={fd},rootmode=40000,user_id={os.geteuid()},group_id={os.getegid()},default_permissions,max_read={MAX_READ}"
    )
    if allow_other:
        options += ",allow_other"
    try:
        mount(SOURCE, target, FUSE_TYPE, MS_RDONLY | _SAFE, options)
    except OSError as error:
        raise _failure(f"can't mount {target}", error) from error


def bind_read_only(source: Path, target: Path) -> None:
    """Bind-mount ``source`` at ``target``: read-only, without set-user-ID programs and devices. Raises MountError."""
    what = f"can't mount {source} at {target}"
    try:
        mount(str(source), target, None, MS_BIND, None)
    except OSError as error:
        raise _failure(what, error) from error
    try:
        mount(
            None, target, None, MS_BIND | MS_REMOUNT | MS_RDONLY | _SAFE, None
        )  # with MS_BIND alone, other flags are ignored
    except OSError as error:
        with suppress(MountError):
            unmount(target, lazy=True)
        raise _failure(f"{what} read-only", error) from error


def mount_overlay(target: Path, *, name: str, lower: Path, upper: Path, work: Path, volatile: bool = True) -> None:
    """Mount an overlay that shows ``lower`` and keeps changes in ``upper``. ``work`` is an empty directory beside ``upper``.

    With ``volatile``, nothing is synced to the disk (Linux 5.10), and after a crash the kernel refuses to mount ``upper`` and
    ``work`` again. ``name`` is the source that mountinfo shows. Raises MountError.
    """
    options = f"lowerdir={_layer(lower)},upperdir={_layer(upper)},workdir={_layer(work)}"
    if volatile:
        options += ",volatile"
    if not in_initial_user_namespace():
        options += ",userxattr"  # only root of the initial user namespace may set trusted.* attributes
    if len(os.fsencode(options)) > _DATA_MAX:
        raise MountError(
            f"can't mount {target}: the paths of its layers are longer than a page (4 KiB); use shorter ones"
        )
    try:
        mount(name, target, "overlay", _SAFE, options)
    except OSError as error:
        raise _failure(f"can't mount an overlay of {lower} at {target}", error) from error


def flush_overlay(target: Path) -> None:
    """Make an overlay forget its cached directories and the names that its lower layer did not have. Raises MountError.

    The kernel expects no changes of the lower layer, so an overlay never looks up a missing name again. A remount drops the
    overlay's cache of names, and does not disturb programs that use the overlay.
    """
    try:
        mount(None, target, None, MS_REMOUNT | _SAFE, None)
    except OSError as error:
        raise _failure(f"can't remount {target}", error) from error


def unmount(target: Path, *, lazy: bool = False) -> None:
    """Unmount the topmost mount at ``target``. Raises MountError, also if nothing is mounted there.

    With ``lazy``, the mount disappears from ``target`` immediately, even if it is in use. It ends when no process uses it any more.
    """
    try:
        if _libc.umount2(_bytes(target), (MNT_DETACH if lazy else 0) | UMOUNT_NOFOLLOW):
            _raise_errno()
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise MountError(f"can't unmount {target}: nothing is mounted there") from error
        raise _failure(f"can't unmount {target}", error) from error


def in_initial_user_namespace() -> bool:
    """Return whether this is the initial user namespace. Also returns True if /proc or user namespaces are missing."""
    try:
        mapped = Path("/proc/self/uid_map").read_text()
    except OSError:
        return True
    return mapped.split() == ["0", "0", "4294967295"]  # user_namespaces(7)


def mount(source: str | None, target: Path, fs_type: str | None, flags: int, options: str | None) -> None:
    """Call mount(2). Raises OSError."""
    if _libc.mount(_bytes(source), _bytes(target), _bytes(fs_type), flags, _bytes(options)):
        _raise_errno()


def _raise_errno() -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))


def _bytes(text: str | Path | None) -> bytes | None:
    if text is None:
        return None
    encoded = os.fsencode(text)
    if b"\0" in encoded:  # the C library would use the text before the NUL as the path
        raise OSError(errno.EINVAL, "a NUL in a path")
    return encoded


def _layer(path: Path) -> str:
    """Return the path as text. Raises MountError for characters whose escapes depend on the kernel version and the option."""
    if _SPECIAL & {*str(path)}:
        raise MountError(
            f"can't use {path} as a layer of an overlay: not every kernel accepts a path with , : or \\ there"
        )
    return str(path)


def _failure(what: str, error: OSError) -> MountError:
    step = _STEPS.get(error.errno or 0)
    return MountError(f"{what}: {error.strerror}" + (f"; {step}" if step else ""))
