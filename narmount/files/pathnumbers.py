"""Which store path has which number. Node ids are made of these numbers, and the kernel keeps node ids over a change of worker.

The table is a file that only grows, a line a row, and outlives every worker: all of them inherit the same open file. A line is

    <mark><base name> <identity> <record>

The mark is ``?`` until the path has been seen: so far only its store says that it is there. The identity tells what the row is of:
another NAR of the same name, or a listing that turned out to be wrong, takes another row.
The record (a line of ASCII) is what is known of the path: a next worker needs no store to go on with what is on disk.
"""

import errno
import fcntl
import os
import threading
from array import array
from collections.abc import Callable, Iterator

ROWS_MAX = 200_000
"""Rows of one mount; some 200 bytes of memory each here, and 1 or 2 KiB in the file, which is in memory as well."""


_PROMISED, _SEEN = "?", "."


class TooManyPaths(OSError):
    """The table is full."""


class PathNumbers:
    """The table in the file ``fd``. Thread-safe, and safe among processes that have the file open."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        self._rows: list[tuple[str, str]] = []  # base name, identity
        self._starts = array("Q", [0])  # of each row's line in the file, and where the next one will be
        self._newest: dict[str, int] = {}
        self._promised: set[int] = set()
        with self._lock:
            self._changed(lambda: None)

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, base_name: str) -> int | None:
        """The newest row of that store path; rows count from 1."""
        return self._newest.get(base_name)

    def base_name(self, row: int) -> str:
        """Raises KeyError for a row that there is not."""
        return self._row(row)[0]

    def identity(self, row: int) -> str:
        """Raises KeyError."""
        return self._row(row)[1]

    def record(self, row: int) -> str:
        """Raises KeyError."""
        base_name, identity = self._row(row)
        start, stop = self._starts[row - 1 : row + 1]
        line = os.pread(self._fd, stop - start, start).decode("ascii")
        return line[len(base_name) + len(identity) + 3 : -1]

    def _row(self, row: int) -> tuple[str, str]:
        if not 0 < row <= len(self._rows):
            with self._lock:  # another worker may have added it
                self._changed(lambda: None)
        if not 0 < row <= len(self._rows):
            raise KeyError(row)
        return self._rows[row - 1]

    def is_newest(self, row: int) -> bool:
        """Raises KeyError."""
        return self._newest.get(self.base_name(row)) == row

    def newest(self, start: int) -> Iterator[tuple[int, str]]:
        """Each store path that has been seen once, by its newest row, from row ``start`` on."""
        for row in range(max(1, start), len(self._rows) + 1):
            base_name = self._rows[row - 1][0]
            if self._newest[base_name] == row and self.is_seen(row):
                yield row, base_name

    def is_seen(self, row: int) -> bool:
        return row not in self._promised

    def add(self, base_name: str, identity: str, record: str, *, seen: bool = True) -> int:
        """The row of that store path with that identity, now its newest. Raises TooManyNames and OSError."""
        with self._lock:
            self._changed(lambda: self._append(base_name, identity, record, seen=seen))
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
        self._take_in(line)

    def _changed(self, change: Callable[[], None]) -> None:
        """Read what others have added, and make a change, while they can't."""
        fcntl.lockf(self._fd, fcntl.LOCK_EX)
        try:
            read, size = self._starts[-1], os.fstat(self._fd).st_size
            if size > read:
                new = os.pread(self._fd, size - read, read).decode("ascii")
                for line in new.splitlines(keepends=True):
                    if line.endswith("\n"):  # of a torn one nobody has heard: it is written over
                        self._take_in(line)
            change()
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN)

    def _take_in(self, line: str) -> None:
        base_name, identity, _record = line[1:].split(" ", 2)
        self._rows.append((base_name, identity))
        self._starts.append(self._starts[-1] + len(line))
        self._newest[base_name] = len(self._rows)
        if line[0] == _PROMISED:
            self._promised.add(len(self._rows))
