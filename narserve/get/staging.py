"""Where a tree grows until it is whole: a hidden directory beside its place, into which it is moved at the end.

So what is at the destination is complete, always. The directory's name holds what is being fetched: a run that was
interrupted is gone on with by the next one for just that, and never mixed with anything else. It is for its owner alone, and
locked by whoever fills it.
"""

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from narcore.errors import CapacityError, CorruptStream, FormatError, IntegrityError, SettingsError
from narcore.formats.names import to_bytes
from narserve.terminal.exits import print_message

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# Nothing that came with one of these is worth keeping.
_BAD = (IntegrityError, FormatError, CorruptStream)

ROOT = b"root"
"""What the tree is called in there."""


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a tree is to appear: the directory, open at ``parent_fd``, and the name that it gets there."""

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
        """The open directory ``staging`` beside the destination, in which ``ROOT`` is to be made; then it is moved.

        If that fails what is there stays for the next run, unless it was not what was promised. Raises OSError, and
        CapacityError if somebody else fills it.
        """
        fd = self._open(staging)
        try:
            yield fd
            if self.exists():
                raise FileExistsError(errno.EEXIST, "something has appeared there meanwhile", self.path)
            os.rename(ROOT, self.name, src_dir_fd=fd, dst_dir_fd=self.parent_fd)
            os.rmdir(staging, dir_fd=self.parent_fd)
        except _BAD:
            shutil.rmtree(staging, dir_fd=self.parent_fd)
            raise
        except BaseException:
            print_message(f"what has come is kept in {self._shown(staging)}, and the same command goes on from there")
            raise
        finally:
            os.close(fd)

    def _open(self, staging: bytes) -> int:
        while True:
            self._make(staging)
            fd = os.open(staging, _DIRECTORY | os.O_NOFOLLOW, dir_fd=self.parent_fd)
            try:
                if self._is_mine(fd, staging):
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
            error.filename = os.fsdecode(self.parent) or "."  # it is the directory that can't be written to
            raise

    def _is_mine(self, fd: int, staging: bytes) -> bool:
        """Lock it. False if it was moved away by the one who had the lock before."""
        status = os.fstat(fd)
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o022:
            raise PermissionError(errno.EPERM, "others can write to it; remove it first", self._shown(staging))
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CapacityError("another nar-serve is fetching that to the same place") from None
        try:
            now = os.stat(staging, dir_fd=self.parent_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return (now.st_dev, now.st_ino) == (status.st_dev, status.st_ino)


@contextmanager
def destination(given: str | None, default: str) -> Generator[Destination]:
    """``given`` is the name to get, or with a slash at its end the directory to put ``default`` into (. and .. are, too).

    Raises SettingsError if the directory is not there.
    """
    parent, name = os.path.split(os.fsencode(given or ""))
    if name in (b"", b".", b".."):
        parent, name = os.path.join(parent, name), to_bytes(default)  # noqa: PTH118  (bytes)
    try:
        fd = os.open(parent or b".", _DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        shown = os.fsdecode(parent)
        raise SettingsError(f"there is no directory {shown!r} to put it into: make it first, with mkdir -p") from None
    try:
        yield Destination(parent, fd, name)
    finally:
        os.close(fd)
