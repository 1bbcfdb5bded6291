"""Removes and measures directories that containers have written to. They can have any depth and size, and any content.

shutil.rmtree and os.walk recurse, and the length of a path is limited. So a container could make a tree that is too deep for them.
The functions here work at any depth.
"""

import errno
import itertools
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_BLOCK = 512  # the unit of st_blocks in bytes, stat(2)


def remove_tree(top: Path, seconds: float = math.inf) -> None:
    """Remove a directory and everything in it, if it exists. Does not follow links.

    Raises TimeoutError if a part of the directory is still there after ``seconds``, and OSError for other failures.
    """
    deadline = time.monotonic() + seconds
    with suppress(FileNotFoundError):
        with _opened(top) as fd:
            _empty(fd, deadline)
        top.rmdir()


def _empty(top: int, deadline: float) -> None:
    """Remove everything in a directory. Subdirectories are moved up to its first level, so the code never descends further."""
    numbers = itertools.count()
    for name in _names(top, deadline):
        try:
            os.unlink(name, dir_fd=top)
        except IsADirectoryError:
            with _opened(name, top) as inner:
                _empty_into(inner, top, numbers, deadline)
            os.rmdir(name, dir_fd=top)


def _empty_into(inner: int, top: int, numbers: Iterator[int], deadline: float) -> None:
    for name in _names(inner, deadline):
        try:
            os.unlink(name, dir_fd=inner)
        except IsADirectoryError:
            _move_up(name, inner, top, numbers)


def _names(directory: int, deadline: float) -> Iterator[str]:
    """Yield the names in a directory until it is empty. The caller must remove each name before it takes the next.

    The names are not read into memory all at once, since they may not fit. Raises TimeoutError.
    """
    is_empty = False
    while not is_empty:
        is_empty = True
        with os.scandir(directory) as entries:
            for entry in entries:
                is_empty = False
                if time.monotonic() > deadline:
                    raise TimeoutError(errno.ETIMEDOUT, "the time limit is reached")
                yield entry.name


def _move_up(name: str, inner: int, top: int, numbers: Iterator[int]) -> None:
    for number in numbers:
        try:
            os.rename(name, f"~{number}", src_dir_fd=inner, dst_dir_fd=top)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):  # the name is taken
                raise
        else:
            return


def used_bytes(top: Path, seconds: float) -> tuple[int, bool]:
    """Return the size on the disk of the files in a directory, in bytes, and whether all files were counted.

    Counting stops after ``seconds``. Files that are removed meanwhile, or are too deep for a path, are not counted.
    """
    deadline = time.monotonic() + seconds
    total, pending = 0, [str(top)]
    while pending:
        with suppress(OSError), os.scandir(pending.pop()) as entries:
            for entry in entries:
                if time.monotonic() > deadline:
                    return total, False
                total += _size(entry)
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
    return total, True


def _size(entry: "os.DirEntry[str]") -> int:
    """Return the size of one name. A file with n hard links counts as 1/n for each name, so no list of counted files is needed."""
    with suppress(FileNotFoundError):
        status = entry.stat(follow_symlinks=False)
        links = 1 if entry.is_dir(follow_symlinks=False) else status.st_nlink
        return status.st_blocks * _BLOCK // max(links, 1)
    return 0


@contextmanager
def _opened(path: Path | str, dir_fd: int | None = None) -> Iterator[int]:
    fd = os.open(path, _DIRECTORY, dir_fd=dir_fd)
    try:
        yield fd
    finally:
        os.close(fd)
