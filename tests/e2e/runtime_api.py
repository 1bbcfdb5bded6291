"""An emulation of the Lambda Runtime API, from which a runtime client polls requests and to which it posts the results.

Like the platform, it rejects responses above the size limit and streams above 200 MB.
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
    """The function failed, timed out, or returned a response that is too large."""


class Prelude(NamedTuple):
    """The first part of a streamed response. ``fields`` has the status and the headers."""

    fields: dict[str, Any]


class Invocation:
    """One request to the function. The parts of its result are read only as fast as `parts` is consumed."""

    def __init__(self, event: dict[str, Any]) -> None:
        self.id = str(uuid.uuid4())
        self.event = json.dumps(event).encode()
        self._parts: queue.Queue[Prelude | bytes | FunctionError | None] = queue.Queue(maxsize=16)

    def put(self, part: Prelude | bytes | FunctionError | None) -> None:
        """Add a part of the result. None marks the end."""
        self._parts.put(part, timeout=60)

    def parts(self, timeout: float) -> Iterator[Prelude | bytes]:
        """Yield a Prelude and chunks for a streamed response, otherwise one chunk: the envelope.

        Raises FunctionError if the function fails, or if there is no next part for ``timeout`` seconds.
        """
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
    """The server for one runtime client, which takes requests from the queue ``pending``."""

    def __init__(self, pending: "queue.SimpleQueue[Invocation]") -> None:
        self.pending = pending
        self.in_flight: dict[str, Invocation] = {}
        self.init_errors: list[bytes] = []
        self._server = _Server(self)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def address(self) -> str:
        """The value of AWS_LAMBDA_RUNTIME_API."""
        return f"127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fail_all(self, message: str) -> None:
        """Fail all requests in flight, because the process has ended."""
        for request_id in list(self.in_flight):
            self.in_flight.pop(request_id).put(FunctionError(message))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, api: RuntimeApi) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.api = api

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore runtime clients that disconnect."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (named by the base class)
        """Do not log requests."""

    def do_GET(self) -> None:
        assert self.path == f"{BASE}/invocation/next"
        invocation = self._next()
        if invocation is None:
            return
        self.server.api.in_flight[invocation.id] = invocation
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
        """Return the next request, or None if the client has disconnected: taking a request then would lose it."""
        self.connection.setblocking(False)
        try:
            while True:
                try:
                    return self.server.api.pending.get(timeout=0.2)
                except queue.Empty:
                    if self._client_has_disconnected():
                        self.close_connection = True
                        return None
        finally:
            self.connection.setblocking(True)

    def _client_has_disconnected(self) -> bool:
        try:
            data: bytes = self.connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return not data

    def do_POST(self) -> None:
        if self.path == f"{BASE}/init/error":
            self.server.api.init_errors.append(self._body())
            self._accept(202)
            return
        _, _, rest = self.path.partition("/invocation/")
        request_id, kind = rest.split("/")
        invocation = self.server.api.in_flight.pop(request_id)
        if kind == "error":
            invocation.put(FunctionError(self._body().decode()))
            self._accept(202)
        elif self.headers.get("Lambda-Runtime-Function-Response-Mode") == "streaming":
            self._streamed(invocation)
        else:
            self._buffered(invocation)

    def _buffered(self, invocation: Invocation) -> None:
        body = self._body()
        if len(body) > ENVELOPE_LIMIT:
            invocation.put(FunctionError(f"Function.ResponseSizeTooLarge: {len(body)} bytes"))
            self._accept(413)
            return
        invocation.put(body)
        invocation.put(None)
        self._accept(202)

    def _streamed(self, invocation: Invocation) -> None:
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
    """Yield the chunks of a chunked body, without its trailers. Raises EOFError if the body ends early."""
    while True:
        line = file.readline()
        if not line:
            raise EOFError("a chunked body ends early")
        size = int(line.split(b";")[0], 16)
        if size == 0:
            return
        yield file.read(size)
        file.readline()
