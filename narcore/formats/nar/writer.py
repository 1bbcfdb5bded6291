"""The NAR writer: events in, bytes out. It is the inverse of the parser, with the same rules.

The end of a node (padding, closing brackets) is written together with the next event. So contents are passed on alone, without a
copy.
"""

from collections.abc import Iterable, Iterator
from typing import NoReturn

from narcore.concurrency.closing import close
from narcore.errors import NarError
from narcore.formats.nar.events import Data, Directory, DirectoryEnd, End, NarEvent, Regular, Symlink
from narcore.formats.nar.wire import (
    CLOSE,
    DEPTH_MAX,
    DIRECTORY,
    ENTRY,
    EXECUTABLE,
    NODE,
    PADDED_CLOSE,
    PADDED_CLOSE_ENTRY,
    REGULAR,
    ROOT,
    SIZE_MAX,
    SYMLINK,
    U64,
    name_fault,
    order_fault,
    string,
    target_fault,
)


class NarWriter:
    """Turns the events of one NAR into its bytes.

    `send` each event; the concatenated results are the NAR. ``Regular.nar_offset`` is ignored. A producer that doesn't know the
    size may call `finish` instead of sending End.

    Raises NarError if an event is not allowed here, or if a name, target, size or depth breaks a rule. The error's ``where`` is
    the offset reached so far; nothing is written for the event.
    """

    __slots__ = ("_begun", "_ended", "_pending", "_remaining", "_siblings", "offset")

    def __init__(self) -> None:
        self.offset = 0  # bytes written so far
        self._begun = False
        self._ended = False
        self._pending = b""  # the end of the last node, which is written before the next event
        self._remaining = 0  # bytes of contents still to come
        self._siblings: list[bytes] = []  # for each open directory, the name of its last entry

    def send(self, event: NarEvent) -> bytes:
        """Return the bytes that ``event`` adds, possibly b""."""
        if self._ended:
            self._refuse("an event after the end")
        if isinstance(event, Data):
            return self._data(bytes(event.data))
        if self._remaining:
            self._refuse(f"contents end {self._remaining} bytes too early")
        if isinstance(event, End):
            return self._end(event.nar_size)
        if isinstance(event, DirectoryEnd):
            return self._directory_end()
        return self._node(event)

    def finish(self) -> bytes:
        """Return the last bytes if End was not sent. The NAR must be complete."""
        return b"" if self._ended else self.send(End(self.offset + len(self._pending)))

    def _node(self, event: Directory | Regular | Symlink) -> bytes:
        self._check_place(event.name)
        body = self._body(event)
        if self._siblings:
            self._siblings[-1] = event.name
            written = self._write(self._pending + ENTRY + string(event.name) + NODE + body)
        else:
            self._begun = True
            written = self._write(ROOT + body)
        self._open(event)
        return written

    def _check_place(self, name: bytes) -> None:
        if not self._siblings:
            if self._begun:
                self._refuse("a second root node")
            if name:
                self._refuse(f"the root node has the name {name!r}, but must have none")
        elif fault := name_fault(name) or order_fault(name, self._siblings[-1]):
            self._refuse(fault)
        elif len(self._siblings) > DEPTH_MAX:
            self._refuse(f"nodes are nested deeper than {DEPTH_MAX}")

    def _body(self, event: Directory | Regular | Symlink) -> bytes:
        if isinstance(event, Directory):
            return DIRECTORY
        if isinstance(event, Symlink):
            if fault := target_fault(event.target):
                self._refuse(fault)
            return SYMLINK + U64.pack(len(event.target)) + event.target
        if not 0 <= event.size <= SIZE_MAX:
            self._refuse(f"a file can't have {event.size} bytes")
        return (EXECUTABLE if event.executable else REGULAR) + U64.pack(event.size)

    def _open(self, event: Directory | Regular | Symlink) -> None:
        if isinstance(event, Directory):
            self._siblings.append(b"")
            self._pending = b""
            return
        if isinstance(event, Regular):
            length = self._remaining = event.size
        else:
            length = len(event.target)
        self._pending = (PADDED_CLOSE_ENTRY if self._siblings else PADDED_CLOSE)[-length & 7]

    def _data(self, data: bytes) -> bytes:
        if len(data) > self._remaining:
            self._refuse(f"{len(data)} bytes of contents, but only {self._remaining} are left")
        self._remaining -= len(data)
        return self._write(data)

    def _directory_end(self) -> bytes:
        if not self._siblings:
            self._refuse("the end of a directory that did not begin")
        self._siblings.pop()
        written = self._write(self._pending + CLOSE)
        self._pending = CLOSE if self._siblings else b""
        return written

    def _end(self, nar_size: int) -> bytes:
        if self._siblings or not self._begun:
            self._refuse("the NAR ends too early")
        if nar_size != self.offset + len(self._pending):
            self._refuse(f"the NAR has {self.offset + len(self._pending)} bytes instead of {nar_size}")
        self._ended = True
        return self._write(self._pending)

    def _write(self, raw: bytes) -> bytes:
        self.offset += len(raw)
        return raw

    def _refuse(self, fault: str) -> NoReturn:
        raise NarError(fault, where=f"offset {self.offset}")


def write_nar(events: Iterable[NarEvent]) -> Iterator[bytes]:
    """Yield the NAR of ``events`` in non-empty chunks; End may be missing.

    Closes ``events`` at the end if possible. Raises NarError like `NarWriter`.
    """
    writer = NarWriter()
    try:
        for event in events:
            if written := writer.send(event):
                yield written
        if written := writer.finish():
            yield written
    finally:
        close(events)
