"""Directories that containers have written to. They can be of any depth and size, and what is in them is hostile.

shutil.rmtree and os.walk recurse, and paths have a maximal length: a container could make what they can't remove. So nothing here
depends on the depth of a tree.
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
_BLOCK = 512  # what st_blocks counts, stat(2)


def remove_tree(top: Path, seconds: float = math.inf) -> None:
    """Remove a directory and all in it; links in it are not followed. Nothing if it is not there. Raises OSError.

    It is a TimeoutError if that takes longer than so many seconds; then a part of it is still there.
    """
    deadline = time.monotonic() + seconds
    with suppress(FileNotFoundError):
        with _opened(top) as fd:
            _empty(fd, deadline)
        top.rmdir()


def _empty(top: int, deadline: float) -> None:
    """Directories below the first level are moved up to it, and so it never goes deeper than that."""
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
    """What is in it, until nothing is: each has to be gone when the next is asked for. Never all of them in memory: they can be
    more than fit. Raises TimeoutError.
    """
    is_empty = False
    while not is_empty:
        is_empty = True
        with os.scandir(directory) as entries:
            for entry in entries:
                is_empty = False
                if time.monotonic() > deadline:
                    raise TimeoutError(errno.ETIMEDOUT, "it takes long")
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
    """What the files in a directory take on the disk, and whether that is all: it ends after so many seconds.

    What is removed meanwhile, or too deep for a path, is not counted.
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
    """Of one name: a file that has several is counted by parts, which takes no memory for those seen already."""
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
