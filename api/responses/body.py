"""Bodies of responses for the WSGI server: bytes of a NAR as a stream, or as a window of an open file.

Two rules apply. First, the first bytes are read before the status is sent, so that an error in reading them becomes an error page.
Second, a body that is shorter than its Content-Length raises an exception, so that the server cuts the connection and no client
takes the truncated body for the file.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, cast

from api.http.mediatypes import SNIFF_LENGTH
from api.http.ranges import ByteRange
from narcore.errors import TruncatedStream
from narcore.nars.accessor import NarBytes

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment


class FileBytes(NarBytes, Protocol):
    """Bytes that can be sent from a file.

    ``file`` is a pair: the descriptor of an open file, and the offset of the bytes in this file. It is None if the bytes are not in
    a file. All readers of the file share the descriptor, so its position must not be used.
    """

    file: tuple[int, int] | None

    def check_untouched(self) -> None:
        """Raise NarcoreError if the file was changed after it was opened."""


Read = Callable[[int, int], NarBytes]  # (start, stop) -> these bytes of one file


class StreamBody:
    """A body that streams chunks. ``peek`` returns the first bytes without consuming them."""

    def __init__(self, source: NarBytes) -> None:
        self._source = source
        self._chunks = iter(source)
        self._peeked = b""

    def peek(self, size: int) -> bytes:
        """Return the first ``size`` bytes, or fewer if the body is shorter. Closes the source if reading fails."""
        try:
            while len(self._peeked) < size and (chunk := next(self._chunks, None)) is not None:
                self._peeked += chunk
        except BaseException:
            self.close()
            raise
        return self._peeked[:size]

    def __iter__(self) -> Iterator[bytes]:
        sent = len(self._peeked)
        if self._peeked:
            yield self._peeked
        for chunk in self._chunks:
            sent += len(chunk)
            yield chunk
        if sent != self._source.length:
            raise TruncatedStream(f"the body has {sent} bytes instead of {self._source.length}")

    def close(self) -> None:
        self._source.close()


class FileWindow:
    """A part of an open file, as a file object for ``wsgi.file_wrapper``.

    nar-serve's own server sends the file with sendfile, from ``position`` up to ``stop``, and calls ``check_untouched`` before the
    last bytes. Another server calls ``read``, which returns the last bytes only if the file is unchanged. This class has no
    ``fileno``: with it, a server would send from the position of the descriptor, which all readers of the file share.

    ``close`` checks the file again, because its pages may have changed after the server passed them to the kernel. If it raises,
    the server cuts the connection.
    """

    __slots__ = ("_closed", "_source", "descriptor", "length", "position", "stop")

    def __init__(self, source: FileBytes, descriptor: int, offset: int) -> None:
        self.length = source.length
        self.descriptor = descriptor
        self.position = offset  # of the next byte to send
        self.stop = offset + source.length
        self._source = source
        self._closed = False

    @property
    def sent(self) -> int:
        """How many bytes the server has taken."""
        return self.length - (self.stop - self.position)

    def peek(self, size: int) -> bytes:
        return os.pread(self.descriptor, min(size, self.stop - self.position), self.position)

    def read(self, size: int = -1) -> bytes:
        left = self.stop - self.position
        length = left if size < 0 else min(size, left)
        data = os.pread(self.descriptor, length, self.position)
        if length and not data:
            raise TruncatedStream(f"a file ends {left} bytes early")
        self.position += len(data)
        if self.position == self.stop:
            self.check_untouched()
        return data

    def check_untouched(self) -> None:
        """Raise NarcoreError if the file was changed since it was opened."""
        self._source.check_untouched()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            self._source.check_untouched()
        finally:
            self._source.close()


def joined(chunks: Iterator[bytes], size: int) -> Iterator[bytes]:
    """Join small chunks into chunks of at least ``size`` bytes, because a server sends each chunk separately."""
    pending: list[bytes] = []
    length = 0
    for chunk in chunks:
        pending.append(chunk)
        length += len(chunk)
        if length >= size:
            yield b"".join(pending)
            pending, length = [], 0
    yield b"".join(pending)


def open_body(read: Read, part: ByteRange, environ: "WSGIEnvironment") -> StreamBody | FileWindow:
    """Open the body for ``part`` and read its first bytes.

    Returns a FileWindow if the bytes can be sent from a file and the server has ``wsgi.file_wrapper``.
    """
    source = read(part.start, part.stop)
    file = getattr(source, "file", None)
    if file is not None and "wsgi.file_wrapper" in environ:
        return FileWindow(cast("FileBytes", source), *file)
    body = StreamBody(source)
    body.peek(1)
    return body


def read_head(read: Read, size: int) -> bytes:
    """Read the first bytes of a file of ``size`` bytes, as many as are needed to determine its type."""
    length = min(size, SNIFF_LENGTH)
    if not length:
        return b""
    body = StreamBody(read(0, length))
    try:
        return body.peek(length)
    finally:
        body.close()


class MultipartBody:
    """A multipart/byteranges body (RFC 9110 14.6). The first part is opened immediately, each other part when it is reached."""

    def __init__(self, read: Read, parts: Sequence[ByteRange], size: int, content_type: str) -> None:
        # The boundary is random, so that no file can contain the boundary of its own transfer.
        self.boundary = os.urandom(16).hex()
        self._read = read
        self._parts = parts
        self._heads = [self._head(part, size, content_type) for part in parts]
        self._tail = f"\r\n--{self.boundary}--\r\n".encode()
        self._current = self._open(parts[0])

    @property
    def length(self) -> int:
        return sum(map(len, self._heads)) + sum(part.length for part in self._parts) + len(self._tail)

    def __iter__(self) -> Iterator[bytes]:
        for index, (head, part) in enumerate(zip(self._heads, self._parts, strict=True)):
            if index:
                self._current.close()
                self._current = self._open(part)
            yield head
            yield from self._current
        yield self._tail

    def close(self) -> None:
        self._current.close()

    def _open(self, part: ByteRange) -> StreamBody:
        body = StreamBody(self._read(part.start, part.stop))
        body.peek(1)
        return body

    def _head(self, part: ByteRange, size: int, content_type: str) -> bytes:
        lines = f"--{self.boundary}", f"Content-Type: {content_type}", f"Content-Range: {part.content_range(size)}"
        # The line break before a delimiter is part of the delimiter (RFC 2046 5.1.1); the first one ends an empty preamble.
        return "\r\n".join(("", *lines, "", "")).encode()
