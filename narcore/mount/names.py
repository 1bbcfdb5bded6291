"""Which store path has which number. Node ids are made of these numbers, and the kernel keeps node ids over a change of worker.

The table is a file that only grows, a line a row, and outlives every worker: all of them inherit the same open file. A line is the
base name of a store path; behind a space the digest of the listing that the row's nodes are numbered by, where that is only what a
store says. A NAR's own listing needs none: it is always the same.
"""

import fcntl
import os
import threading
from collections.abc import Callable, Iterator

ROWS_MAX = 1_000_000
"""Rows of one mount; some 150 bytes of memory each."""


class TooManyNames(Exception):
    """The table is full."""


class Names:
    """The table in the file ``fd``. Thread-safe, and safe among processes that have the file open."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        self._rows: list[tuple[str, str]] = []  # base name, digest
        self._newest: dict[str, int] = {}
        self._read = 0  # bytes of the file
        with self._lock:
            self._changed(lambda: None)

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, base_name: str) -> int | None:
        """The newest row of that store path; rows count from 1."""
        return self._newest.get(base_name)

    def base_name(self, row: int) -> str:
        """Raises KeyError for a row that there is not."""
        return self._line(row)[0]

    def digest(self, row: int) -> str:
        """That of a listing that is not the NAR's own, or nothing."""
        return self._line(row)[1]

    def _line(self, row: int) -> tuple[str, str]:
        if not 0 < row <= len(self._rows):
            with self._lock:  # another worker may have added it
                self._changed(lambda: None)
        if not 0 < row <= len(self._rows):
            raise KeyError(row)
        return self._rows[row - 1]

    def is_newest(self, row: int) -> bool:
        return self._newest.get(self._line(row)[0]) == row

    def newest(self, start: int) -> Iterator[tuple[int, str]]:
        """Each store path once, by its newest row, from row ``start`` on."""
        for row in range(max(1, start), len(self._rows) + 1):
            base_name = self._rows[row - 1][0]
            if self._newest[base_name] == row:
                yield row, base_name

    def add(self, base_name: str, digest: str = "") -> int:
        """The row of that store path whose nodes are numbered by the listing with that digest. Raises TooManyNames and OSError."""
        with self._lock:
            self._changed(lambda: self._append(base_name, digest))
            return self._newest[base_name]

    def _append(self, base_name: str, digest: str) -> None:
        newest = self._newest.get(base_name)
        if newest is not None and self._rows[newest - 1][1] == digest:
            return
        if len(self._rows) >= ROWS_MAX:
            raise TooManyNames(f"more than {ROWS_MAX} store paths were looked up in this mount")
        line = f"{base_name} {digest}".rstrip() + "\n"
        os.pwrite(self._fd, line.encode("ascii"), self._read)
        self._take_in(line)

    def _changed(self, change: Callable[[], None]) -> None:
        """Read what others have added, and make a change, while they can't."""
        fcntl.lockf(self._fd, fcntl.LOCK_EX)
        try:
            size = os.fstat(self._fd).st_size
            if size > self._read:
                new = os.pread(self._fd, size - self._read, self._read).decode("ascii")
                whole, newline, _torn = new.rpartition("\n")  # of a torn line nobody has heard: it is written over
                self._take_in(whole + newline)
            change()
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN)

    def _take_in(self, lines: str) -> None:
        self._read += len(lines)
        for line in lines.splitlines():
            base_name, _, digest = line.partition(" ")
            self._rows.append((base_name, digest))
            self._newest[base_name] = len(self._rows)
