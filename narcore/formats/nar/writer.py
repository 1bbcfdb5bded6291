"""Events in, NAR bytes out: the inverse of the parser, with the same rules.

What stands behind a node (padding, closing brackets) is written together with whatever comes next, so that contents are
passed on alone, without a copy.
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

    `send` each event; the bytes of the answers, put together, are the NAR. ``Regular.nar_offset`` is not looked at. End
    may be left out by a producer that doesn't know the size: `finish` does the same.

    An event that may not come here, or a name, target, size or depth that breaks a rule, is a NarError whose ``where``
    is the offset reached; nothing is written for it.
    """

    __slots__ = ("_begun", "_ended", "_left", "_owed", "_siblings", "offset")

    def __init__(self) -> None:
        self.offset = 0  # bytes written so far
        self._begun = False
        self._ended = False
        self._owed = b""  # what must stand behind the last node, before anything else
        self._left = 0  # bytes of contents still to come
        self._siblings: list[bytes] = []  # for each open directory, the name that its last entry had

    def send(self, event: NarEvent) -> bytes:
        """The bytes that ``event`` adds; b"" is possible."""
        if self._ended:
            self._refuse("an event behind the end")
        if isinstance(event, Data):
            return self._data(bytes(event.data))
        if self._left:
            self._refuse(f"contents end {self._left} bytes early")
        if isinstance(event, End):
            return self._end(event.nar_size)
        if isinstance(event, DirectoryEnd):
            return self._directory_end()
        return self._node(event)

    def finish(self) -> bytes:
        """The last bytes, if End was not sent. The NAR must be complete."""
        return b"" if self._ended else self.send(End(self.offset + len(self._owed)))

    def _node(self, event: Directory | Regular | Symlink) -> bytes:
        self._check_place(event.name)
        body = self._body(event)
        if self._siblings:
            self._siblings[-1] = event.name
            written = self._write(self._owed + ENTRY + string(event.name) + NODE + body)
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
                self._refuse(f"the root node is called {name!r}, and it has no name")
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
            self._owed = b""
            return
        if isinstance(event, Regular):
            length = self._left = event.size
        else:
            length = len(event.target)
        self._owed = (PADDED_CLOSE_ENTRY if self._siblings else PADDED_CLOSE)[-length & 7]

    def _data(self, data: bytes) -> bytes:
        if len(data) > self._left:
            self._refuse(f"{len(data)} bytes of contents where {self._left} may come")
        self._left -= len(data)
        return self._write(data)

    def _directory_end(self) -> bytes:
        if not self._siblings:
            self._refuse("the end of a directory that never began")
        self._siblings.pop()
        written = self._write(self._owed + CLOSE)
        self._owed = CLOSE if self._siblings else b""
        return written

    def _end(self, nar_size: int) -> bytes:
        if self._siblings or not self._begun:
            self._refuse("the NAR ends early")
        if nar_size != self.offset + len(self._owed):
            self._refuse(f"the NAR has {self.offset + len(self._owed)} bytes, and not {nar_size}")
        self._ended = True
        return self._write(self._owed)

    def _write(self, raw: bytes) -> bytes:
        self.offset += len(raw)
        return raw

    def _refuse(self, fault: str) -> NoReturn:
        raise NarError(fault, where=f"offset {self.offset}")


def write_nar(events: Iterable[NarEvent]) -> Iterator[bytes]:
    """The NAR of ``events``, in chunks as they come and none of them empty; End may be left out.

    Closes ``events`` at the end if they can be closed. Raises NarError as `NarWriter` does.
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
