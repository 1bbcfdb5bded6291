"""Locks between processes, with flock(2): the kernel releases a lock when the process that holds it dies for any reason."""

import fcntl
import os
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

OPEN_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
# O_NONBLOCK: do not wait for the writer of a FIFO.
READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def try_lock(fd: int) -> bool:
    """Take the exclusive lock if it is free; return True if this descriptor holds the lock now, also if it already held it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(fd: int) -> None:
    fcntl.flock(fd, fcntl.LOCK_UN)


def is_still_at(fd: int, path: Path) -> bool:
    """Return whether ``path`` still names the open file. If not, a lock on the open file does not affect the file at ``path``."""
    try:
        there = path.lstat()
    except FileNotFoundError:
        return False
    here = os.fstat(fd)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


@contextmanager
def locked(path: Path) -> Generator[int]:
    """Hold the exclusive lock on a lock file; yields its descriptor. Waits for the lock, so hold it only for short work."""
    fd = os.open(path, OPEN_FLAGS, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield fd
    finally:
        os.close(fd)


@contextmanager
def alone(fd: int) -> Generator[None]:
    """Hold the exclusive lock on an open file. So one process does long work on the file, and the others find the work done.

    If the file can't be locked (on NFS, if it is open for reading only), continues without the lock.
    """
    with suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        yield
    finally:
        with suppress(OSError):
            unlock(fd)


@contextmanager
def replacing(path: Path) -> Generator[int]:
    """Yield the descriptor of a new file, which replaces ``path`` at the end of the ``with`` block unless the block raises.

    Until then the new file has a temporary name, and a lock that shows other processes that its writer is alive.
    """
    new = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.new")
    with _new_file(new) as fd:
        try:
            yield fd
            new.replace(path)
        except BaseException:
            with suppress(OSError):
                new.unlink(missing_ok=True)
            raise


@contextmanager
def _new_file(path: Path) -> Generator[int]:
    while True:
        with locked(path) as fd:
            if is_still_at(fd, path):  # otherwise another process removed the file before it was locked
                os.ftruncate(fd, 0)
                yield fd
                return


def remove_if_free(path: Path, *, also: Path | None = None) -> list[Path]:
    """Remove the file, and ``also``, if neither of them is locked; return the removed files. Raises OSError."""
    opened: list[tuple[int, Path]] = []
    try:
        for each in filter(None, (path, also)):
            with suppress(FileNotFoundError):
                opened.append((os.open(each, READ_FLAGS), each))
        if not all(try_lock(fd) for fd, _ in opened):
            return []
        removed = [each for fd, each in opened if is_still_at(fd, each)]
        for each in removed:
            each.unlink(missing_ok=True)
        return removed
    finally:
        for fd, _ in opened:
            os.close(fd)
