"""mount(2) and umount2(2), through the C library: no program has to be there, and the GIL is not held while they wait.

None of them asks a file system anything by its path, apart from what the kernel itself asks the layers of a new overlay.
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

# mount(2) takes a page of options, with the NUL at their end, and overlayfs splits them at these.
_DATA_MAX = 4095
_SPECIAL = frozenset(",:\\")

# The next step, where the errno alone does not say it.
_STEPS = {
    errno.EPERM: "it needs root (CAP_SYS_ADMIN), or a user namespace: unshare --user --map-root-user --mount",
    errno.EACCES: "it needs root (CAP_SYS_ADMIN), or a user namespace: unshare --user --map-root-user --mount",
    errno.ENODEV: "this kernel does not know the file system; modprobe fuse or modprobe overlay loads it",
    errno.ENOENT: "make the directory first",
    errno.ENOTDIR: "it has to be a directory",
    errno.ENOTCONN: "what was mounted there has died; nar-serve mount --unmount DIR removes it",
    errno.EBUSY: "something is using it; lsof or fuser -m shows what",
    errno.ESTALE: "its layers were used for another overlay; give it new ones",
    errno.ELOOP: "too many links, or file systems that are stacked upon each other",
}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)


def mount_fuse(fd: int, target: Path, *, allow_other: bool) -> None:
    """Mount the file system that is answered for on ``fd``, an open /dev/fuse. Raises MountError.

    The kernel checks modes and owners (default_permissions): answers need not.
    """
    options = (
        f"fd={fd},rootmode=40000,user_id={os.geteuid()},group_id={os.getegid()},default_permissions,max_read={MAX_READ}"
    )
    if allow_other:
        options += ",allow_other"
    try:
        _mount(SOURCE, target, FUSE_TYPE, MS_RDONLY | _SAFE, options)
    except OSError as error:
        raise _failure(f"can't mount {target}", error) from error


def bind_read_only(source: Path, target: Path) -> None:
    """Show ``source`` at ``target`` too: read-only, without set-user-ID programs and devices. Raises MountError."""
    what = f"can't mount {source} at {target}"
    try:
        _mount(str(source), target, None, MS_BIND, None)
    except OSError as error:
        raise _failure(what, error) from error
    try:
        _mount(None, target, None, MS_BIND | MS_REMOUNT | MS_RDONLY | _SAFE, None)  # a bind takes no flags at first
    except OSError as error:
        with suppress(MountError):
            unmount(target, lazy=True)
        raise _failure(f"{what} read-only", error) from error


def mount_overlay(target: Path, *, name: str, lower: Path, upper: Path, work: Path, volatile: bool = True) -> None:
    """Show ``lower``, with what is written kept in ``upper``. ``work`` is an empty directory beside ``upper``.

    ``volatile``: nothing is ever synced to the disk (Linux 5.10), and after a crash the kernel refuses to mount ``upper`` and
    ``work`` again. ``name`` is what mountinfo gives as the source. Raises MountError.
    """
    options = f"lowerdir={_layer(lower)},upperdir={_layer(upper)},workdir={_layer(work)}"
    if volatile:
        options += ",volatile"
    if not in_initial_user_namespace():
        options += ",userxattr"  # trusted.* is for root outside of it
    if len(os.fsencode(options)) > _DATA_MAX:
        raise MountError(f"can't mount {target}: the paths of its layers are longer than a page; use shorter ones")
    try:
        _mount(name, target, "overlay", _SAFE, options)
    except OSError as error:
        raise _failure(f"can't mount an overlay of {lower} at {target}", error) from error


def flush_overlay(target: Path) -> None:
    """Make an overlay forget which names it has not found in its lower layer, and what that lists. Raises MountError.

    An overlay never asks again for a name that was not there once: the kernel expects no changes below. A remount drops its
    cache of names, and disturbs nobody inside.
    """
    try:
        _mount(None, target, None, MS_REMOUNT | _SAFE, None)
    except OSError as error:
        raise _failure(f"can't remount {target}", error) from error


def unmount(target: Path, *, lazy: bool = False) -> None:
    """Unmount what is on top at ``target``; ``lazy``: out of sight at once, and gone when nobody uses it any more.

    Raises MountError, also if nothing is mounted there.
    """
    try:
        if _libc.umount2(_bytes(target), (MNT_DETACH if lazy else 0) | UMOUNT_NOFOLLOW):
            _raise_errno()
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise MountError(f"can't unmount {target}: nothing is mounted there") from error
        raise _failure(f"can't unmount {target}", error) from error


def in_initial_user_namespace() -> bool:
    """Also where there is no /proc, or the kernel has no user namespaces."""
    try:
        mapped = Path("/proc/self/uid_map").read_text()
    except OSError:
        return True
    return mapped.split() == ["0", "0", "4294967295"]  # user_namespaces(7)


def _mount(source: str | None, target: Path, fs_type: str | None, flags: int, options: str | None) -> None:
    """Raises OSError."""
    if _libc.mount(_bytes(source), _bytes(target), _bytes(fs_type), flags, _bytes(options)):
        _raise_errno()


def _raise_errno() -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))


def _bytes(text: str | Path | None) -> bytes | None:
    if text is None:
        return None
    encoded = os.fsencode(text)
    if b"\0" in encoded:  # the C library would see another path
        raise OSError(errno.EINVAL, "a NUL in a path")
    return encoded


def _layer(path: Path) -> str:
    """How such characters are escaped depends on the kernel's version and the option, so they are refused."""
    if _SPECIAL & {*str(path)}:
        raise MountError(
            f"can't use {path} as a layer of an overlay: a path with , : or \\ can't be told to every kernel"
        )
    return str(path)


def _failure(what: str, error: OSError) -> MountError:
    step = _STEPS.get(error.errno or 0)
    return MountError(f"{what}: {error.strerror}" + (f"; {step}" if step else ""))
