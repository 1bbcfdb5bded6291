"""A runtime client for Lambda that streams responses. With ``responseTransferMode: STREAM``, API Gateway allows 200 MB for each.

Run as ``python -m narserve.awslambda.streaming`` in place of Lambda's own runtime client, which can't stream. Lambda starts the
wrapper script ``stream``, which starts this module. Lambda sends one request at a time, so this client handles one at a time.

https://docs.aws.amazon.com/lambda/latest/dg/runtimes-custom.html#runtimes-custom-response-streaming
"""

import base64
import io
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from http.client import HTTPConnection
from socket import socket
from typing import Any
from urllib.parse import urlencode
from wsgiref.types import WSGIApplication, WSGIEnvironment

from narserve.awslambda.restapi import Event, headers, path_variables

# Largest body in bytes. The platform's 200 MB may be decimal or binary; the decimal value is safe for both. The prelude and the
# chunk headers around the body add only a few KB.
CARRIES = 200_000_000

BASE = "/2018-06-01/runtime"
PRELUDE_TYPE = "application/vnd.awslambda.http-integration-response"
END_OF_PRELUDE = bytes(8)
ERROR_TYPE, ERROR_BODY = "Lambda-Runtime-Function-Error-Type", "Lambda-Runtime-Function-Error-Body"

log = logging.getLogger("api")


def main() -> None:
    runtime = Runtime(os.environ["AWS_LAMBDA_RUNTIME_API"])
    try:
        from narserve.awslambda.application import load_application

        application = load_application(CARRIES)
    except BaseException as error:
        runtime.post("/init/error", error)
        raise
    while True:
        invocation, event = runtime.next()
        runtime.answer(invocation, event, application)


class Runtime:
    """Client of Lambda's Runtime API. ``address`` is ``host:port``."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._polling = HTTPConnection(address)  # kept alive; each response uses a new connection, closed afterwards

    def next(self) -> tuple[str, Event]:
        """Wait for a request. Returns its id and its event."""
        self._polling.request("GET", f"{BASE}/invocation/next")
        response = self._polling.getresponse()
        event = json.loads(response.read())
        os.environ["_X_AMZN_TRACE_ID"] = response.headers.get("Lambda-Runtime-Trace-Id", "")
        return response.headers["Lambda-Runtime-Aws-Request-Id"], event

    def close(self) -> None:
        self._polling.close()

    def post(self, path: str, error: BaseException) -> None:
        """Report an error that occurred before the response began. ``path`` is relative to BASE."""
        connection = HTTPConnection(self._address)
        try:
            connection.request("POST", BASE + path, _error_json(error), {ERROR_TYPE: type(error).__name__})
            connection.getresponse().read()
        finally:
            connection.close()

    def answer(self, invocation: str, event: Event, application: WSGIApplication) -> None:
        """Call the application and send its response. Reports a failure to Lambda, so a partial response never looks complete."""
        response = _Response()
        body: Iterable[bytes] = ()
        try:
            body = application(environ_of(event), response.start)
            chunks = filter(None, body)
            first = next(chunks, b"")  # from here on, the status is known
        except Exception as error:  # noqa: BLE001  after any error, the next request must still be answered
            traceback.print_exc()
            self.post(f"/invocation/{invocation}/error", error)
        else:
            self._send(invocation, response, first, chunks)
        finally:
            getattr(body, "close", lambda: None)()

    def _send(self, invocation: str, response: "_Response", first: bytes, chunks: Iterator[bytes]) -> None:
        connection = HTTPConnection(self._address)
        try:
            _Sending(connection, f"{BASE}/invocation/{invocation}/response").send_all(response, first, chunks)
        except OSError as error:
            log.warning("the response could not be sent to Lambda: %s", error)
        finally:
            connection.close()


class _Response:
    """The status and the headers that the application passes to ``start``."""

    def __init__(self) -> None:
        self.status = ""
        self.headers: list[tuple[str, str]] = []

    def start(
        self, status: str, headers: list[tuple[str, str]], exc_info: object = None, /
    ) -> Callable[[bytes], object]:
        self.status, self.headers = status, headers
        return _no_write

    def prelude(self) -> bytes:
        """Return the JSON text from which API Gateway takes the status and the headers."""
        headers: dict[str, list[str]] = {}
        for name, value in self.headers:
            headers.setdefault(name, []).append(value)
        return json.dumps({"statusCode": int(self.status[:3]), "multiValueHeaders": headers}).encode()


class _Sending:
    """A POST with a chunked body and a trailer, which http.client does not support."""

    def __init__(self, connection: HTTPConnection, path: str) -> None:
        self._connection = connection
        connection.putrequest("POST", path, skip_accept_encoding=True)
        connection.putheader("Content-Type", PRELUDE_TYPE)
        connection.putheader("Transfer-Encoding", "chunked")
        connection.putheader("Lambda-Runtime-Function-Response-Mode", "streaming")
        connection.putheader("Trailer", f"{ERROR_TYPE}, {ERROR_BODY}")
        connection.endheaders()
        self._socket: socket = connection.sock

    def send_all(self, response: _Response, first: bytes, chunks: Iterator[bytes]) -> None:
        self._send(response.prelude() + END_OF_PRELUDE)
        trailer = b""
        try:
            if first:
                self._send(first)
            for chunk in chunks:
                self._send(chunk)
        except Exception as error:  # noqa: BLE001  the trailer reports any error
            traceback.print_exc()
            error_body = base64.b64encode(_error_json(error)).decode()
            trailer = f"{ERROR_TYPE}: {type(error).__name__}\r\n{ERROR_BODY}: {error_body}\r\n".encode()
        self._socket.sendall(b"0\r\n" + trailer + b"\r\n")
        self._connection.getresponse().read()

    def _send(self, chunk: bytes) -> None:
        self._socket.sendall(b"%x\r\n%b\r\n" % (len(chunk), chunk))


def environ_of(event: Event) -> WSGIEnvironment:
    """Return the WSGI environ (PEP 3333) of an event of a REST API."""
    request_headers = headers(event)
    raw = event.get("body") or ""
    body = base64.b64decode(raw) if event.get("isBase64Encoded") else raw.encode()
    environ: dict[str, Any] = {
        f"HTTP_{name.upper().replace('-', '_')}": value
        for name, value in request_headers.items()
        if name not in ("content-type", "content-length")
    }
    return environ | {
        "REQUEST_METHOD": event["httpMethod"],
        "QUERY_STRING": urlencode(event.get("multiValueQueryStringParameters") or {}, doseq=True),
        "SERVER_NAME": request_headers.get("host", "lambda").partition(":")[0],
        "SERVER_PORT": request_headers.get("x-forwarded-port", "443"),
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": event["requestContext"]["identity"]["sourceIp"],
        "CONTENT_TYPE": request_headers.get("content-type", ""),
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": request_headers.get("x-forwarded-proto", "https"),
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": False,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        **path_variables(event),
    }


def _error_json(error: BaseException) -> bytes:
    return json.dumps({"errorMessage": str(error), "errorType": type(error).__name__}).encode()


def _no_write(data: bytes) -> object:
    raise NotImplementedError("the write() callable of PEP 3333 is not supported")


if __name__ == "__main__":
    main()
