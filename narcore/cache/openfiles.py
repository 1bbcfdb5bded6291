"""Files of the cache that are open for reading: one descriptor per file, which all its readers share."""

import os
import threading
from pathlib import Path

from narcore.cache.locks import READ_FLAGS, is_still_at


class OpenFile:
    """A file that one or more readers have open. Readers of its descriptor ``fd`` pass offsets, as with pread(2)."""

    __slots__ = ("_readers", "fd", "path")

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.fd = fd
        self._readers = 1

    def join(self) -> None:
        self._readers += 1

    def leave(self) -> bool:
        """Remove a reader; return True if no reader is left."""
        self._readers -= 1
        return not self._readers


class OpenFiles:
    """Opens files, and closes each when its last reader has closed it. Thread-safe.

    Thousands of readers of one NAR need one descriptor. A file that was evicted or replaced gets no new readers, so that its
    disk space soon becomes free.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shared: dict[Path, OpenFile] = {}

    def open(self, path: Path) -> OpenFile:
        """Open a file, or join the readers of a file that `share` was called with. The caller calls `close`. Raises OSError."""
        with self._lock:
            file = self._shared.get(path)
            if file is not None:
                file.join()
        if file is not None:
            if is_still_at(file.fd, path):
                return file
            self.close(file)
        return OpenFile(path, os.open(path, READ_FLAGS))

    def share(self, file: OpenFile) -> None:
        """Let later calls of `open` return this file. If another file was shared for its path, the readers of that file keep it."""
        with self._lock:
            self._shared[file.path] = file

    def close(self, file: OpenFile) -> None:
        """Close the file for one reader."""
        with self._lock:
            if not file.leave():
                return
            if self._shared.get(file.path) is file:
                del self._shared[file.path]
        os.close(file.fd)
