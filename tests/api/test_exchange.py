"""The account of a request: what is counted, and when a body counts as complete."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from io import BytesIO
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment
from wsgiref.util import FileWrapper, setup_testing_defaults

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.telemetry.accesslog import log_access
from api.telemetry.exchange import Exchange, Observed, current_exchange
from api.telemetry.logs import JsonFormatter, TextFormatter
from narcore.errors import StoreTimeout


class Body:
    """Chunks; an exception among them is raised in its turn."""

    def __init__(self, *chunks: bytes | Exception, close_error: Exception | None = None) -> None:
        self._chunks = chunks
        self._close_error = close_error
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk

    def close(self) -> None:
        self.closed += 1
        if self._close_error:
            raise self._close_error


class Window(BytesIO):
    """As ``FileWindow``: knows its length, and how much of it was taken."""

    length = 10

    @property
    def sent(self) -> int:
        return self.tell()


def app_with(body: Iterable[bytes]) -> WSGIApplication:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Length", "10")])
        return body

    return app


def exchange_of(app: WSGIApplication, *, take: int | None = None, **environ: Any) -> Exchange:
    """Ask, take so many chunks, and close, as servers do also after something was raised."""
    told: list[Exchange] = []
    setup_testing_defaults(environ)
    headers: dict[str, str] = {}

    def start_response(status: str, given: list[tuple[str, str]], exc_info: object = None) -> Any:
        headers.update(given)

    body = Observed(app, [told.append])(environ, start_response)
    chunks = iter(body)
    try:
        if take is None:
            list(chunks)
        else:
            [next(chunks) for _ in range(take)]
    except Exception:  # noqa: BLE001  the server logs it
        pass
    assert current_exchange() is not None
    assert not told
    close: Callable[[], None] = getattr(body, "close")  # noqa: B009  a WSGI body need not have it
    with suppress(OSError):
        close()
    (exchange,) = told
    assert current_exchange() is None
    assert headers["X-Request-Id"] == exchange.request_id
    return exchange


@pytest.mark.parametrize(
    ("body", "take", "sent", "complete", "error"),
    [
        (Body(b"12345", b"67890"), None, 10, True, ""),
        (Body(), None, 0, True, ""),
        (Body(b"12345", b"67890"), 1, 0, False, ""),  # whether the first one went out, nobody knows
        (Body(b"12345", b"67890"), 2, 5, False, ""),
        (Body(b"12345", StoreTimeout("too slow")), None, 5, False, "StoreTimeout"),
        (Body(b"12345", close_error=OSError("changed")), None, 5, False, ""),
    ],
)
def test_a_body(body: Body, take: int | None, sent: int, complete: bool, error: str) -> None:
    exchange = exchange_of(app_with(body), take=take)
    assert (exchange.sent, exchange.complete, exchange.error) == (sent, complete, error)
    assert (exchange.first_byte is None) == (take == 0)
    assert body.closed == 1


@pytest.mark.parametrize(("read", "complete"), [(10, True), (4, False)])
def test_a_file_stays_the_servers_own_wrapper(read: int, complete: bool) -> None:
    """Or it would not be sent by sendfile."""
    window = Window(b"0123456789")
    told: list[Exchange] = []
    environ: WSGIEnvironment = {"wsgi.file_wrapper": FileWrapper}
    setup_testing_defaults(environ)
    body = Observed(app_with(FileWrapper(window)), [told.append])(environ, lambda *_: lambda _: None)
    assert isinstance(body, FileWrapper)
    window.seek(read)  # what socket.sendfile does at its end
    body.close()
    assert [(each.sent, each.complete) for each in told] == [(read, complete)]


def test_what_the_application_raises_has_an_end_too() -> None:
    told: list[Exchange] = []
    environ: WSGIEnvironment = {}
    setup_testing_defaults(environ)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        raise KeyError

    with pytest.raises(KeyError):
        Observed(app, [told.append])(environ, lambda *_: lambda _: None)
    assert [(each.status, each.complete) for each in told] == [(500, False)]


@pytest.mark.parametrize(
    ("status", "kind"), [(200, "file"), (206, "file"), (304, "file"), (302, "redirect"), (404, "error"), (503, "error")]
)
def test_kinds(status: int, kind: str) -> None:
    assert Exchange("1", "GET", "/", "-", status=status, response_kind="file").kind == kind


@pytest.mark.parametrize("given_id", ["abc", "a" * 128, "1-67891233-abcdef:x/y=@~+"])
def test_an_id_that_is_sane_is_taken(given_id: str) -> None:
    assert exchange_of(app_with([]), HTTP_X_REQUEST_ID=given_id).request_id == given_id


@given(st.text(st.characters(codec="latin-1")).filter(lambda text: not text.isalnum() or not text.isascii()))
def test_an_id_can_forge_nothing(given_id: str) -> None:
    made = exchange_of(app_with(Body()), HTTP_X_REQUEST_ID=f" {given_id}").request_id
    assert len(made) == 32
    assert made.isalnum()


def logged(exchange: Exchange) -> logging.LogRecord:
    records: list[logging.LogRecord] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    log = logging.getLogger("api.access")
    before = log.handlers, log.propagate, log.level
    log.handlers, log.propagate = [Collector()], False
    log.setLevel(logging.INFO)
    try:
        log_access(exchange)
    finally:
        log.handlers, log.propagate = before[:2]
        log.setLevel(before[2])
    (record,) = records
    return record


def test_lines() -> None:
    exchange = Exchange("id-1", "GET", "/nix/store/x?list", "192.0.2.7", status=200, sent=5, seconds=0.0031)
    exchange.sources = {"fill": None, "disk": None}
    assert logged(exchange).getMessage() == ('192.0.2.7 "GET /nix/store/x?list" 200 5 B 3.1 ms fill disk cut id-1')
    exchange.complete, exchange.sources, exchange.first_byte = True, {}, 0.002
    record = logged(exchange)
    assert record.getMessage() == '192.0.2.7 "GET /nix/store/x?list" 200 5 B 3.1 ms id-1'
    fields = json.loads(JsonFormatter().format(record))
    assert fields.pop("time").endswith("Z")
    assert fields == {
        "level": "info", "logger": "api.access", "message": "request", "request_id": "id-1", "client": "192.0.2.7",
        "method": "GET", "path": "/nix/store/x?list", "status": 200, "kind": "page", "bytes": 5, "ms": 3.1,
        "first_byte_ms": 2.0, "complete": True, "sources": [], "error": "",
    }  # fmt: skip


@given(st.text(st.characters(codec="latin-1")))
def test_a_path_can_forge_no_line_nor_field(path: str) -> None:
    record = logged(Exchange("id-1", "GET", path, "-", status=200, complete=True))
    line = TextFormatter().format(record)
    assert line.isprintable()
    assert line.count('"') == 2
    assert len(line.split()) == 11
    assert json.loads(JsonFormatter().format(record))["path"] == path


def test_a_record_that_is_made_meanwhile_has_the_id() -> None:
    record = logging.LogRecord("api", logging.WARNING, "", 0, "%s fails", ("it",), None)
    formats: list[str] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        formats.extend([TextFormatter().format(record), JsonFormatter().format(record)])
        start_response("200 OK", [])
        return []

    exchange_of(app, HTTP_X_REQUEST_ID="id-7")
    assert formats[0] == "WARNING api: it fails [id-7]"
    assert json.loads(formats[1])["request_id"] == "id-7"
    assert TextFormatter().format(record) == "WARNING api: it fails"
    assert "request_id" not in json.loads(JsonFormatter().format(record))
