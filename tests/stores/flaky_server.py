"""An HTTP server on a real socket that misbehaves as a script says."""

import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Self


class Act(Enum):
    CUT = auto()  # reset the connection: the client loses what it has not read yet
    CLOSE = auto()  # close the connection normally
    STALL = auto()  # send nothing more until the server is closed


@dataclass(frozen=True)
class Request:
    method: str
    target: str
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def range(self) -> tuple[int, int | None] | None:
        """The first and the last byte of the requested range."""
        if "range" not in self.headers:
            return None
        first, _, last = self.headers["range"].removeprefix("bytes=").partition("-")
        return int(first), int(last) if last else None


Step = bytes | threading.Event | Act
Script = Callable[[Request], Iterable[Step]]


class FlakyServer:
    """Answers every request with the steps of ``script``: bytes to send, an event to wait for, or an ``Act``.

    ``requests`` are the requests so far, ``connections`` is the number of connections.
    """

    def __init__(self, script: Script, *, context: ssl.SSLContext | None = None) -> None:
        self._script = script
        self._context = context
        self._closed = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self.requests: list[Request] = []
        self.connections = 0
        self.port: int = self._listener.getsockname()[1]
        self.url = f"{'https' if context else 'http'}://127.0.0.1:{self.port}"
        self._threads[0].start()

    def close(self) -> None:
        if self._closed.is_set():
            return
        self._closed.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()
        for connection in self._sockets:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # the client, or a script, has closed it already
        for thread in self._threads[1:]:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._sockets.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            if self._context is not None:
                connection = self._context.wrap_socket(connection, server_side=True)  # this detaches the old socket
                self._sockets.append(connection)
            with connection, connection.makefile("rb") as lines:
                while (request := _request(lines)) is not None:
                    self.requests.append(request)
                    if not all(self._step(connection, step) for step in self._script(request)):
                        return
        except OSError:
            return  # the client closed the connection
        finally:
            connection.close()

    def _step(self, connection: socket.socket, step: Step) -> bool:
        """Do one step; return whether the connection stays open."""
        if isinstance(step, bytes):
            connection.sendall(step)
        elif isinstance(step, threading.Event):
            step.wait(5)
        elif step is Act.STALL:
            self._closed.wait(5)
        elif step is Act.CUT:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return not isinstance(step, Act)


def _request(lines: Iterable[bytes]) -> Request | None:
    method, target = "", ""
    headers: dict[str, str] = {}
    for line in lines:
        text = line.decode("latin-1").rstrip("\r\n")
        if not method:
            method, target, _ = text.split(" ", 2)
        elif text:
            name, _, value = text.partition(":")
            headers[name.lower()] = value.strip()
        else:
            return Request(method, target, headers)
    return None


def head(status: int, *headers: str, length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", *headers]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode("latin-1")


def answer(status: int, body: bytes = b"", *headers: str) -> list[Step]:
    return [head(status, *headers, length=len(body)) + body]


def redirect(location: str, status: int = 302) -> list[Step]:
    return answer(status, b"moved", f"Location: {location}")


class FlakyFile:
    """A script that serves ``content`` with ranges. The response number i ends after ``cuts[i]`` bytes of its body.

    ``tags`` are the ETags of the responses, in order; the last one is used for all further responses. ``end`` is what happens
    at a cut. ``if_range`` collects the If-Range headers.
    """

    def __init__(
        self,
        content: bytes,
        cuts: Iterable[int] = (),
        *,
        tags: Iterable[str] = ('"v1"',),
        end: Act = Act.CLOSE,
        extra: Iterable[str] = (),
    ) -> None:
        self._content = content
        self._cuts = iter(cuts)
        self._tags = list(tags)
        self._end = end
        self._extra = list(extra)
        self.if_range: list[str] = []

    def __call__(self, request: Request) -> Iterator[Step]:
        tag = self._tags.pop(0) if len(self._tags) > 1 else self._tags[0]
        headers = [*self._extra, *([f"ETag: {tag}"] if tag else [])]
        first, last = request.range or (0, None)
        if "if-range" in request.headers:
            self.if_range.append(request.headers["if-range"])
        size = len(self._content)
        stop = size if last is None else last + 1
        if request.range is None:
            yield head(200, *headers, length=size)
        else:
            yield head(206, f"Content-Range: bytes {first}-{stop - 1}/{size}", *headers, length=stop - first)
        cut = next(self._cuts, None)
        yield self._content[first : stop if cut is None else min(stop, first + cut)]
        if cut is not None:
            yield self._end
