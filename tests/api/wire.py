"""Serves the app on a real socket in this process, and sends requests exactly as they are written."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from typing import NamedTuple
from wsgiref.types import WSGIApplication

from werkzeug.serving import WSGIRequestHandler, make_server


class Received(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def location(self) -> str:
        assert self.status == 302, self
        return self.headers["Location"]


class Wire(NamedTuple):
    port: int

    def get(self, path: str, host: str | None = "localhost", method: str = "GET", **headers: str) -> Received:
        """Send one request. If ``host`` is None, there is no Host header. ``_`` in a header name stands for ``-``."""
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=10)) as connection:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            if host is not None:
                connection.putheader("Host", host)
            for name, value in headers.items():
                connection.putheader(name.replace("_", "-"), value)
            connection.endheaders()
            response = connection.getresponse()
            return Received(response.status, dict(response.getheaders()), response.read())


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: object) -> None:  # noqa: A002  the name in the base class
        """Do not print requests."""


@contextmanager
def serving(app: WSGIApplication) -> Iterator[Wire]:
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield Wire(server.server_port)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
