"""One request and its answer (``Exchange``), and the WSGI middleware that measures it for the access log and the metrics.

The middleware ends an ``Exchange`` when the server closes the body: only then is it known whether the client got all of it.
``current_exchange`` returns the one that is being answered, so that a log line can carry its id and a trace event its cause.
"""

import logging
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote_from_bytes

from narcore.concurrency.closing import close

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

log = logging.getLogger("api")

HEADER = "X-Request-Id"

# What is taken from a client: nothing that could forge a line of a log, or fill it.
_SANE_ID = re.compile(r"[A-Za-z0-9._~+/=:@-]{1,128}")

_REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(slots=True)
class Exchange:
    """One request and its answer. Times are in seconds; ``first_byte`` is None as long as there is none."""

    request_id: str
    method: str
    path: str  # percent-encoded, with the query, as it was asked for
    client: str  # an address
    started: float = field(default_factory=time.perf_counter)
    status: int = 0
    response_kind: str = "page"
    sent: int = 0  # bytes of the body that the server took, or the kernel did
    first_byte: float | None = None
    complete: bool = False
    error: str = ""  # the name of what a body that was cut has raised
    seconds: float = 0.0
    sources: dict[str, None] = field(default_factory=dict)  # an ordered set: where bytes of NARs came from

    @classmethod
    def of(cls, environ: "WSGIEnvironment") -> Self:
        given = environ.get("HTTP_X_REQUEST_ID", "")
        return cls(
            given if _SANE_ID.fullmatch(given) else secrets.token_hex(16),
            environ["REQUEST_METHOD"],
            environ.get("RAW_URI") or environ.get("REQUEST_URI") or _quoted_path(environ),
            environ.get("REMOTE_ADDR", "").removeprefix("::ffff:") or "-",  # an IPv4 address, on a socket of both
        )

    @property
    def kind(self) -> str:
        """``redirect`` or ``error`` by the status, else what the response was of: file, directory, archive, page."""
        if self.status in _REDIRECTS:
            return "redirect"
        return "error" if self.status >= 400 else self.response_kind

    def begin_body(self) -> None:
        if self.first_byte is None:
            self.first_byte = time.perf_counter() - self.started


Observer = Callable[[Exchange], None]

_current: ContextVar[Exchange | None] = ContextVar("exchange", default=None)


def current_exchange() -> Exchange | None:
    """The exchange of the request that this thread is answering, or None outside of a request."""
    return _current.get()


def record_source(event: str, fields: dict[str, object]) -> None:
    """Adds the source of a NAR's bytes to the current exchange: a listener for ``narcore.trace``."""
    exchange = _current.get()
    if exchange is not None and event == "nar":
        exchange.sources[str(fields["source"])] = None


class Observed:
    """The middleware. ``observers`` are told of each request when it has ended; ``on_start`` when it begins."""

    def __init__(
        self, application: "WSGIApplication", observers: Sequence[Observer], *, on_start: Sequence[Observer] = ()
    ) -> None:
        self._application = application
        self._observers = observers
        self._on_start = on_start

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        exchange = Exchange.of(environ)
        _current.set(exchange)
        for observer in self._on_start:
            observer(exchange)

        def remember(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
            exchange.status = int(status[:3])
            return start_response(status, [*headers, (HEADER, exchange.request_id)], *exc_info)

        try:
            body = self._application(environ, remember)
        except BaseException:
            exchange.status = exchange.status or 500
            self._end(exchange)
            raise
        wrapper = environ.get("wsgi.file_wrapper")
        if isinstance(wrapper, type) and isinstance(body, wrapper):
            return self._watch_file(body, exchange)
        return _Body(body, exchange, self._end)

    def _watch_file(self, body: Any, exchange: Exchange) -> Iterable[bytes]:
        """A file stays what it is, or the server would not send it by sendfile: it is asked at its end how far it got."""
        exchange.begin_body()
        window = body.filelike  # PEP 3333's name, which gunicorn has too
        close_file = body.close

        def end() -> None:
            exchange.sent = window.sent
            try:
                close_file()
                exchange.complete = exchange.sent == window.length
            finally:
                self._end(exchange)

        body.close = end
        watched: Iterable[bytes] = body
        return watched

    def _end(self, exchange: Exchange) -> None:
        exchange.seconds = time.perf_counter() - exchange.started
        try:
            for observer in self._observers:
                observer(exchange)
        finally:
            _current.set(None)


class _Body:
    def __init__(self, body: Iterable[bytes], exchange: Exchange, end: Observer) -> None:
        self._body = body
        self._exchange = exchange
        self._end: Observer | None = end

    def __iter__(self) -> Iterator[bytes]:
        exchange = self._exchange
        try:
            for chunk in self._body:
                exchange.begin_body()
                yield chunk
                exchange.sent += len(chunk)  # now: the server has come back for more
        except Exception as error:
            exchange.error = type(error).__name__
            log.warning("%s %r was cut: %s: %s", exchange.method, exchange.path, exchange.error, error)
            raise
        exchange.begin_body()
        exchange.complete = True

    def close(self) -> None:
        try:
            close(self._body)
        except BaseException:
            self._exchange.complete = False
            raise
        finally:
            end, self._end = self._end, None
            if end is not None:
                end(self._exchange)


def _quoted_path(environ: "WSGIEnvironment") -> str:
    path = (environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")).encode("latin-1")
    query = environ.get("QUERY_STRING", "")
    return quote_from_bytes(path) + (f"?{query}" if query else "")
