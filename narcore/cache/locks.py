"""Locks between processes, by flock(2): the kernel lets go of them when their holder dies, however it dies."""

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

OPEN_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


def try_lock(fd: int) -> bool:
    """Take the exclusive lock if nobody has it. A lock that this descriptor holds already is held on."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_still_at(fd: int, path: Path) -> bool:
    """Whether ``path`` still names the open file: a lock on one that was renamed or removed since locks nothing."""
    try:
        there = path.lstat()
    except FileNotFoundError:
        return False
    here = os.fstat(fd)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


@contextmanager
def locked(path: Path) -> Generator[None]:
    """Hold the lock file exclusively; waits for it, so what is done under it must be short."""
    fd = os.open(path, OPEN_FLAGS, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
