"""A runtime client for Lambda that streams: API Gateway's ``responseTransferMode: STREAM`` carries 200 MB, as it comes.

``python -m narserve.awslambda.streaming``, in place of the platform's own client, which can't stream (``stream`` is the wrapper
that Lambda starts). One request at a time, as Lambda gives them.

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

# Decimal, and so below what the platform means, whichever way it counts. What is written around the body is a few KB.
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
    """The Runtime API, at ``host:port``."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._waiting = HTTPConnection(address)  # kept alive; an answer has a connection of its own, closed behind it

    def next(self) -> tuple[str, Event]:
        """Wait for a request: its id and its event."""
        self._waiting.request("GET", f"{BASE}/invocation/next")
        response = self._waiting.getresponse()
        event = json.loads(response.read())
        os.environ["_X_AMZN_TRACE_ID"] = response.headers.get("Lambda-Runtime-Trace-Id", "")
        return response.headers["Lambda-Runtime-Aws-Request-Id"], event

    def close(self) -> None:
        self._waiting.close()

    def post(self, path: str, error: BaseException) -> None:
        """Say that something failed before there was an answer."""
        connection = HTTPConnection(self._address)
        try:
            connection.request("POST", BASE + path, _error_json(error), {ERROR_TYPE: type(error).__name__})
            connection.getresponse().read()
        finally:
            connection.close()

    def answer(self, invocation: str, event: Event, application: WSGIApplication) -> None:
        """Send what the application answers. One that fails half-way is reported as failed: no stump passes for the whole."""
        response = _Response()
        body: Iterable[bytes] = ()
        try:
            body = application(environ_of(event), response.start)
            chunks = filter(None, body)
            first = next(chunks, b"")  # the status is known now
        except Exception as error:  # noqa: BLE001  whatever it is, the next request is to be answered
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
            log.warning("the answer could not be given to Lambda: %s", error)
        finally:
            connection.close()


class _Response:
    """Takes the status and the headers."""

    def __init__(self) -> None:
        self.status = ""
        self.headers: list[tuple[str, str]] = []

    def start(
        self, status: str, headers: list[tuple[str, str]], exc_info: object = None, /
    ) -> Callable[[bytes], object]:
        self.status, self.headers = status, headers
        return _no_write

    def prelude(self) -> bytes:
        """What API Gateway makes the status and the headers from."""
        many: dict[str, list[str]] = {}
        for name, value in self.headers:
            many.setdefault(name, []).append(value)
        return json.dumps({"statusCode": int(self.status[:3]), "multiValueHeaders": many}).encode()


class _Sending:
    """A POST with a chunked body and a trailer, which http.client can't write by itself."""

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
        except Exception as error:  # noqa: BLE001  whatever it is, it is said in the trailer
            traceback.print_exc()
            told = base64.b64encode(_error_json(error)).decode()
            trailer = f"{ERROR_TYPE}: {type(error).__name__}\r\n{ERROR_BODY}: {told}\r\n".encode()
        self._socket.sendall(b"0\r\n" + trailer + b"\r\n")
        self._connection.getresponse().read()

    def _send(self, chunk: bytes) -> None:
        self._socket.sendall(b"%x\r\n%b\r\n" % (len(chunk), chunk))


def environ_of(event: Event) -> WSGIEnvironment:
    """PEP 3333's variables for an event of a REST API."""
    given = headers(event)
    raw = event.get("body") or ""
    body = base64.b64decode(raw) if event.get("isBase64Encoded") else raw.encode()
    environ: dict[str, Any] = {
        f"HTTP_{name.upper().replace('-', '_')}": value
        for name, value in given.items()
        if name not in ("content-type", "content-length")
    }
    return environ | {
        "REQUEST_METHOD": event["httpMethod"],
        "QUERY_STRING": urlencode(event.get("multiValueQueryStringParameters") or {}, doseq=True),
        "SERVER_NAME": given.get("host", "lambda").partition(":")[0],
        "SERVER_PORT": given.get("x-forwarded-port", "443"),
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": event["requestContext"]["identity"]["sourceIp"],
        "CONTENT_TYPE": given.get("content-type", ""),
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": given.get("x-forwarded-proto", "https"),
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
    raise NotImplementedError("write() of PEP 3333 is not offered")


if __name__ == "__main__":
    main()
