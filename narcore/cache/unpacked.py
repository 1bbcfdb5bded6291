"""Files out of cached NARs, as files of their own: the kernel can be handed one, and then reads it without us.

Each is made of its NAR, and again where it can't be trusted; so nothing is lost with one.
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

# What the kernel says where it can't copy by itself from one file to the other: then we do.
_NO_COPY = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EXDEV}

COPY_SIZE = 1 << 30  # bytes that the kernel is asked to copy at once, at most


@dataclass(frozen=True, slots=True)
class UnpackedFile:
    """Which unpacked file somebody has open: to ask whether it was evicted, and to count it as used, without a descriptor."""

    path: Path
    device: int
    inode: int

    @classmethod
    def of(cls, path: Path, fd: int) -> Self:
        """Of the open file."""
        status = os.fstat(fd)
        return cls(path, status.st_dev, status.st_ino)

    def is_evicted(self) -> bool:
        """Then only its readers keep it on the disk. So is one that somebody has written to: it will be made again."""
        try:
            return not self._is_it(self.path.lstat())
        except FileNotFoundError:
            return True
        except OSError:  # of a directory that can't be read, nothing is known
            return False

    def touch(self) -> None:
        """Let it count as used just now."""
        with suppress(OSError), _opened(self.path) as fd:
            if self._is_it(os.fstat(fd)):
                touch(fd)

    def _is_it(self, status: os.stat_result) -> bool:
        return (status.st_dev, status.st_ino) == (self.device, self.inode) and is_verified(status)


@contextmanager
def _opened(path: Path) -> Generator[int]:
    fd = os.open(path, READ_FLAGS)
    try:
        yield fd
    finally:
        os.close(fd)


def open_unpacked(layout: Layout, file: FileKey) -> int | None:
    """A descriptor of the file, if it is there and nobody has written to it."""
    try:
        fd = os.open(layout.file(file), READ_FLAGS)
    except OSError:  # there is none, or something else, whose place it will take
        return None
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode) and status.st_size == file.size and is_verified(status):
        return fd
    os.close(fd)
    return None


def unpack(
    layout: Layout, file: FileKey, nar: CachedNar, *, reserve: Reserve, on_evict: Callable[[list[Entry]], None]
) -> None:
    """Make the file, in place of one that may be there. Raises OSError and CacheFailure, and then nothing is left."""
    with replacing(layout.file(file)) as fd:
        # It has its size before a byte is written: by that the others know what was promised to it.
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


def is_right(file: FileKey, fd: int, nar_fd: int) -> bool:
    """Whether the open file holds what its NAR does. Raises OSError."""
    if os.fstat(fd).st_size != file.size:
        return False
    done = 0
    while done < file.size:
        data = os.pread(fd, min(CHUNK_SIZE, file.size - done), done)
        if not data or data != os.pread(nar_fd, len(data), file.start + done):
            return False
        done += len(data)
    return True
