"""Locks between processes, by flock(2): the kernel lets go of them when their holder dies, however it dies."""

import fcntl
import os
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

OPEN_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # not blocking: no wait for a writer to a fifo


def try_lock(fd: int) -> bool:
    """Take the exclusive lock if nobody has it. A lock that this descriptor holds already is held on."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(fd: int) -> None:
    fcntl.flock(fd, fcntl.LOCK_UN)


def is_still_at(fd: int, path: Path) -> bool:
    """Whether ``path`` still names the open file: a lock on one that was renamed or removed since locks nothing."""
    try:
        there = path.lstat()
    except FileNotFoundError:
        return False
    here = os.fstat(fd)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


@contextmanager
def locked(path: Path) -> Generator[int]:
    """Hold the lock file exclusively; waits for it, so what is done under it must be short. Gives its descriptor."""
    fd = os.open(path, OPEN_FLAGS, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield fd
    finally:
        os.close(fd)


@contextmanager
def alone(fd: int) -> Generator[None]:
    """Hold the exclusive lock of an open file: long work on it is done by one at a time, and the next finds it done.

    Where a file that is open for reading only can't be locked (NFS), it is done without.
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
    """Write a new file (its descriptor is given) that takes the place of ``path`` when all went well.

    Until then it has a name of its own, and a lock by which a cleaner knows that its writer lives.
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
            if is_still_at(fd, path):  # else a cleaner was faster than the lock
                os.ftruncate(fd, 0)
                yield fd
                return


def remove_if_free(path: Path, *, also: Path | None = None) -> list[Path]:
    """Remove the file, and ``also``, if nobody holds a lock on either of them; what was removed. Raises OSError."""
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
