"""The record of a request: its counters, when a body counts as complete, and its log line."""

import json
import logging
import threading
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
from narcore.errors import CacheFailure, StoreTimeout


class Body:
    """A body that yields chunks. An exception in the list is raised when it is reached."""

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
    """Like ``FileWindow``: has a length and counts the bytes that were taken."""

    length = 10

    def __init__(self, data: bytes, close_error: Exception | None) -> None:
        super().__init__(data)
        self._close_error = close_error

    def close(self) -> None:
        super().close()
        if self._close_error:
            raise self._close_error

    @property
    def sent(self) -> int:
        return self.tell()


def app_with(body: Iterable[bytes]) -> WSGIApplication:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Length", "10")])
        return body

    return app


def exchange_of(app: WSGIApplication, *, take: int | None = None, **environ: Any) -> Exchange:
    """Send a request, take ``take`` chunks (None: all), and close the body. Servers close the body even after an exception."""
    observed: list[Exchange] = []
    setup_testing_defaults(environ)
    headers: dict[str, str] = {}

    def start_response(status: str, response_headers: list[tuple[str, str]], exc_info: object = None) -> Any:
        headers.update(response_headers)

    body = Observed(app, [observed.append])(environ, start_response)
    chunks = iter(body)
    failure = ""
    try:
        if take is None:
            list(chunks)
        else:
            [next(chunks) for _ in range(take)]
    except Exception as error:  # noqa: BLE001  as a server does: it closes the body after any error
        failure = type(error).__name__
    assert current_exchange() is not None
    assert not observed
    close: Callable[[], None] = getattr(body, "close")  # noqa: B009  not every WSGI body has close
    with suppress(OSError):
        close()
    (exchange,) = observed
    assert current_exchange() is None
    assert headers["X-Request-Id"] == exchange.request_id
    assert exchange.error == failure
    return exchange


@pytest.mark.parametrize(
    ("body", "take", "sent", "complete", "error"),
    [
        (Body(b"12345", b"67890"), None, 10, True, ""),
        (Body(), None, 0, True, ""),
        (Body(b"12345", b"67890"), 1, 0, False, ""),  # the first chunk may not have been sent
        (Body(b"12345", b"67890"), 2, 5, False, ""),
        (Body(b"12345", StoreTimeout("too slow")), None, 5, False, "StoreTimeout"),
        (Body(b"12345", close_error=OSError("changed")), None, 5, False, ""),
    ],
)
def test_an_exchange_counts_the_bytes_of_its_body(
    body: Body, take: int | None, sent: int, complete: bool, error: str
) -> None:
    exchange = exchange_of(app_with(body), take=take)
    assert (exchange.sent, exchange.complete, exchange.error) == (sent, complete, error)
    assert (exchange.first_byte is None) == (take == 0)
    assert body.closed == 1


@pytest.mark.parametrize(
    ("read", "close_error", "complete", "error"),
    [(10, None, True, ""), (4, None, False, ""), (10, CacheFailure("changed"), False, "CacheFailure")],
)
def test_a_file_keeps_the_wrapper_of_the_server_and_may_end_in_another_thread(
    read: int, close_error: Exception | None, complete: bool, error: str
) -> None:
    """With another wrapper, the server would not send the file itself."""
    window = Window(b"0123456789", close_error)
    observed: list[tuple[Exchange, Exchange | None]] = []
    environ: WSGIEnvironment = {"wsgi.file_wrapper": FileWrapper}
    setup_testing_defaults(environ)
    observer = lambda exchange: observed.append((exchange, current_exchange()))  # noqa: E731
    body = Observed(app_with(FileWrapper(window)), [observer])(environ, lambda *_: lambda _: None)
    assert isinstance(body, FileWrapper)
    assert current_exchange() is None, "this thread may answer another request now"
    window.seek(read)

    def end() -> None:
        with suppress(CacheFailure):
            body.close()

    thread = threading.Thread(target=end)
    thread.start()
    thread.join()
    ((exchange, current),) = observed
    assert (exchange.sent, exchange.complete, exchange.error) == (read, complete, error)
    assert current is exchange, "log lines at the end have the request id"


def test_an_exchange_ends_if_the_application_raises() -> None:
    observed: list[Exchange] = []
    environ: WSGIEnvironment = {}
    setup_testing_defaults(environ)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        raise KeyError

    with pytest.raises(KeyError):
        Observed(app, [observed.append])(environ, lambda *_: lambda _: None)
    assert [(each.status, each.complete) for each in observed] == [(500, False)]


@pytest.mark.parametrize(
    ("status", "kind"), [(200, "file"), (206, "file"), (304, "file"), (302, "redirect"), (404, "error"), (503, "error")]
)
def test_the_kind_depends_on_status_and_response(status: int, kind: str) -> None:
    assert Exchange("1", "GET", "/", "-", status=status, response_kind="file").kind == kind


@pytest.mark.parametrize("client_id", ["abc", "a" * 128, "1-67891233-abcdef:x/y=@~+"])
def test_a_valid_id_of_the_client_is_used(client_id: str) -> None:
    assert exchange_of(app_with([]), HTTP_X_REQUEST_ID=client_id).request_id == client_id


@given(st.text(st.characters(codec="latin-1")).filter(lambda text: not text.isalnum() or not text.isascii()))
def test_an_invalid_id_of_the_client_is_replaced(client_id: str) -> None:
    request_id = exchange_of(app_with(Body()), HTTP_X_REQUEST_ID=f" {client_id}").request_id
    assert len(request_id) == 32
    assert request_id.isalnum()


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


def test_an_exchange_is_logged_as_text_or_json() -> None:
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
def test_a_path_can_not_forge_a_line_or_a_field(path: str) -> None:
    record = logged(Exchange("id-1", "GET", path, "-", status=200, complete=True))
    line = TextFormatter().format(record)
    assert line.isprintable()
    assert line.count('"') == 2
    assert len(line.split()) == 11
    assert json.loads(JsonFormatter().format(record))["path"] == path


def test_a_record_logged_during_a_request_has_the_request_id() -> None:
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
