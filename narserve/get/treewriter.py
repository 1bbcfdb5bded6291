"""Writes a tree to disk, safe against hostile trees and against anything that already exists in the directory.

Every step uses the descriptor of the directory in which it works. Neither a link nor a file that another process creates meanwhile
can therefore redirect a write. An existing file is reused only if it belongs to this user and if its bytes are the beginning of
the file to write.
"""

import os
import stat
from contextlib import suppress

from narcore.errors import NarError

_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OLD = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

# 1 s after the epoch, in nanoseconds, as in a Nix store.
_TIMES = (10**9, 10**9)


class TreeWriter:
    """Writes nodes into the directory that is open as ``fd``, and into directories that it makes there. Raises OSError.

    Modes follow the umask: executable files stay executable, and the owner can write to everything.
    """

    def __init__(self, fd: int) -> None:
        self._open = [os.dup(fd)]

    def close(self) -> None:
        while self._open:
            os.close(self._open.pop())

    def directory(self, name: bytes) -> None:
        """Enter a directory, which is created if it is missing. ``end_directory`` leaves it."""
        _check(name)
        with suppress(FileExistsError):
            os.mkdir(name, dir_fd=self._open[-1])
        self._open.append(os.open(name, _DIRECTORY, dir_fd=self._open[-1]))

    def end_directory(self) -> None:
        fd = self._open.pop()
        try:
            os.utime(fd, ns=_TIMES)
        finally:
            os.close(fd)

    def symlink(self, name: bytes, target: bytes) -> None:
        _check(name)
        here = self._open[-1]
        if not _is_link_to(name, target, here):
            _remove(name, here)
            os.symlink(target, name, dir_fd=here)
        os.utime(name, ns=_TIMES, dir_fd=here, follow_symlinks=False)

    def file(self, name: bytes, executable: bool, size: int) -> "FileWriter":
        """Open a regular file for writing. The caller closes it."""
        _check(name)
        here = self._open[-1]
        fd = _open_partial(name, executable, size, here)
        if fd is None:
            _remove(name, here)
            fd = os.open(name, _NEW, 0o777 if executable else 0o666, dir_fd=here)
        return FileWriter(fd)


class FileWriter:
    """A file that is written from its start to its end. ``have`` is the number of bytes that existed before."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.have = os.fstat(fd).st_size

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Write ``data`` at ``offset``. Existing bytes are not written again if they are the same."""
        old = os.pread(self._fd, max(0, min(len(data), self.have - offset)), offset)
        rest = memoryview(data)
        if old == rest[: len(old)]:
            rest, offset = rest[len(old) :], offset + len(old)
        while rest:
            written = os.pwrite(self._fd, rest, offset)
            rest, offset = rest[written:], offset + written

    def finish(self) -> None:
        os.utime(self._fd, ns=_TIMES)

    def close(self) -> None:
        os.close(self._fd)


def _check(name: bytes) -> None:
    """Raises NarError for a dangerous name. The parsers reject such names already; this is a second line of defense."""
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise NarError(f"{name!r} is not a valid file name")


def _open_partial(name: bytes, executable: bool, size: int, here: int) -> int | None:
    """Open the part of a file that an earlier run has written. Returns None if the name is missing, or is not such a file."""
    try:
        fd = os.open(name, _OLD, dir_fd=here)
    except OSError:  # missing, or a link, a directory, a socket
        return None
    status = os.fstat(fd)
    ours = stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_uid == os.geteuid()
    if ours and status.st_size <= size and bool(status.st_mode & stat.S_IXUSR) == executable:
        return fd
    os.close(fd)
    return None


def _is_link_to(name: bytes, target: bytes, here: int) -> bool:
    try:
        return os.readlink(name, dir_fd=here) == target
    except OSError:
        return False


def _remove(name: bytes, here: int) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=here)
