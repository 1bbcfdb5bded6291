"""/dev/fuse: opening it, having it mounted for a user, and files that the kernel reads itself (passthrough)."""

import array
import fcntl
import os
import socket
import struct
import subprocess
from pathlib import Path

from narcore.errors import MountError
from narmount.fuse.mountinfo import mount_of
from narmount.fuse.syscalls import MAX_READ, SOURCE, in_initial_user_namespace

DEVICE = "/dev/fuse"
FUSERMOUNT = "fusermount3"
FUSERMOUNT_SECONDS = 20  # it only mounts; what does not answer on the way to the target would hold it for ever

_CAP_SYS_ADMIN = 21
_STACKED = frozenset({"overlay", "ecryptfs", "fuse", "fuseblk"})

# The next step, by what fusermount3 says.
_STEPS = {
    "user_allow_other": "put the line user_allow_other into /etc/fuse.conf, or do without --allow-other",
    "no write access to mountpoint": "the directory has to be yours",
    "/dev/fuse": "most systems let every user open it (chmod 666 /dev/fuse)",
    "Operation not permitted": f"is {FUSERMOUNT} set-user-ID root? a container has to be given --cap-add SYS_ADMIN",
    "Device or resource busy": "something is using it; lsof or fuser -m shows what, and --lazy does not wait",
}

# include/uapi/linux/fuse.h: FUSE_DEV_IOC_BACKING_OPEN is _IOW(229, 1, struct fuse_backing_map), and _CLOSE _IOW(229, 2, uint32_t).
# The numbers are those of x86, ARM, RISC-V and s390; elsewhere the kernel does not know them, and says so.
_WRITE, _MAGIC = 1 << 30, 229 << 8
_BACKING_MAP = struct.Struct("=iIQ")  # fd, flags, padding
_BACKING_ID = struct.Struct("=I")
_BACKING_OPEN = _WRITE | _BACKING_MAP.size << 16 | _MAGIC | 1
_BACKING_CLOSE = _WRITE | _BACKING_ID.size << 16 | _MAGIC | 2


def may_mount() -> bool:
    """Whether mount(2) is ours to call: as root, or as the root of a user namespace. If not, there is ``mount_as_user``."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return os.geteuid() == 0
    effective = next((line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), "0")
    return bool(int(effective, 16) >> _CAP_SYS_ADMIN & 1)


def open_device() -> int:
    """A new connection, for ``mount_fuse``. Raises MountError."""
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError as error:
        step = "modprobe fuse loads it; a container has to be given it: --device /dev/fuse"
        raise MountError(f"there is no {DEVICE}; {step}") from error
    except PermissionError as error:
        step = "most systems let every user (chmod 666); a container has to be given it: --device /dev/fuse"
        raise MountError(f"{DEVICE} may not be opened; {step}") from error
    except OSError as error:
        raise MountError(f"can't open {DEVICE}: {error.strerror}; modprobe fuse loads it") from error


def mount_as_user(target: Path, *, allow_other: bool) -> int:
    """Have fusermount3, which is set-user-ID, mount ``target``; the open device. Raises MountError."""
    options = f"ro,nosuid,nodev,fsname={SOURCE},subtype={SOURCE},default_permissions,max_read={MAX_READ}"
    if allow_other:
        options += ",allow_other"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        os.set_inheritable(theirs.fileno(), True)
        done = _fusermount("-o", options, "--", str(target), channel=theirs)
        ours.setblocking(False)  # it has ended: what it has sent is there
        device = _received(ours)
    if device is None:
        raise _failure(f"can't mount {target}", done)
    return device


def unmount_as_user(target: Path, *, lazy: bool = False) -> None:
    """Unmount what the same user has had mounted at ``target``. Raises MountError."""
    done = _fusermount("-u", *(["-z"] if lazy else []), "--", str(target))
    if done.returncode:
        raise _failure(f"can't unmount {target}", done)


def _fusermount(*arguments: str, channel: socket.socket | None = None) -> subprocess.CompletedProcess[bytes]:
    """``channel`` is where it sends the device to. Raises MountError if it can't be run."""
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
            f"without root it takes {FUSERMOUNT}, which is not there; install the package fuse3"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise MountError(f"{FUSERMOUNT} did not end within {FUSERMOUNT_SECONDS} seconds") from error
    except OSError as error:
        raise MountError(f"can't run {FUSERMOUNT}: {error.strerror}") from error


def _received(channel: socket.socket) -> int | None:
    """The file descriptor that was sent, or None."""
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
    said = next((line.strip() for line in lines if line.strip()), f"{FUSERMOUNT} ended with {done.returncode}")
    for sign, step in _STEPS.items():
        if sign in said:
            return MountError(f"{what}: {said[:500]}; {step}")
    return MountError(f"{what}: {said[:500]}")


def may_pass_through(cache_dir: Path) -> str:
    """Empty if the kernel may read files in ``cache_dir`` itself, else the reason why it won't.

    The directory need not be there yet. The kernel has the last word, when a file is opened: see ``open_backing``.
    """
    if not in_initial_user_namespace():
        return "it is not for user namespaces"
    if not may_mount():
        return "it needs root (CAP_SYS_ADMIN)"
    try:
        fs_type = mount_of(Path(os.path.realpath(cache_dir))).fs_type
    except LookupError:  # in a chroot, whose own mount is not listed
        return ""
    if fs_type in _STACKED or fs_type.startswith("fuse."):
        return f"the cache directory is on {fs_type}, and the kernel stacks no further; --cache-dir DIR names one on a disk"
    return ""


def open_backing(fuse_fd: int, fd: int) -> int:
    """Let the kernel read the file ``fd`` in our place; the id that the answer to an OPEN names. Raises OSError.

    EPERM: without CAP_SYS_ADMIN, or not agreed upon in INIT. ELOOP: on a file system that is stacked upon others.
    ``fd`` may be closed after this; the file stays open until ``close_backing``, and as long as somebody has it open by us.
    """
    # The result of the call is what is wanted, and comes only with a buffer that may be written to.
    backing_id: int = fcntl.ioctl(fuse_fd, _BACKING_OPEN, bytearray(_BACKING_MAP.pack(fd, 0, 0)))
    return backing_id


def close_backing(fuse_fd: int, backing_id: int) -> None:
    """Raises OSError; ENOENT if there is no such id."""
    fcntl.ioctl(fuse_fd, _BACKING_CLOSE, bytearray(_BACKING_ID.pack(backing_id)))
