"""Threads that read files into the page cache, so that an event loop never waits for a disk."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

# A disk is faster when it has several requests at a time. More threads than this would not make a disk faster. If the pages are
# already in memory, more threads would only take CPU time from the threads that answer requests.
IO_THREADS = 4

BLOCK_SIZE = 256 * 1024  # files are read and sent in blocks of this size; each block begins at a multiple of it

# While the pool reads a block, the kernel reads this many bytes after the block, so that a fast client rarely waits.
READ_AHEAD = 4 * BLOCK_SIZE

Read = Future[None]


class IoPool:
    """Reads blocks of files for the senders of one event loop.

    A sender has at most one read at a time, so there are never more reads than connections. ``call_soon`` is thread-safe, and calls
    a function in the loop.
    """

    def __init__(self, call_soon: Callable[[Callable[[], None]], None], *, threads: int = IO_THREADS) -> None:
        self._call_soon = call_soon
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="file-reader")
        self._scratch = threading.local()

    def submit(self, descriptor: int, start: int, stop: int, on_end: Callable[[], None]) -> Read:
        """Read a part of a file into the page cache, then call ``on_end`` in the loop, also if the file can't be read.

        The descriptor must stay open until then, or until the ``cancel`` method of the result returns True.
        """
        return self._threads.submit(self._read, descriptor, start, stop, on_end)

    def close(self) -> None:
        """Cancel the reads that have not begun, and wait for the others."""
        self._threads.shutdown(cancel_futures=True)

    def _read(self, descriptor: int, start: int, stop: int, on_end: Callable[[], None]) -> None:
        try:
            if not are_cached(descriptor, start, stop):  # another sender may have read the same bytes in the meantime
                read_pages(descriptor, start, stop, self._buffer())
        except OSError:
            pass  # sending the same bytes fails with the same error
        finally:
            self._call_soon(on_end)

    def _buffer(self) -> bytearray:
        buffer: bytearray | None = getattr(self._scratch, "buffer", None)
        if buffer is None:
            buffer = self._scratch.buffer = bytearray(BLOCK_SIZE)
        return buffer


def read_pages(descriptor: int, start: int, stop: int, buffer: bytearray) -> None:
    """Read the pages of a part of a file, and discard the bytes. Waits for the disk. Raises OSError."""
    if hasattr(os, "posix_fadvise"):  # not on macOS
        os.posix_fadvise(descriptor, start, stop - start + READ_AHEAD, os.POSIX_FADV_WILLNEED)
    while start < stop:
        count = os.preadv(descriptor, [memoryview(buffer)[: stop - start]], start)
        if not count:
            return
        start += count


def are_cached(descriptor: int, start: int, stop: int) -> bool:
    """Return whether a part of a file is in the page cache, judged by its first and its last page.

    Returns False if the file system or the kernel can't tell. The flag RWF_NOWAIT of preadv(2) needs Linux 4.14, and a file system
    that supports it: ext4, XFS and Btrfs do, overlayfs and network file systems do not.
    """
    return _is_cached(descriptor, start) and _is_cached(descriptor, stop - 1)


_NO_WAIT = getattr(os, "RWF_NOWAIT", 0)  # only on Linux


def _is_cached(descriptor: int, offset: int) -> bool:
    try:
        return bool(_NO_WAIT) and os.preadv(descriptor, [bytearray(1)], offset, _NO_WAIT) == 1
    except OSError:  # EAGAIN: not in the page cache; EOPNOTSUPP: unknown
        return False
