"""The files that the kernel reads instead of asking us (FUSE_PASSTHROUGH), by the numbers that it knows them by.

A node must not be opened on one file while it is open on another, nor be passed through while it is open and read through us: the
kernel refuses that. So what a node was opened as is remembered for as long as it is open, in a file that a next worker inherits.
How often it was opened by processes that an earlier worker has served is not known: such a node is kept until the kernel forgets
it, which it is asked to where it can be (`sweep`).

A file that was evicted from the cache keeps its space on the disk for as long as the kernel has it. So what is in use is touched,
lest it be evicted, and what was evicted is let go of as soon as nobody has it open.
"""

import os
import struct
import threading
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from narmount.fuse import device

IDLE_MAX = 256  # kept for the next open

PLAIN = 0  # read through us, since there was no room for a file, say
_GONE = -1
_RECORD = struct.Struct("=Qq")
_FILE_MAX = 1 << 20  # bytes; then what is gone is left out


class CachedFile(Protocol):
    """A file in the cache."""

    def is_evicted(self) -> bool: ...

    def touch(self) -> None:
        """Let it count as used just now."""


@dataclass(slots=True)
class _PassthroughFile:
    number: int
    cached: CachedFile | None = None
    opens: int = 0
    used: bool = False  # since the last sweep
    inherited: bool = False


class PassthroughFiles:
    """``fuse`` is the device, ``fd`` the file to remember by. Thread-safe."""

    def __init__(self, fuse: int, fd: int, generation: int) -> None:
        self._fuse = fuse
        self._fd = fd
        self._handle = generation << 32
        self._generation = generation
        self._lock = threading.Lock()
        self._end = 0  # of the file
        self._nodes = OrderedDict(
            (node, _PassthroughFile(number, inherited=True)) for node, number in self._recorded().items()
        )
        self.opened = 0

    def __len__(self) -> int:
        return len(self._nodes)

    def open(self, node_id: int) -> tuple[int, int] | None:
        """A file handle and the number of the file, or PLAIN; None if the node has none yet."""
        with self._lock:
            file = self._nodes.get(node_id)
            if file is None:
                return None
            file.opens += 1
            file.used = True
            self._nodes.move_to_end(node_id)
            self._handle += 1
            self.opened += file.number != PLAIN
            return self._handle, file.number

    def add(self, node_id: int, fd: int | None, cached: CachedFile | None = None) -> None:
        """Let the node be read from the open file ``fd``, which is ``kept``, or through us if it is None. Raises OSError."""
        with self._lock:
            if node_id in self._nodes:
                return
            number = PLAIN if fd is None else device.open_backing(self._fuse, fd)
            self._record(node_id, number)
            self._nodes[node_id] = _PassthroughFile(number, cached)
            idle = [node for node, file in self._nodes.items() if not file.opens and not file.inherited]
            for node in idle[: max(0, len(idle) - IDLE_MAX)]:
                self._remove(node)

    def release(self, node_id: int, handle: int) -> None:
        if handle >> 32 != self._generation:
            return
        with self._lock:
            file = self._nodes.get(node_id)
            if file is None:
                return
            file.opens -= 1
            if file.number == PLAIN and not file.opens and not file.inherited:
                self._remove(node_id)  # the next time there may be room

    def forget(self, node_ids: list[int]) -> None:
        """The kernel has dropped these nodes: none of them is open."""
        if not self._nodes:
            return
        with self._lock:
            for node_id in node_ids:
                file = self._nodes.get(node_id)
                if file is not None and not file.opens:
                    self._remove(node_id)

    def sweep(self) -> list[int]:
        """Let go of what was evicted and is not open. The nodes that are left of an earlier worker, for the kernel to forget."""
        with self._lock:
            known = dict(self._nodes)
        for node_id, file in known.items():
            if file.cached is None:
                continue
            if file.opens or file.used:
                file.used = False
                file.cached.touch()
            if file.cached.is_evicted():
                self._let_go(node_id, file)
        return [node_id for node_id, file in known.items() if file.inherited and not file.opens]

    def _let_go(self, node_id: int, file: _PassthroughFile) -> None:
        with self._lock:
            if self._nodes.get(node_id) is file and not file.opens:
                self._remove(node_id)

    def _remove(self, node_id: int) -> None:
        file = self._nodes.pop(node_id)
        self._record(node_id, _GONE)
        if file.number != PLAIN:
            with suppress(OSError):  # the connection is gone, and all of them with it
                device.close_backing(self._fuse, file.number)

    def _record(self, node_id: int, number: int) -> None:
        self._end += os.pwrite(self._fd, _RECORD.pack(node_id, number), self._end)
        if self._end > _FILE_MAX:
            self._compact()

    def _recorded(self) -> dict[int, int]:
        """What is in the file, in the order in which it was noted; and where the next record goes."""
        data = os.pread(self._fd, os.fstat(self._fd).st_size, 0)
        self._end = len(data) // _RECORD.size * _RECORD.size  # one that was never finished is written over
        numbers: dict[int, int] = {}
        for node_id, number in _RECORD.iter_unpack(data[: self._end]):
            numbers.pop(node_id, None)
            if number != _GONE:
                numbers[node_id] = number
        return numbers

    def _compact(self) -> None:
        """Killed in the midst of it, it is read right all the same: no record is moved towards the end, so each is either among
        what was written or where it was, and what is left behind is what was noted last.
        """
        records = b"".join(_RECORD.pack(*record) for record in self._recorded().items())
        self._end = os.pwrite(self._fd, records, 0)
        os.ftruncate(self._fd, self._end)
