"""An HTTP client that sends requests unchanged: it normalises no path, follows no redirect and adds no header."""

import hashlib
import socket
from collections.abc import Mapping
from email.message import Message
from http.client import HTTPConnection
from types import TracebackType
from typing import NamedTuple, Self
from urllib.parse import parse_qs, quote, urljoin, urlsplit

from narserve.dev.apigateway import REMAPPED_LENGTH
from tests.e2e.fronts import Front


class ClientResponse(NamedTuple):
    """A response with its complete body."""

    status: int
    headers: Message
    body: bytes

    @property
    def text(self) -> str:
        """The body decoded as UTF-8, with surrogateescape."""
        return self.body.decode("utf-8", "surrogateescape")

    def header(self, name: str) -> str:
        """Return the value of a header; fails unless the response has it exactly once."""
        values = self.headers.get_all(name, [])
        assert len(values) == 1, f"{name}: {values} in {self.headers.items()}"
        return str(values[0])

    @property
    def size(self) -> int:
        """Content-Length in bytes. In responses to HEAD, API Gateway renames this header."""
        return int(self.headers.get(REMAPPED_LENGTH) or self.header("Content-Length"))

    def directives(self) -> dict[str, str]:
        """Return the directives of Cache-Control and their values ("" for a directive without a value)."""
        parts = (part.strip().partition("=") for part in self.header("Cache-Control").split(","))
        return {key.lower(): value for key, _, value in parts}


class Client:
    """A client with one keep-alive connection, which it reopens after the server has closed it."""

    def __init__(self, front: Front, *, prefix: str = "") -> None:
        self._front = front
        self._connection: HTTPConnection | None = None
        self.prefix = prefix

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def request(self, method: str, path: str, headers: Mapping[str, str] | None = None) -> ClientResponse:
        """Send a request and read the complete response. ``path`` is percent-encoded and may contain a query."""
        if self._connection is None:
            self._connection = self._front.connect()
        connection = self._connection
        try:
            headers = headers or {}
            connection.putrequest(method, self.prefix + path, skip_accept_encoding=True, skip_host="Host" in headers)
            for key, value in headers.items():
                connection.putheader(key, value)
            connection.endheaders()
            response = connection.getresponse()
            complete = ClientResponse(response.status, response.msg, response.read())
        except BaseException:
            self.close()
            raise
        if response.will_close:
            self.close()
        return complete

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> ClientResponse:
        """Send a GET request."""
        return self.request("GET", path, headers)

    def head(self, path: str, headers: Mapping[str, str] | None = None) -> ClientResponse:
        """Send a HEAD request; fails if the response has a body."""
        response = self.request("HEAD", path, headers)
        assert response.body == b""
        return response


def digest(data: bytes) -> str:
    """Return the length and SHA-256 of ``data``, to compare large bodies: pytest takes minutes to show how two of them differ."""
    return f"{len(data)} bytes, {hashlib.sha256(data).hexdigest()}"


def url_path(store_path: str, path: bytes = b"") -> str:
    """Return the URL path of ``path`` in a store path, percent-encoded."""
    return quote(store_path) + "/" + quote(path) if path else quote(store_path)


def location(redirect: ClientResponse, path: str) -> str:
    """Return path and query of the target of a redirect from ``path``; fails if the status is not 302."""
    assert redirect.status == 302, (path, redirect.status, redirect.body[:300])
    target = urlsplit(urljoin(f"http://front{path}", redirect.header("Location")))
    return target.path + (f"?{target.query}" if target.query else "")


def query_of(url: str) -> dict[str, list[str]]:
    """Parse the query of a URL, to compare queries regardless of order and of ``=`` after a name without a value."""
    return parse_qs(urlsplit(url).query, keep_blank_values=True)


def raw_exchange(front: Front, request: bytes) -> bytes:
    """Send ``request`` unchanged on a new connection, and read until the server closes it."""
    with socket.create_connection((front.host, front.port), timeout=30) as connection:
        connection.sendall(request)
        received = bytearray()
        while chunk := connection.recv(65536):
            received += chunk
    return bytes(received)
