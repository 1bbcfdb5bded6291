"""An HTTP client that sends what it is told to: no path is normalised, no redirect followed, no header added."""

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


class Answer(NamedTuple):
    """A response that was read to its end."""

    status: int
    headers: Message
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode("utf-8", "surrogateescape")

    def header(self, name: str) -> str:
        """A header that has to be there, once."""
        values = self.headers.get_all(name, [])
        assert len(values) == 1, f"{name}: {values} in {self.headers.items()}"
        return str(values[0])

    @property
    def size(self) -> int:
        """Content-Length; API Gateway calls it something else in the answer to HEAD."""
        return int(self.headers.get(REMAPPED_LENGTH) or self.header("Content-Length"))

    def directives(self) -> dict[str, str]:
        """Cache-Control, as a dict."""
        parts = (part.strip().partition("=") for part in self.header("Cache-Control").split(","))
        return {key.lower(): value for key, _, value in parts}


class Client:
    """A connection that is kept alive, and opened anew when the server closed it."""

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

    def request(self, method: str, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        """Send one request and read the answer whole. ``path`` is percent-encoded, with its query."""
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
            answer = Answer(response.status, response.msg, response.read())
        except BaseException:
            self.close()
            raise
        if response.will_close:
            self.close()
        return answer

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        """GET."""
        return self.request("GET", path, headers)

    def head(self, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        """HEAD; fails if there is a body."""
        answer = self.request("HEAD", path, headers)
        assert answer.body == b""
        return answer


def digest(data: bytes) -> str:
    """To compare large bodies by: pytest would go on for minutes to show how two of them differ."""
    return f"{len(data)} bytes, {hashlib.sha256(data).hexdigest()}"


def url_path(store_path: str, path: bytes = b"") -> str:
    """The URL of a path below a store path, every byte percent-encoded that may have to be."""
    return quote(store_path) + "/" + quote(path) if path else quote(store_path)


def location(answer: Answer, path: str) -> str:
    """Where a redirect that answered ``path`` leads, as path and query."""
    assert answer.status == 302, (path, answer.status, answer.body[:300])
    target = urlsplit(urljoin(f"http://front{path}", answer.header("Location")))
    return target.path + (f"?{target.query}" if target.query else "")


def query_of(url: str) -> dict[str, list[str]]:
    """The query of a URL, to compare without minding order or a missing ``=``."""
    return parse_qs(urlsplit(url).query, keep_blank_values=True)


def raw_exchange(front: Front, request: bytes) -> bytes:
    """Send bytes as they are, and read until the server closes the connection."""
    with socket.create_connection((front.host, front.port), timeout=30) as connection:
        connection.sendall(request)
        received = bytearray()
        while chunk := connection.recv(65536):
            received += chunk
    return bytes(received)
