"""Who uses a volume, as far as the kernel knows: which process asked for a mount, and which processes see it.

A dockerd that is killed never takes back what it asked for, and neither does the next one. So a mount counts no longer when the
process that asked for it is gone, and no other process has it in its file system either: a container may have outlived its dockerd.
"""

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from narmount.fuse.mountinfo import Mount, mounts_at

UNKNOWN = ""

_PROC = Path("/proc")
_CREDENTIALS = struct.Struct("3i")  # unix(7): ucred


def caller(connection: socket.socket) -> str:
    """The process that has connected, as no other one will ever be called until a reboot."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, _, _ = _CREDENTIALS.unpack(data)
    return _identity(pid) if pid else UNKNOWN  # 0: of another namespace of pids


def is_gone(identity: str) -> bool:
    """One that is not known is not."""
    return identity != UNKNOWN and _identity(int(identity.partition(":")[0])) != identity


def is_mounted_elsewhere(source: str, target: Path) -> bool:
    """Whether a process sees a mount of that source, but for the one at ``target``: mostly a container.

    Who has a user namespace can name the source of a mount as he likes, but not have its device.
    """
    here = {mount.device for mount in mounts_at(target) if mount.source == source}
    return any(mount.target != target and (mount.device in here or not here) for mount in _mounts_anywhere(source))


def _identity(pid: int) -> str:
    """A pid may be used again, but not with the same time of start. UNKNOWN if there is none."""
    try:
        stat = (_PROC / str(pid) / "stat").read_bytes()
    except OSError:
        return UNKNOWN
    # proc_pid_stat(5): the name in parentheses may hold anything; behind it come the state (the 3rd field) and more.
    fields = stat.rpartition(b")")[2].split()
    return UNKNOWN if fields[0] in (b"Z", b"X") else f"{pid}:{fields[19].decode()}"


def _mounts_anywhere(source: str) -> Iterator[Mount]:
    """In every namespace of mounts that a process is in. Processes come and go meanwhile."""
    wanted = os.fsencode(source)
    seen = set()
    for name in os.listdir(_PROC):
        if not name.isdecimal():
            continue
        with suppress(OSError):
            namespace = os.readlink(_PROC / name / "ns" / "mnt")  # noqa: PTH115  it is no path
            if namespace in seen:
                continue
            lines = (_PROC / name / "mountinfo").read_bytes().split(b"\n")  # and not at \r, which may be in a name
            seen.add(namespace)
            found = [Mount.parse(line) for line in lines if wanted in line]
            yield from (mount for mount in found if mount.source == source)
