"""Finds the processes that use a volume: the process that asked for its mount, and processes whose mount namespace has the mount.

If dockerd is killed, neither this dockerd nor the next one unmounts its volumes. So a user of a volume is removed from the record
when the process that asked for the mount is gone and no other process sees the mount. A container may still run when its dockerd is
gone.
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
    """Return an identity of the process at the other end of a unix socket. It is unique until the next reboot."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, _, _ = _CREDENTIALS.unpack(data)
    return _identity(pid) if pid else UNKNOWN  # 0 means that the process is in another PID namespace


def is_gone(identity: str) -> bool:
    """Return whether a process has ended. Returns False if the identity is unknown."""
    return identity != UNKNOWN and _identity(int(identity.partition(":")[0])) != identity


def is_mounted_elsewhere(source: str, target: Path) -> bool:
    """Return whether a process, usually of a container, sees a mount of ``source`` other than the mount at ``target``.

    The devices are compared as well, since a process in a user namespace can choose the source of a mount, but not its device.
    """
    here = {mount.device for mount in mounts_at(target) if mount.source == source}
    return any(mount.target != target and (mount.device in here or not here) for mount in _mounts_anywhere(source))


def _identity(pid: int) -> str:
    """Return the PID with the start time of the process, since the kernel reuses PIDs; UNKNOWN if there is no such process."""
    try:
        stat = (_PROC / str(pid) / "stat").read_bytes()
    except OSError:
        return UNKNOWN
    # proc_pid_stat(5): the name in parentheses may contain any character. The state, the third field of the line, follows.
    fields = stat.rpartition(b")")[2].split()
    return UNKNOWN if fields[0] in (b"Z", b"X") else f"{pid}:{fields[19].decode()}"


def _mounts_anywhere(source: str) -> Iterator[Mount]:
    """Yield the mounts of ``source`` in the mount namespaces of all processes. Processes may start and end meanwhile."""
    name_of_source = os.fsencode(source)
    seen = set()
    for name in os.listdir(_PROC):
        if not name.isdecimal():
            continue
        with suppress(OSError):
            namespace = os.readlink(_PROC / name / "ns" / "mnt")  # noqa: PTH115  the text is not a path
            if namespace in seen:
                continue
            lines = (_PROC / name / "mountinfo").read_bytes().split(b"\n")  # not splitlines: names may contain \r
            seen.add(namespace)
            found = [Mount.parse(line) for line in lines if name_of_source in line]
            yield from (mount for mount in found if mount.source == source)
