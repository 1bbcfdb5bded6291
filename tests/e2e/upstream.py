"""An HTTP server for binary caches that records its requests and injects faults.

::

    with Upstream() as upstream:
        url = upstream.mount("xz", directory)                # http://127.0.0.1:PORT/xz
        with upstream.fault("*.nar.xz", cut_after=1000, times=1):
            ...
        assert upstream.count("*.nar.xz") == 2

It supports HTTP/1.1 with keep-alive, single ranges, ETag, Last-Modified, If-Range, If-None-Match and HEAD. It runs in the
process of the test, with one thread for each connection, and accepts connections from other processes.
"""

import fnmatch
import hashlib
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self
from urllib.parse import unquote, urlsplit

CHUNK = 64 * 1024
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


@dataclass(slots=True)
class Request:
    """A request that the server received. ``sent`` counts the bytes of the response body that were sent up to now."""

    method: str
    path: str
    headers: Mapping[str, str]
    sent: int = 0
    status: int = 0

    @property
    def range(self) -> str | None:
        """The Range header."""
        return self.headers.get("Range")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A fault in the responses to requests whose path matches ``pattern`` (as in fnmatch).

    ``times`` limits the fault to the first matching requests. Lengths count bytes of the response body; the offset of ``patch``
    is an offset in the file.
    """

    pattern: str
    method: str | None = None
    times: int | None = None
    delay: float = 0  # seconds before the response
    status: int | None = None  # send this status instead of the file
    body: bytes | None = None  # send this body instead of the file
    headers: Mapping[str, str] = field(default_factory=dict)  # add or replace these headers
    ranges: bool = True  # False: respond to a range request with 200 and the whole file
    cut_after: int | None = None  # close the connection after this number of bytes
    stall_after: int | None = None  # after this number of bytes, send nothing until the fault is removed
    rate: int | None = None  # bytes per second
    length: int | None = None  # shorten the body to this length, with a Content-Length to match
    patch: tuple[int, bytes] | None = None  # replace the bytes at an offset of the file
    drop: bool = False  # close the connection without a response


@dataclass(slots=True)
class _Active:
    fault: Fault
    remaining: int | None
    removed: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True)
class _Mount:
    directory: Path
    hidden: tuple[str, ...]
    headers: Mapping[str, Mapping[str, str]]


class Upstream:
    """The server. ``requests`` has all requests since the start or since the last `clear`."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._mounts: dict[str, _Mount] = {}
        self._faults: list[_Active] = []
        self._lock = threading.Lock()
        self._server = _Server(self)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for active in self._faults:
            active.removed.set()
        self._server.shutdown()
        self._server.close_connections()
        self._server.server_close()
        self._thread.join()

    def mount(
        self,
        name: str,
        directory: Path,
        *,
        hidden: tuple[str, ...] = (),
        headers: Mapping[str, Mapping[str, str]] | None = None,
    ) -> str:
        """Serve ``directory`` below ``/name``; returns its URL.

        Requests for files that match a pattern of ``hidden`` get a 404. ``headers`` maps patterns to the headers of the files
        that match, for example ``{"*.ls": {"Content-Encoding": "br"}}``.
        """
        self._mounts[name] = _Mount(directory, hidden, headers or {})
        return f"{self.url}/{name}"

    @contextmanager
    def fault(self, pattern: str, **details: Any) -> Iterator[Fault]:
        """Inject a fault until the end of the ``with``. ``details`` are fields of `Fault`."""
        fault = Fault(pattern=pattern, **details)
        active = _Active(fault, fault.times)
        with self._lock:
            self._faults.insert(0, active)  # the latest matching fault applies
        try:
            yield fault
        finally:
            with self._lock:
                self._faults.remove(active)
            active.removed.set()

    def seen(self, pattern: str = "*", method: str | None = None) -> list[Request]:
        """Return the requests whose path matches ``pattern``."""
        with self._lock:
            requests = list(self.requests)
        return [each for each in requests if fnmatch.fnmatchcase(each.path, pattern) and method in (None, each.method)]

    def count(self, pattern: str = "*", method: str | None = None) -> int:
        """Return the number of requests that `seen` returns."""
        return len(self.seen(pattern, method))

    def sent(self, pattern: str = "*") -> int:
        """Return the number of bytes of response bodies that were sent for the matching requests."""
        return sum(each.sent for each in self.seen(pattern))

    def clear(self) -> None:
        """Forget all requests up to now."""
        with self._lock:
            self.requests.clear()

    def record(self, request: Request) -> _Active | None:
        """Record a request, and return the fault that applies to it."""
        with self._lock:
            self.requests.append(request)
            for active in self._faults:
                fault = active.fault
                if not fnmatch.fnmatchcase(request.path, fault.pattern) or fault.method not in (None, request.method):
                    continue
                if active.remaining is not None:
                    if not active.remaining:
                        continue
                    active.remaining -= 1
                return active
        return None

    def find(self, path: str) -> tuple[Path, dict[str, str]] | None:
        """Return the file at the path of a URL and its headers, or None."""
        name, _, rest = unquote(urlsplit(path).path).lstrip("/").partition("/")
        mount = self._mounts.get(name)
        if mount is None or any(fnmatch.fnmatchcase(rest, pattern) for pattern in mount.hidden):
            return None
        file = mount.directory / rest
        if ".." in rest.split("/") or not file.is_file():
            return None
        matching = (headers for pattern, headers in mount.headers.items() if fnmatch.fnmatchcase(rest, pattern))
        return file, {key: value for headers in matching for key, value in headers.items()}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, upstream: Upstream) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream
        self._connections: set[socket.socket] = set()

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self._connections.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def close_connections(self) -> None:
        """Wake the threads that wait for the next request of a keep-alive connection, or for space in a send buffer."""
        for connection in list(self._connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # the client has closed it already

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect."""


class _Cut(Exception):
    """The fault requires that the connection is closed now."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 64 * 1024
    server: _Server

    def do_GET(self) -> None:
        request = Request(self.command, self.path, {key.title(): value for key, value in self.headers.items()})
        active = self.server.upstream.record(request)
        self._fault = active.fault if active else Fault(pattern="")
        self._removed = active.removed if active else threading.Event()
        self._request = request
        try:
            self._respond()
            self.wfile.flush()
        except (_Cut, OSError):
            self.close_connection = True

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (named by the base class)
        """Do not log requests: they are recorded."""

    def _respond(self) -> None:
        fault = self._fault
        time.sleep(fault.delay)
        if fault.drop:
            raise _Cut
        if fault.status is not None:
            return self._small(fault.status, fault.body or b"injected\n")
        found = self.server.upstream.find(self.path)
        if fault.body is not None:
            return self._small(200, fault.body)
        if found is None:
            return self._small(404, b"404\n")
        return self._file(*found)

    def _small(self, status: int, body: bytes) -> None:
        self._head(status, {"Content-Type": "text/plain", "Content-Length": str(len(body))})
        if self.command != "HEAD":
            self.wfile.write(body)
            self._request.sent += len(body)

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self._request.status = status
        self.send_response(status)
        for key, value in (dict(headers) | dict(self._fault.headers)).items():
            self.send_header(key, value)
        self.end_headers()

    def _file(self, path: Path, headers: Mapping[str, str]) -> None:
        stat = path.stat()
        etag = f'"{hashlib.md5(f"{path}{stat.st_mtime_ns}{stat.st_size}".encode()).hexdigest()}"'
        modified = formatdate(stat.st_mtime, usegmt=True)
        metadata = {"ETag": etag, "Last-Modified": modified, "Accept-Ranges": "bytes"} | dict(headers)
        if etag in self.headers.get("If-None-Match", ""):
            return self._head(304, metadata)
        span = self._span(stat.st_size, {etag, modified})
        if span is None:
            return self._head(416, metadata | {"Content-Range": f"bytes */{stat.st_size}", "Content-Length": "0"})
        start, stop, status = span
        if self._fault.length is not None:
            stop = min(stop, start + self._fault.length)
        metadata["Content-Length"] = str(stop - start)
        if status == 206:
            metadata["Content-Range"] = f"bytes {start}-{stop - 1}/{stat.st_size}"
        self._head(status, metadata)
        if self.command != "HEAD":
            self._body(path, start, stop)
        return None

    def _span(self, size: int, validators: set[str]) -> tuple[int, int, int] | None:
        """Return start, stop and status, or None if the range can't be satisfied."""
        match = _RANGE.fullmatch(self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        if not match or not self._fault.ranges or (condition and condition not in validators) or self.command == "HEAD":
            return 0, size, 200
        first, last = match.groups()
        if first:
            start, stop = int(first), min(int(last or size) + 1, size)
        else:
            start, stop = max(0, size - int(last or 0)), size
        return (start, stop, 206) if start < stop else None

    def _body(self, path: Path, start: int, stop: int) -> None:
        fault = self._fault
        with path.open("rb") as file:
            if all(each is None for each in (fault.cut_after, fault.stall_after, fault.rate, fault.patch)):
                self._send_all(file, start, stop)
            else:
                self._send_with_faults(file, start, stop)

    def _send_all(self, file: BinaryIO, start: int, stop: int) -> None:
        self.wfile.flush()
        if start == stop:
            return
        try:
            self.connection.sendfile(file, start, stop - start)
        finally:
            self._request.sent += file.tell() - start

    def _send_with_faults(self, file: BinaryIO, start: int, stop: int) -> None:
        file.seek(start)
        self.wfile.flush()
        self._interrupt(0)
        while start < stop:
            chunk = self._patched(file.read(min(CHUNK, stop - start, *self._next_limits())), start)
            self.wfile.write(chunk)
            self.wfile.flush()
            start += len(chunk)
            self._request.sent += len(chunk)
            self._interrupt(len(chunk))

    def _next_limits(self) -> Iterator[int]:
        """Yield the number of bytes that each limit of the fault allows to be sent next."""
        for limit in (self._fault.cut_after, self._fault.stall_after):
            if limit is not None and (left := limit - self._request.sent) > 0:
                yield left
        if self._fault.rate is not None:
            yield max(1, self._fault.rate // 20)

    def _interrupt(self, sent: int) -> None:
        """Cut, stall or delay the response as the fault says; ``sent`` bytes were sent since the last call."""
        fault = self._fault
        if fault.cut_after is not None and self._request.sent >= fault.cut_after:
            raise _Cut
        if fault.stall_after is not None and self._request.sent >= fault.stall_after:
            self._removed.wait()
        if fault.rate is not None:
            self._removed.wait(sent / fault.rate)

    def _patched(self, chunk: bytes, start: int) -> bytes:
        if self._fault.patch is None:
            return chunk
        offset, wrong = self._fault.patch
        changed = bytearray(chunk)
        for position, byte in enumerate(wrong, offset - start):
            if 0 <= position < len(changed):
                changed[position] = byte
        return bytes(changed)
