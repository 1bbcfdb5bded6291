"""Lambda's Runtime API on this machine: what a runtime client polls for requests, and where it posts what came of them.

Whatever the platform does not take is refused here as well: an answer above the limit, a stream above 200 MB.
https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html
"""

import base64
import json
import queue
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from typing import Any, NamedTuple

from narserve.dev.apigateway import ENVELOPE_LIMIT

STREAM_LIMIT = 200 << 20
BASE = "/2018-06-01/runtime"
END_OF_PRELUDE = bytes(8)
ERROR_BODY = "Lambda-Runtime-Function-Error-Body"


class FunctionError(Exception):
    """The function did not answer: it failed, was too slow, or said too much."""


class Prelude(NamedTuple):
    """The first part of a streamed answer: status and headers."""

    given: dict[str, Any]


class Invocation:
    """One request on its way through the function. What comes back is read as parts, and no faster than they are taken."""

    def __init__(self, event: dict[str, Any]) -> None:
        self.id = str(uuid.uuid4())
        self.event = json.dumps(event).encode()
        self._parts: queue.Queue[Prelude | bytes | FunctionError | None] = queue.Queue(maxsize=16)

    def put(self, part: Prelude | bytes | FunctionError | None) -> None:
        """None is the end."""
        self._parts.put(part, timeout=60)

    def parts(self, timeout: float) -> Iterator[Prelude | bytes]:
        """A Prelude and chunks for a stream; else one chunk, the envelope. Raises FunctionError."""
        while True:
            try:
                part = self._parts.get(timeout=timeout)
            except queue.Empty:
                raise FunctionError("Endpoint request timed out") from None
            if part is None:
                return
            if isinstance(part, FunctionError):
                raise part
            yield part


class RuntimeApi:
    """The server for one runtime client, which takes a request from ``waiting`` when it is ready for it."""

    def __init__(self, waiting: "queue.SimpleQueue[Invocation]") -> None:
        self.waiting = waiting
        self.under_way: dict[str, Invocation] = {}
        self.init_errors: list[bytes] = []
        self._server = _Server(self)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def address(self) -> str:
        """For AWS_LAMBDA_RUNTIME_API."""
        return f"127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fail_all(self, message: str) -> None:
        """The process is gone: whoever waits for it gets an error."""
        for request_id in list(self.under_way):
            self.under_way.pop(request_id).put(FunctionError(message))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, api: RuntimeApi) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.api = api

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A runtime client that ends is no news here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the name that the base class gave it)
        """Requests are not printed."""

    def do_GET(self) -> None:
        assert self.path == f"{BASE}/invocation/next"
        invocation = self._next()
        if invocation is None:
            return
        self.server.api.under_way[invocation.id] = invocation
        self.send_response(200)
        for name, value in (
            ("Lambda-Runtime-Aws-Request-Id", invocation.id),
            ("Lambda-Runtime-Deadline-Ms", str(int(time.time() * 1000) + 29_000)),
            ("Lambda-Runtime-Invoked-Function-Arn", "arn:aws:lambda:us-east-1:123456789012:function:nar-serve"),
            ("Lambda-Runtime-Trace-Id", "Root=1-5e1b4151-43a0913a12345678901234567;Sampled=0"),
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(invocation.event))),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(invocation.event)

    def _next(self) -> Invocation | None:
        """None once the client has gone away: a request must not be handed to nobody."""
        self.connection.setblocking(False)
        try:
            while True:
                try:
                    return self.server.api.waiting.get(timeout=0.2)
                except queue.Empty:
                    if self._client_is_gone():
                        self.close_connection = True
                        return None
        finally:
            self.connection.setblocking(True)

    def _client_is_gone(self) -> bool:
        try:
            seen: bytes = self.connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return not seen

    def do_POST(self) -> None:
        if self.path == f"{BASE}/init/error":
            self.server.api.init_errors.append(self._body())
            self._accept(202)
            return
        _, _, rest = self.path.partition("/invocation/")
        request_id, kind = rest.split("/")
        invocation = self.server.api.under_way.pop(request_id)
        if kind == "error":
            invocation.put(FunctionError(self._body().decode()))
            self._accept(202)
        elif self.headers.get("Lambda-Runtime-Function-Response-Mode") == "streaming":
            self._stream(invocation)
        else:
            self._whole(invocation)

    def _whole(self, invocation: Invocation) -> None:
        body = self._body()
        if len(body) > ENVELOPE_LIMIT:
            invocation.put(FunctionError(f"Function.ResponseSizeTooLarge: {len(body)} bytes"))
            self._accept(413)
            return
        invocation.put(body)
        invocation.put(None)
        self._accept(202)

    def _stream(self, invocation: Invocation) -> None:
        chunks = read_chunks(self.rfile)
        head = b""
        while END_OF_PRELUDE not in head:
            head += next(chunks)
        prelude, _, first = head.partition(END_OF_PRELUDE)
        invocation.put(Prelude(json.loads(prelude)))
        sent = len(first)
        if first:
            invocation.put(first)
        for chunk in chunks:
            sent += len(chunk)
            if sent > STREAM_LIMIT:
                invocation.put(FunctionError(f"a stream of more than {STREAM_LIMIT} bytes"))
                self.close_connection = True
                return
            invocation.put(chunk)
        trailers = self._trailers()
        failed = trailers.get(ERROR_BODY.lower())
        invocation.put(FunctionError(base64.b64decode(failed).decode()) if failed else None)
        self._accept(202)

    def _trailers(self) -> dict[str, str]:
        trailers = {}
        while line := self.rfile.readline().strip().decode():
            name, _, value = line.partition(":")
            trailers[name.lower()] = value.strip()
        return trailers

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(read_chunks(self.rfile))
            self._trailers()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _accept(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")


def read_chunks(file: BufferedIOBase) -> Iterator[bytes]:
    """The chunks of a chunked body, without its trailers. EOFError if it is cut."""
    while True:
        line = file.readline()
        if not line:
            raise EOFError("a chunked body ends early")
        size = int(line.split(b";")[0], 16)
        if size == 0:
            return
        yield file.read(size)
        file.readline()
