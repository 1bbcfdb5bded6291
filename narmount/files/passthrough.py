"""Files that the kernel reads itself (FUSE_PASSTHROUGH). The kernel gave each of these files a backing id.

While a node is open, the kernel refuses another backing file for it. The kernel also refuses passthrough of a node that is open and
is read through the worker. So the backing id of an open node is recorded in a memory file, which the next worker inherits. A
worker does not know how often a node was opened under an earlier worker: such a node stays registered until the kernel forgets it.
`sweep` returns the nodes that the kernel should forget.

A file that was evicted from the cache takes up space on the disk until the kernel closes it. So files in use are touched,
which protects them from eviction. An evicted file is closed as soon as no process has it open.
"""

import os
import struct
import threading
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from narmount.fuse import device

IDLE_MAX = 256  # files that no process has open, and that may be opened again

PLAIN = 0  # stands for no backing id: the node is read through the worker, for example because the disk is full
_REMOVED = -1
RECORD = struct.Struct("=Qq")
FILE_MAX = 1 << 20  # bytes; a longer file of records is compacted


class CachedFile(Protocol):
    """A file of the disk cache."""

    def is_evicted(self) -> bool: ...

    def touch(self) -> None:
        """Mark the file as used now."""


@dataclass(slots=True)
class _PassthroughFile:
    number: int
    cached: CachedFile | None = None
    opens: int = 0
    used: bool = False  # since the last sweep
    inherited: bool = False


class PassthroughFiles:
    """The nodes that are passed through. ``fuse`` is the device and ``fd`` the file of records. Thread-safe."""

    def __init__(self, fuse: int, fd: int, generation: int) -> None:
        self._fuse = fuse
        self._fd = fd
        self._handle = generation << 32
        self._generation = generation
        self._lock = threading.Lock()
        self._end = 0  # where the next record goes
        self._nodes = OrderedDict(
            (node, _PassthroughFile(number, inherited=True)) for node, number in self._recorded().items()
        )
        self.opened = 0

    def __len__(self) -> int:
        return len(self._nodes)

    def open(self, node_id: int) -> tuple[int, int] | None:
        """Return a file handle, and the backing id or PLAIN. Returns None if the node has not been added."""
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
        """Let the kernel read the node from the open file ``fd`` of the cache, or through the worker if ``fd`` is None.

        Raises OSError if the kernel refuses the file.
        """
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
        """Note that a process has closed the file handle."""
        if handle >> 32 != self._generation:
            return
        with self._lock:
            file = self._nodes.get(node_id)
            if file is None:
                return
            file.opens -= 1
            if file.number == PLAIN and not file.opens and not file.inherited:
                self._remove(node_id)  # at the next open, the disk may have space

    def forget(self, node_ids: list[int]) -> None:
        """Drop nodes that the kernel has forgotten, except nodes that have been opened again."""
        if not self._nodes:
            return
        with self._lock:
            for node_id in node_ids:
                file = self._nodes.get(node_id)
                if file is not None and not file.opens:
                    self._remove(node_id)

    def sweep(self) -> list[int]:
        """Close evicted files that are not open. Returns the nodes of earlier workers, which the kernel should forget."""
        with self._lock:
            nodes = dict(self._nodes)
        for node_id, file in nodes.items():
            if file.cached is None:
                continue
            if file.opens or file.used:
                file.used = False
                file.cached.touch()
            if file.cached.is_evicted():
                self.forget([node_id])
        return [node_id for node_id, file in nodes.items() if file.inherited and not file.opens]

    def _remove(self, node_id: int) -> None:
        file = self._nodes.pop(node_id)
        self._record(node_id, _REMOVED)
        if file.number != PLAIN:
            with suppress(OSError):  # the connection has ended, which closes all files
                device.close_backing(self._fuse, file.number)

    def _record(self, node_id: int, number: int) -> None:
        self._end += os.pwrite(self._fd, RECORD.pack(node_id, number), self._end)
        if self._end > FILE_MAX:
            self._compact()

    def _recorded(self) -> dict[int, int]:
        """Read the records, and set where the next record goes. Returns the number of each node, in the order of the records."""
        data = os.pread(self._fd, os.fstat(self._fd).st_size, 0)
        self._end = len(data) // RECORD.size * RECORD.size  # an incomplete record is overwritten
        numbers: dict[int, int] = {}
        for node_id, number in RECORD.iter_unpack(data[: self._end]):
            numbers.pop(node_id, None)
            if number != _REMOVED:
                numbers[node_id] = number
        return numbers

    def _compact(self) -> None:
        """Leave out the records that are not valid any more.

        If the process is killed meanwhile, the file is still read correctly: records only move towards the beginning. So each
        record is in the rewritten part or still at its old place, and the latest record of a node comes last.
        """
        records = b"".join(RECORD.pack(*record) for record in self._recorded().items())
        self._end = os.pwrite(self._fd, records, 0)
        os.ftruncate(self._fd, self._end)
