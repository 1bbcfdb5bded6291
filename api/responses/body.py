"""Bodies of answers: bytes of a NAR as a stream, or as a window of an open file, for the WSGI server.

Two rules. The first bytes are there before the status is sent, so that a failure until then is a proper error page.
And a body that comes out shorter than its Content-Length raises: the server then cuts the connection, and nobody
takes the stump for the file.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast

from api.http.mediatypes import SNIFF_LENGTH
from api.http.ranges import ByteRange
from narcore.errors import TruncatedStream
from narcore.nars.accessor import NarBytes

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment


class FileBytes(NarBytes, Protocol):
    """Bytes that lie in a file, where sending them from there is worth while.

    ``file`` is None (it is not), or an open file of this reader's own and the offset in it.
    """

    file: tuple[BinaryIO, int] | None

    def check_untouched(self) -> None:
        """Raises NarcoreError if the file was changed since it was opened."""


Read = Callable[[int, int], NarBytes]  # bytes start up to stop of one file


class StreamBody:
    """Chunks as they come; ``peek`` looks ahead without losing anything."""

    def __init__(self, source: NarBytes) -> None:
        self._source = source
        self._chunks = iter(source)
        self._seen = b""

    def peek(self, size: int) -> bytes:
        """The first ``size`` bytes, fewer only if there are no more. Closes the source if it fails."""
        try:
            while len(self._seen) < size and (chunk := next(self._chunks, None)) is not None:
                self._seen += chunk
        except BaseException:
            self.close()
            raise
        return self._seen[:size]

    def __iter__(self) -> Iterator[bytes]:
        sent = len(self._seen)
        if self._seen:
            yield self._seen
        for chunk in self._chunks:
            sent += len(chunk)
            yield chunk
        if sent != self._source.length:
            raise TruncatedStream(f"a body of {self._source.length} bytes has {sent}")

    def close(self) -> None:
        self._source.close()


class FileWindow:
    """A part of an open file, as a file: what ``wsgi.file_wrapper`` wants, so that a server can use sendfile.

    A server that asks for ``fileno`` sends Content-Length bytes from the descriptor's position on; one that reads gets
    no byte behind the part. All goes through the descriptor: a buffered file's position is not the descriptor's. It
    says that it is not seekable, but socket.sendfile seeks when the kernel refuses to help.

    Whoever reads gets the last bytes only of a file that nobody has changed. Sendfile can't be made to wait for that, so
    it is looked at again when the window is closed: a server that has sent too little then cuts the connection, where it
    would wait for the next request while the client waits for the rest.
    """

    def __init__(self, source: FileBytes, file: BinaryIO, offset: int) -> None:
        self.length = source.length
        self._source = source
        self._descriptor = file.fileno()
        self._start = offset
        self._stop = offset + source.length
        self._position = self.seek(offset)
        self._closed = False

    @property
    def sent(self) -> int:
        """How many bytes the server has taken: it reads, or socket.sendfile moves the position when it has ended."""
        return self._position - self._start

    def peek(self, size: int) -> bytes:
        return os.pread(self._descriptor, min(size, self._stop - self._position), self._position)

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._stop - self._position)
        wanted = left if size < 0 else min(size, left)
        data = os.pread(self._descriptor, wanted, self._position)
        if wanted and not data:
            raise TruncatedStream(f"a file ends {left} bytes early")
        self._position += len(data)
        if self._position == self._stop:
            self._source.check_untouched()
        return data

    def seek(self, offset: int) -> int:
        self._position = os.lseek(self._descriptor, offset, os.SEEK_SET)
        return self._position

    def seekable(self) -> bool:
        return False

    def fileno(self) -> int:
        return self._descriptor

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            self._source.check_untouched()
        finally:
            self._source.close()


def joined(chunks: Iterator[bytes], size: int) -> Iterator[bytes]:
    """Small chunks joined to ``size`` bytes or a little more: a server sends each by itself."""
    waiting: list[bytes] = []
    length = 0
    for chunk in chunks:
        waiting.append(chunk)
        length += len(chunk)
        if length >= size:
            yield b"".join(waiting)
            waiting, length = [], 0
    yield b"".join(waiting)


def open_body(read: Read, part: ByteRange, environ: "WSGIEnvironment") -> StreamBody | FileWindow:
    """The bytes of ``part``, the first of them at hand."""
    source = read(part.start, part.stop)
    file = getattr(source, "file", None)
    if file is not None and "wsgi.file_wrapper" in environ:
        return FileWindow(cast("FileBytes", source), *file)
    body = StreamBody(source)
    body.peek(1)
    return body


def read_head(read: Read, size: int) -> bytes:
    """The first bytes of a file of ``size`` bytes, as many as are looked at to tell its type."""
    wanted = min(size, SNIFF_LENGTH)
    if not wanted:
        return b""
    body = StreamBody(read(0, wanted))
    try:
        return body.peek(wanted)
    finally:
        body.close()


class MultipartBody:
    """A multipart/byteranges body (RFC 9110 14.6): each part is opened when its turn comes, the first one at once."""

    def __init__(self, read: Read, parts: Sequence[ByteRange], size: int, content_type: str) -> None:
        # Random, so that no file can hold the boundary of its own transfer.
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
        # The line break before a delimiter belongs to it (RFC 2046 5.1.1); before the first it ends an empty preamble.
        return "\r\n".join(("", *lines, "", "")).encode()
