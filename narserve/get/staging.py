"""Staging directory: a tree is written to a hidden directory beside its destination, and moved to the destination when complete.

Therefore a tree at the destination is always complete. The name of the staging directory identifies the source: after an
interruption, the next run for the same source continues, and different sources are never mixed. Only the owner can access the
directory. The process that writes to the directory holds a lock on it.
"""

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from narcore.errors import CapacityError, CorruptStream, FormatError, IntegrityError, SettingsError
from narcore.formats.names import to_bytes
from narserve.terminal.exits import print_message

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# After one of these errors, the staged data is deleted, since it may be wrong.
_BAD = (IntegrityError, FormatError, CorruptStream)

ROOT = b"root"
"""Name of the tree in the staging directory."""


@dataclass(frozen=True, slots=True)
class Destination:
    """The destination of a tree: the directory ``parent``, open as ``parent_fd``, and the name of the tree in it."""

    parent: bytes
    parent_fd: int
    name: bytes

    @property
    def path(self) -> str:
        return self._shown(self.name)

    def _shown(self, name: bytes) -> str:
        return os.fsdecode(os.path.join(self.parent, name))  # noqa: PTH118  (bytes)

    def exists(self) -> bool:
        try:
            os.stat(self.name, dir_fd=self.parent_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    @contextmanager
    def staged(self, staging: bytes) -> Generator[int]:
        """Open the directory ``staging`` beside the destination. The caller makes ``ROOT`` in it; on exit, ROOT is moved.

        If the caller fails, the staged data is kept for the next run, unless the data was wrong. Raises OSError, and CapacityError
        if another process writes to the directory.
        """
        fd = self._open(staging)
        try:
            yield fd
            if self.exists():
                raise FileExistsError(
                    errno.EEXIST, "was created by another program meanwhile; remove it first", self.path
                )
            os.rename(ROOT, self.name, src_dir_fd=fd, dst_dir_fd=self.parent_fd)
            self._remove(staging)
        except _BAD:
            _remove_tree(fd)
            self._remove(staging)
            raise
        except BaseException:
            print_message(f"the partial copy is kept in {self._shown(staging)}; run the same command to continue")
            raise
        finally:
            os.close(fd)

    def _remove(self, staging: bytes) -> None:
        """Remove the empty staging directory. If another program has replaced it, the replacement is left alone."""
        with suppress(OSError):
            os.rmdir(staging, dir_fd=self.parent_fd)

    def _open(self, staging: bytes) -> int:
        while True:
            self._make(staging)
            fd = os.open(staging, _DIRECTORY | os.O_NOFOLLOW, dir_fd=self.parent_fd)
            try:
                if self._lock(fd, staging):
                    return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def _make(self, staging: bytes) -> None:
        try:
            os.mkdir(staging, 0o700, dir_fd=self.parent_fd)
        except FileExistsError:
            pass
        except OSError as error:
            error.filename = os.fsdecode(self.parent) or "."  # the user can't write to the parent directory
            raise

    def _lock(self, fd: int, staging: bytes) -> bool:
        """Lock the staging directory. Returns False if the previous holder of the lock has removed the directory meanwhile."""
        status = os.fstat(fd)
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o022:
            raise PermissionError(errno.EPERM, "other users can write to it; remove it first", self._shown(staging))
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CapacityError("another nar-serve is copying to the same destination") from None
        try:
            now = os.stat(staging, dir_fd=self.parent_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return (now.st_dev, now.st_ino) == (status.st_dev, status.st_ino)


def _remove_tree(fd: int) -> None:
    """Remove the file or directory ``ROOT`` in the directory ``fd``, as far as possible."""
    try:
        os.unlink(ROOT, dir_fd=fd)
    except OSError:  # it is a directory
        shutil.rmtree(ROOT, ignore_errors=True, dir_fd=fd)


@contextmanager
def destination(given: str | None, default: str) -> Generator[Destination]:
    """Open the destination.

    ``given`` is the path of the destination. If it ends with a slash, or is ``.`` or ``..``, it is a directory, and the destination
    is ``default`` in this directory. Raises SettingsError if the directory does not exist.
    """
    parent, name = os.path.split(os.fsencode(given or ""))
    if name in (b"", b".", b".."):
        parent, name = os.path.join(parent, name), to_bytes(default)  # noqa: PTH118  (bytes)
    try:
        fd = os.open(parent or b".", _DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        shown = os.fsdecode(parent)
        raise SettingsError(f"there is no directory {shown!r}; create it first with mkdir -p") from None
    try:
        yield Destination(parent, fd, name)
    finally:
        os.close(fd)
