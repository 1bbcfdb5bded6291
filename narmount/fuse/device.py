"""Opens /dev/fuse, mounts FUSE file systems as root or as a user, registers files that the kernel reads itself (passthrough)."""

import array
import fcntl
import os
import socket
import struct
import subprocess
from pathlib import Path

from narcore.errors import MountError
from narmount.fuse import syscalls
from narmount.fuse.mountinfo import mount_of

DEVICE = "/dev/fuse"
FUSERMOUNT = "fusermount3"
FUSERMOUNT_SECONDS = 20  # mounting is fast, but fusermount3 hangs if a file system on the path to the target hangs

_CAP_SYS_ADMIN = 21
_STACKED = frozenset({"overlay", "ecryptfs", "fuse", "fuseblk"})

# What the user can do about a message of fusermount3.
_STEPS = {
    "user_allow_other": "put the line user_allow_other into /etc/fuse.conf, or leave out --allow-other",
    "no write access to mountpoint": "use a directory that belongs to you",
    "/dev/fuse": "let every user open it, as most systems do: chmod 666 /dev/fuse",
    "Operation not permitted": f"check that {FUSERMOUNT} is set-user-ID root; a container needs --cap-add SYS_ADMIN",
    "Device or resource busy": "something is using it; find the program with lsof or fuser -m, or use --lazy, which does not wait",
}

# include/uapi/linux/fuse.h: FUSE_DEV_IOC_BACKING_OPEN is _IOW(229, 1, struct fuse_backing_map), and _CLOSE _IOW(229, 2, uint32_t).
# x86, ARM, RISC-V and s390 encode ioctl numbers like this; other kernels refuse them as unknown.
_WRITE, _MAGIC = 1 << 30, 229 << 8
_BACKING_MAP = struct.Struct("=iIQ")  # fd, flags, padding
_BACKING_ID = struct.Struct("=I")
_BACKING_OPEN = _WRITE | _BACKING_MAP.size << 16 | _MAGIC | 1
_BACKING_CLOSE = _WRITE | _BACKING_ID.size << 16 | _MAGIC | 2


def may_mount() -> bool:
    """Return whether this process may call mount(2): it is root, or the root of a user namespace."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return os.geteuid() == 0
    effective = next((line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), "0")
    return bool(int(effective, 16) >> _CAP_SYS_ADMIN & 1)


def open_device() -> int:
    """Open a new connection, for `syscalls.mount_fuse`. Returns its descriptor. Raises MountError."""
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError as error:
        step = "load it with modprobe fuse; a container needs --device /dev/fuse"
        raise MountError(f"there is no {DEVICE}; {step}") from error
    except PermissionError as error:
        step = "let every user open it, as most systems do: chmod 666 /dev/fuse; a container needs --device /dev/fuse"
        raise MountError(f"no permission to open {DEVICE}; {step}") from error
    except OSError as error:
        raise MountError(f"can't open {DEVICE}: {error.strerror}; load the kernel module with modprobe fuse") from error


def mount(target: Path, *, allow_other: bool) -> int:
    """Mount a FUSE file system with the privileges of this process, and return the open device. Raises MountError."""
    if not may_mount():
        return mount_as_user(target, allow_other=allow_other)
    fd = open_device()
    syscalls.mount_fuse(fd, target, allow_other=allow_other)
    return fd


def unmount(target: Path, *, lazy: bool = False) -> None:
    """Undo `mount`; see `syscalls.unmount`. Raises MountError."""
    if may_mount():
        syscalls.unmount(target, lazy=lazy)
    else:
        unmount_as_user(target, lazy=lazy)


def mount_as_user(target: Path, *, allow_other: bool) -> int:
    """Mount at ``target`` with fusermount3, which is set-user-ID root, and return the open device. Raises MountError."""
    options = f"ro,nosuid,nodev,fsname={syscalls.SOURCE},subtype={syscalls.SOURCE},default_permissions,max_read={syscalls.MAX_READ}"
    if allow_other:
        options += ",allow_other"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        os.set_inheritable(theirs.fileno(), True)
        done = _fusermount("-o", options, "--", str(target), channel=theirs)
        ours.setblocking(False)  # fusermount3 has ended, so the descriptor that it sent has arrived
        fd = _received(ours)
    if fd is None:
        raise _failure(f"can't mount {target}", done)
    return fd


def unmount_as_user(target: Path, *, lazy: bool = False) -> None:
    """Unmount what the same user has mounted at ``target`` with `mount_as_user`. Raises MountError."""
    done = _fusermount("-u", *(["-z"] if lazy else []), "--", str(target))
    if done.returncode:
        raise _failure(f"can't unmount {target}", done)


def _fusermount(*arguments: str, channel: socket.socket | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run fusermount3, which sends the device over ``channel``. Raises MountError if it can't be run."""
    environ, pass_fds = dict(os.environ), []
    if channel is not None:
        environ["_FUSE_COMMFD"] = str(channel.fileno())
        pass_fds.append(channel.fileno())
    try:
        return subprocess.run(  # noqa: S603
            [FUSERMOUNT, *arguments],
            env=environ,
            pass_fds=pass_fds,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=FUSERMOUNT_SECONDS,
            check=False,
        )
    except FileNotFoundError as error:
        raise MountError(
            f"mounting without root needs {FUSERMOUNT}, which is not installed; install the package fuse3"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise MountError(f"{FUSERMOUNT} did not end within {FUSERMOUNT_SECONDS} seconds") from error
    except OSError as error:
        raise MountError(f"can't run {FUSERMOUNT}: {error.strerror}") from error


def _received(channel: socket.socket) -> int | None:
    """Return the file descriptor that was sent over ``channel``, or None."""
    fds = array.array("i")
    try:
        _, controls, _, _ = channel.recvmsg(1, socket.CMSG_SPACE(fds.itemsize), socket.MSG_CMSG_CLOEXEC)
    except OSError:
        return None
    for level, kind, data in controls:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: fds.itemsize])
            return fds[0]
    return None


def _failure(what: str, done: subprocess.CompletedProcess[bytes]) -> MountError:
    lines = done.stderr.decode(errors="replace").split("\n")
    message = next((line.strip() for line in lines if line.strip()), f"{FUSERMOUNT} ended with {done.returncode}")
    step = next((f"; {step}" for text, step in _STEPS.items() if text in message), "")
    return MountError(f"{what}: {message[:500]}{step}")


def may_pass_through(cache_dir: Path) -> str:
    """Return why passthrough of files in ``cache_dir`` is impossible, or an empty string if no reason is known.

    The directory may not exist yet. The kernel decides when a file is opened: see `open_backing`.
    """
    if not syscalls.in_initial_user_namespace():
        return "user namespaces can't use passthrough"
    if not may_mount():
        return "passthrough needs root (CAP_SYS_ADMIN)"
    try:
        fs_type = mount_of(Path(os.path.realpath(cache_dir))).fs_type
    except LookupError:  # in a chroot, the mount of / is not listed
        return ""
    if fs_type in _STACKED or fs_type.startswith("fuse."):
        step = "choose a directory on a disk with --cache-dir DIR"
        return f"the cache directory is on {fs_type}, which does not support passthrough; {step}"
    return ""


def open_backing(fuse_fd: int, fd: int) -> int:
    """Register the open file ``fd`` with the kernel, and return the backing id for an answer to OPEN.

    ``fd`` may be closed after this. The kernel keeps the file open until `close_backing` was called and no process
    has the file open through the mount. Raises OSError: EPERM without CAP_SYS_ADMIN, or if INIT did not agree on passthrough; ELOOP
    if the file is on a stacked file system such as an overlay.
    """
    # fcntl.ioctl returns the result of the call only if it gets a writable buffer.
    backing_id: int = fcntl.ioctl(fuse_fd, _BACKING_OPEN, bytearray(_BACKING_MAP.pack(fd, 0, 0)))
    return backing_id


def close_backing(fuse_fd: int, backing_id: int) -> None:
    """Undo `open_backing`. Raises OSError, with ENOENT if there is no such id."""
    fcntl.ioctl(fuse_fd, _BACKING_CLOSE, bytearray(_BACKING_ID.pack(backing_id)))
