"""Unpacked files: files in cached NARs, copied to separate files, which the kernel can read without this process.

An unpacked file is copied from its NAR again if it is missing or not marked as verified, so its loss is harmless.
"""

import errno
import os
import stat
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

from narcore.cache.cached import CachedNar
from narcore.cache.eviction import Entry
from narcore.cache.layout import THIS_BOOT, FileKey, Layout, is_verified, mark, touch
from narcore.cache.locks import READ_FLAGS, replacing
from narcore.cache.reserve import Reserve
from narcore.sizes import CHUNK_SIZE

# With these errors, copy_file_range(2) reports that the kernel can't copy between two files. Then this process copies the bytes.
_NO_COPY = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EXDEV}

COPY_SIZE = 1 << 30  # the most bytes to copy in one call of copy_file_range


@dataclass(frozen=True, slots=True)
class UnpackedFile:
    """Identifies an unpacked file that another object has open; tells whether it was evicted, and marks it as used."""

    path: Path
    device: int
    inode: int

    @classmethod
    def of(cls, path: Path, fd: int) -> Self:
        """Return the UnpackedFile for the file at ``path`` that is open at ``fd``."""
        status = os.fstat(fd)
        return cls(path, status.st_dev, status.st_ino)

    def is_evicted(self) -> bool:
        """Return whether the file was evicted (only open descriptors keep it on the disk). Also True if it was written to."""
        try:
            return not self._is_same_file(self.path.lstat())
        except FileNotFoundError:
            return True
        except OSError:  # the directory can't be read
            return False

    def touch(self) -> None:
        """Set the access time of the file to now, unless it was evicted."""
        with suppress(OSError), _opened(self.path) as fd:
            if self._is_same_file(os.fstat(fd)):
                touch(fd)

    def _is_same_file(self, status: os.stat_result) -> bool:
        return (status.st_dev, status.st_ino) == (self.device, self.inode) and is_verified(status)


@contextmanager
def _opened(path: Path) -> Generator[int]:
    fd = os.open(path, READ_FLAGS)
    try:
        yield fd
    finally:
        os.close(fd)


def open_unpacked(layout: Layout, file: FileKey) -> int | None:
    """Return a descriptor of the file, or None if it does not exist or is not marked as verified."""
    try:
        fd = os.open(layout.file(file), READ_FLAGS)
    except OSError:  # the file is missing, or not a regular file, which `unpack` replaces
        return None
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode) and status.st_size == file.size and is_verified(status):
        return fd
    os.close(fd)
    return None


def unpack(
    layout: Layout, file: FileKey, nar: CachedNar, *, reserve: Reserve, on_evict: Callable[[list[Entry]], None]
) -> None:
    """Unpack the file, replacing an existing file. If it raises OSError or CacheFailure, it leaves no new file."""
    with replacing(layout.file(file)) as fd:
        # The file gets its final size before a byte is written: this reserves the space for it.
        on_evict(reserve.make_room(file, partial(os.ftruncate, fd, file.size)))
        _copy(nar, fd, file.start, file.size)
        nar.check_untouched()
        os.fchmod(fd, 0o444)
        mark(fd, THIS_BOOT)


def _copy(nar: CachedNar, target: int, start: int, size: int) -> None:
    done = 0
    try:
        while done < size:
            copied = os.copy_file_range(nar.fd, target, min(COPY_SIZE, size - done), start + done, done)
            if not copied:
                break
            done += copied
    except OSError as error:
        if error.errno not in _NO_COPY:
            raise
    while done < size:
        data = nar.pread(start + done, start + min(size, done + CHUNK_SIZE))
        done += os.pwrite(target, data, done)


def has_contents_of_nar(file: FileKey, fd: int, nar_fd: int) -> bool:
    """Return whether the file open at ``fd`` has the same bytes as its range of the NAR open at ``nar_fd``. Raises OSError."""
    if os.fstat(fd).st_size != file.size:
        return False
    done = 0
    while done < file.size:
        data = os.pread(fd, min(CHUNK_SIZE, file.size - done), done)
        if not data or data != os.pread(nar_fd, len(data), file.start + done):
            return False
        done += len(data)
    return True
