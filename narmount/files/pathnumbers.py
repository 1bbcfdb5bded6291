"""The numbers of store paths. They are part of the node ids, which the kernel keeps when a new worker takes over.

The table is a memory file that only grows, with one line per row. All workers inherit the same open file. A line is

    <mark><base name> <identity> <record>

The mark is ``?`` until the contents of the path have been seen. Until then, only the store's listing says that it is a directory.
The identity identifies the contents: another NAR of the same name gets another row, and so does a listing that replaces a wrong
listing. The record is ASCII text with the known data of the path, so that the next worker can open a cached path without a store.
"""

import errno
import fcntl
import os
import threading
from array import array
from collections.abc import Callable, Iterator

ROWS_MAX = 200_000
"""The most rows of one mount. Each takes about 200 bytes in the worker and 1 to 2 KiB in the memory file."""


_PROMISED, _SEEN = "?", "."


class TooManyPaths(OSError):
    """The table is full."""


class PathNumbers:
    """The table in the file ``fd``. Several threads and processes may use it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        self._rows: list[tuple[str, str]] = []  # base name, identity
        self._starts = array("Q", [0])  # the offset of the line of each row in the file, and of the next line
        self._newest: dict[str, int] = {}
        self._promised: set[int] = set()
        with self._lock:
            self._update(lambda: None)

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, base_name: str) -> int | None:
        """Return the newest row of the store path, or None. Rows count from 1."""
        return self._newest.get(base_name)

    def base_name(self, row: int) -> str:
        """Return the base name of a row. Raises KeyError if there is no such row."""
        return self._row(row)[0]

    def identity(self, row: int) -> str:
        """Return the identity of a row. Raises KeyError if there is no such row."""
        return self._row(row)[1]

    def record(self, row: int) -> str:
        """Return the record of a row. Raises KeyError if there is no such row."""
        base_name, identity = self._row(row)
        start, stop = self._starts[row - 1 : row + 1]
        line = os.pread(self._fd, stop - start, start).decode("ascii")
        return line[len(base_name) + len(identity) + 3 : -1]

    def _row(self, row: int) -> tuple[str, str]:
        if not 0 < row <= len(self._rows):
            with self._lock:  # another worker may have added the row, so read the new lines of the file
                self._update(lambda: None)
        if not 0 < row <= len(self._rows):
            raise KeyError(row)
        return self._rows[row - 1]

    def is_newest(self, row: int) -> bool:
        """Return whether the row is the newest of its store path. Raises KeyError if there is no such row."""
        return self._newest.get(self.base_name(row)) == row

    def newest(self, start: int) -> Iterator[tuple[int, str]]:
        """Return row and base name of each store path that has been seen, at its newest row, from row ``start`` on."""
        for row in range(max(1, start), len(self._rows) + 1):
            base_name = self._rows[row - 1][0]
            if self._newest[base_name] == row and self.is_seen(row):
                yield row, base_name

    def is_seen(self, row: int) -> bool:
        return row not in self._promised

    def add(self, base_name: str, identity: str, record: str, *, seen: bool = True) -> int:
        """Return the row of the store path with that identity, and make the row the newest. Raises TooManyPaths and OSError."""
        with self._lock:
            self._update(lambda: self._append(base_name, identity, record, seen=seen))
            return self._newest[base_name]

    def _append(self, base_name: str, identity: str, record: str, *, seen: bool) -> None:
        newest = self._newest.get(base_name)
        if newest is not None and self._rows[newest - 1][1] == identity:
            if seen and newest in self._promised:
                os.pwrite(self._fd, _SEEN.encode(), self._starts[newest - 1])
                self._promised.discard(newest)
            return
        if len(self._rows) >= ROWS_MAX:
            raise TooManyPaths(errno.ENFILE, f"more than {ROWS_MAX} store paths were looked up in this mount")
        line = f"{_SEEN if seen else _PROMISED}{base_name} {identity} {record}\n"
        os.pwrite(self._fd, line.encode("ascii"), self._starts[-1])
        self._read_line(line)

    def _update(self, change: Callable[[], None]) -> None:
        """Lock the file, read the lines that other processes have added, and call ``change``."""
        fcntl.lockf(self._fd, fcntl.LOCK_EX)
        try:
            read, size = self._starts[-1], os.fstat(self._fd).st_size
            if size > read:
                new = os.pread(self._fd, size - read, read).decode("ascii")
                for line in new.splitlines(keepends=True):
                    if line.endswith("\n"):  # an incomplete line has no row yet, and is overwritten
                        self._read_line(line)
            change()
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN)

    def _read_line(self, line: str) -> None:
        base_name, identity, _record = line[1:].split(" ", 2)
        self._rows.append((base_name, identity))
        self._starts.append(self._starts[-1] + len(line))
        self._newest[base_name] = len(self._rows)
        if line[0] == _PROMISED:
            self._promised.add(len(self._rows))
