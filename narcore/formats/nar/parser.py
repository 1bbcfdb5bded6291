"""The NAR parser: bytes in, events out. It never waits and never recurses.

Modelled on h11's ``Connection``: it does no I/O, so the same code reads a NAR from a disk, from a socket and, in the
tests, byte by byte.

Strategy:

- Each state is a method for one place in the grammar. The method either returns an event, or says how many bytes it needs and is
  called again when these bytes are available. It moves the position only after a match. The number of such repeated calls per
  token is bounded, so parsing takes linear time for chunks of any size.
- A state compares a whole merged token with ``startswith``. If the comparison fails, `_mismatch` finds out whether bytes
  are missing or wrong.
- Chunks wait in a queue. The parser uses one chunk at a time as its buffer, without a copy. Only a token that crosses the end of a
  chunk is joined from its parts. So the parser holds one token and the chunks that it was given, and never copies contents.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn

from narcore.concurrency.closing import close
from narcore.errors import NarError
from narcore.formats.nar.events import (
    NEED_DATA,
    Data,
    Directory,
    DirectoryEnd,
    End,
    NarEvent,
    NeedData,
    Regular,
    Symlink,
)
from narcore.formats.nar.wire import (
    CLOSE,
    DEPTH_MAX,
    DIRECTORY,
    ENTRY,
    EXECUTABLE,
    NAME_MAX,
    PADDED_CLOSE,
    PADDED_CLOSE_ENTRY,
    PADDED_NODE,
    REGULAR,
    ROOT,
    SIZE_MAX,
    SYMLINK,
    TAG_MAX,
    TARGET_MAX,
    U64,
    first_difference,
    name_fault,
    order_fault,
    target_fault,
)

# The __new__ of a named tuple is Python code. It takes half of the time of creating an event, so the parser bypasses it.
_new = tuple.__new__
_read_u64 = U64.unpack_from
_DIRECTORY_END = DirectoryEnd()

Step = NarEvent | None
"""The result of a state: an event, or None if the state needs more bytes first."""


class NarParser:
    """Turns the bytes of one NAR into events.

    Call `receive_data` with the next bytes and then `next_event` until it returns NEED_DATA, or loop over `events`; call
    `receive_eof` when there are no more bytes. With ``contents=False``, contents are skipped and no Data events are returned, but
    the length and the padding of contents are still checked.

    Every violation of the format raises a NarError whose ``where`` is ``"offset N"``. Every further call raises the same error.
    """

    __slots__ = (
        "_base",
        "_buffer",
        "_contents",
        "_eof",
        "_failure",
        "_name",
        "_need",
        "_padding",
        "_position",
        "_queue",
        "_queued",
        "_remaining",
        "_siblings",
        "_starved",
        "_state",
        "_taken",
    )

    def __init__(self, contents: bool = True) -> None:
        self._buffer = b""
        self._position = 0  # in the buffer: everything before it is consumed
        self._base = 0  # the buffer's offset in the NAR
        self._need = 0  # how many bytes after the position the state needs
        self._queue: deque[bytes] = deque()  # chunks not yet in the buffer
        self._queued = 0  # the number of bytes in the queue, without _taken
        self._taken = 0  # the number of bytes at the start of the first chunk that are in the buffer already
        self._eof = False
        self._starved = True  # all received bytes are consumed, no event is left
        self._failure = ("", "")  # the error message and its place, after an error

        # A function and not a bound method: a bound method would make a reference cycle, which keeps the chunks in memory.
        self._state: Callable[[NarParser], Step] = NarParser._root
        self._contents = NarParser._data if contents else NarParser._skip
        self._siblings: list[bytes] = []  # for each open directory, the name of its last entry
        self._name = b""  # of the next node
        self._remaining = 0  # bytes of contents still to come
        self._padding = 0  # after the contents or target

    @property
    def offset(self) -> int:
        """The number of consumed bytes of the NAR: the bytes that the events returned so far represent."""
        return self._base + self._position

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        """Add the next bytes of the NAR. Mutable objects are copied; ``bytes`` are not."""
        if self._eof:
            raise RuntimeError("receive_data after receive_eof")
        if data:
            self._queue.append(bytes(data))
            self._queued += len(self._queue[-1])
            self._starved = False

    def receive_eof(self) -> None:
        """Declare that there are no more bytes.

        If the NAR is incomplete, raises NarError; if there are events left, `next_event` raises the error after them.
        """
        self._eof = True
        if self._starved:
            self.next_event()

    def next_event(self) -> NarEvent | NeedData:
        """Return the next event, or NEED_DATA. After End there are no events, and further bytes raise NarError."""
        while True:
            event = self._state(self)
            if event is not None:
                return event
            if not self._refill():
                return self._starve()

    def events(self) -> Iterator[NarEvent]:
        """Yield the events of the bytes received so far: `next_event` until NEED_DATA."""
        while (event := self.next_event()) is not NEED_DATA:
            yield event

    # The states, in the order of the grammar.

    def _root(self) -> Step:
        if not self._buffer.startswith(ROOT, self._position):
            return self._mismatch("the head of a NAR", ROOT)
        self._position += len(ROOT)
        self._state = NarParser._node
        return self._node()

    def _node(self) -> Step:
        buffer, start = self._buffer, self._position
        if buffer.startswith(REGULAR, start):
            return self._regular(start + len(REGULAR), False)
        if buffer.startswith(DIRECTORY, start):
            return self._directory(start + len(DIRECTORY))
        if buffer.startswith(EXECUTABLE, start):
            return self._regular(start + len(EXECUTABLE), True)
        if buffer.startswith(SYMLINK, start):
            return self._symlink(start + len(SYMLINK))
        return self._mismatch("a regular file, a symlink or a directory", REGULAR, EXECUTABLE, SYMLINK, DIRECTORY)

    def _regular(self, at: int, executable: bool) -> Step:
        begin = at + 8
        if len(self._buffer) < begin:
            return self._wait(begin)
        size: int = _read_u64(self._buffer, at)[0]
        if size > SIZE_MAX:  # the Lix advisory of 2026-05: 2^64-8 plus its padding overflows 64 bits to 0
            self._refuse(f"a file of {size} bytes exceeds the largest possible file", at)
        self._position = begin
        self._remaining = size
        self._padding = -size & 7
        self._state = self._contents if size else NarParser._leaf_end
        return _new(Regular, (self._name, executable, size, self._base + begin))

    def _data(self) -> Step:
        buffer, start = self._buffer, self._position
        end = min(start + self._remaining, len(buffer))
        if start == end:
            return self._wait(start + 1)
        self._position = end
        self._remaining -= end - start
        if not self._remaining:
            self._state = NarParser._leaf_end
        return _new(Data, (memoryview(buffer)[start:end],))

    def _skip(self) -> Step:
        end = min(self._position + self._remaining, len(self._buffer))
        self._remaining -= end - self._position
        self._position = end
        if self._remaining:
            return self._wait(end + 1)
        self._state = NarParser._leaf_end
        return self._leaf_end()

    def _symlink(self, at: int) -> Step:
        buffer, begin = self._buffer, at + 8
        if len(buffer) < begin:
            return self._wait(begin)
        length = _read_u64(buffer, at)[0]
        if length > TARGET_MAX:
            self._refuse(f"a symlink's target has {length} bytes; the limit is {TARGET_MAX}", at)
        end = begin + length
        if len(buffer) < end:
            return self._wait(end)
        target = buffer[begin:end]
        if fault := target_fault(target):
            self._refuse(fault, at)
        self._position = end
        self._padding = -length & 7
        self._state = NarParser._leaf_end
        return _new(Symlink, (self._name, target))

    def _leaf_end(self) -> Step:
        """After the contents or the target: padding, the end of the node, and the end of its entry."""
        nested = bool(self._siblings)
        close = (PADDED_CLOSE_ENTRY if nested else PADDED_CLOSE)[self._padding]
        if not self._buffer.startswith(close, self._position):
            return self._mismatch("the end of a node", close, padding=self._padding)
        self._position += len(close)
        if not nested:
            return self._end()
        self._state = NarParser._entry
        return self._entry()

    def _directory(self, end: int) -> NarEvent:
        self._position = end
        self._siblings.append(b"")
        self._state = NarParser._entry
        return _new(Directory, (self._name,))

    def _entry(self) -> Step:
        """In a directory: the next entry up to the type of its node, or the end of the directory."""
        buffer, start = self._buffer, self._position
        at = start + len(ENTRY)
        begin = at + 8
        if not buffer.startswith(ENTRY, start):
            return self._directory_end()
        if len(buffer) < begin:
            return self._wait(begin)
        length = _read_u64(buffer, at)[0]
        if length > NAME_MAX:
            self._refuse(f"an entry's name has {length} bytes; the limit is {NAME_MAX}", at)
        end = begin + length
        node = PADDED_NODE[-length & 7]
        if not buffer.startswith(node, end):
            return self._mismatch("a node", node, at=end, padding=-length & 7)
        self._enter(buffer[begin:end], at)
        self._position = end + len(node)
        self._state = NarParser._node
        return self._node()

    def _enter(self, name: bytes, at: int) -> None:
        siblings = self._siblings
        if fault := name_fault(name) or order_fault(name, siblings[-1]):
            self._refuse(fault, at)
        if len(siblings) > DEPTH_MAX:
            self._refuse(f"nodes are nested deeper than {DEPTH_MAX}", at)
        self._name = siblings[-1] = name

    def _directory_end(self) -> Step:
        if not self._buffer.startswith(CLOSE, self._position):
            return self._mismatch("an entry or the end of a directory", ENTRY, CLOSE)
        self._position += len(CLOSE)
        self._siblings.pop()
        self._state = NarParser._directory_entry_end if self._siblings else NarParser._end
        return _DIRECTORY_END

    def _directory_entry_end(self) -> Step:
        if not self._buffer.startswith(CLOSE, self._position):
            return self._mismatch("the end of an entry", CLOSE)
        self._position += len(CLOSE)
        self._state = NarParser._entry
        return self._entry()

    def _end(self) -> NarEvent:
        self._state = NarParser._ended
        return End(self.offset)

    def _ended(self) -> Step:
        if len(self._buffer) > self._position:
            self._refuse("there are bytes after the end of the NAR", self._position)
        return self._wait(self._position + 1)

    def _failed(self) -> NoReturn:
        fault, where = self._failure
        raise NarError(fault, where=where)

    # Methods that a state calls when it can't continue.

    def _wait(self, end: int) -> Step:
        """Wait for the bytes up to ``end``, a position in the buffer."""
        self._need = end - self._position
        return None

    def _mismatch(self, expected: str, *tokens: bytes, at: int | None = None, padding: int = 0) -> Step:
        """Handle input that has none of ``tokens`` at ``at`` (default: the position), because bytes are missing or wrong."""
        at = self._position if at is None else at
        found = self._buffer[at : at + max(map(len, tokens))]
        possible = [len(fixed) for fixed in tokens if fixed.startswith(found)]
        if possible:
            return self._wait(at + min(possible))
        if any(found[:padding]):
            return self._refuse("padding is not zero", at)
        at += padding
        # Look at more bytes than the tokens have, so that the message shows a longer tag completely.
        seen = self._buffer[at : at + len(found) + 8 + TAG_MAX]
        start, fault = first_difference(seen, [fixed[padding:] for fixed in tokens])
        return self._refuse(f"expected {expected}, {fault}", at + start)

    def _refuse(self, fault: str, at: int) -> NoReturn:
        """Raise NarError for a fault at ``at``, a position in the buffer."""
        # Keeps only the text: the exception refers to its frames, and they refer to the parser. This cycle would keep the chunks.
        self._failure = (fault, f"offset {self._base + at}")
        self._state = NarParser._failed
        self._failed()

    def _starve(self) -> NeedData:
        """Return NEED_DATA, or raise NarError if no more bytes will come before the NAR is complete."""
        if self._eof and self._state is not NarParser._ended:
            self._refuse("the NAR ends too early", len(self._buffer) + self._queued)
        self._starved = True
        return NEED_DATA

    # The buffer.

    def _refill(self) -> bool:
        """Fill the buffer with the bytes that the state needs; return False if they have not been received yet."""
        rest = len(self._buffer) - self._position
        if rest + self._queued < self._need:
            if not (self._eof and self._queued):
                return False
            self._need = rest + self._queued  # no more bytes will come: find out whether they are wrong or too few
        self._base += self._position
        if rest:
            self._buffer = self._buffer[self._position :] + self._take(self._need - rest)
            self._position = 0
            return True
        self._buffer = self._queue.popleft()
        self._position = self._taken
        self._base -= self._taken
        self._queued -= len(self._buffer) - self._taken
        self._taken = 0
        return True

    def _take(self, size: int) -> bytes:
        """Remove and return exactly ``size`` bytes of the queue."""
        self._queued -= size
        parts = []
        while size:
            head = self._queue[0]
            part = head[self._taken : self._taken + size]
            parts.append(part)
            size -= len(part)
            self._taken += len(part)
            if self._taken == len(head):
                self._queue.popleft()
                self._taken = 0
        return b"".join(parts)


def parse_nar(chunks: Iterable[bytes], contents: bool = True) -> Iterator[NarEvent]:
    """Yield the events of the NAR in ``chunks``, which may be split anywhere. Closes ``chunks`` at the end if possible.

    If the input is not exactly one complete NAR, raises NarError after the events that precede the error.
    """
    parser = NarParser(contents)
    try:
        for chunk in chunks:
            parser.receive_data(chunk)
            yield from parser.events()
        parser.receive_eof()
        yield from parser.events()
    finally:
        close(chunks)
