"""One request and its response (``Exchange``), and the WSGI middleware that measures it for the access log and the metrics.

An ``Exchange`` ends when the server closes the body, because it is not known earlier whether the client got the whole body.
``current_exchange`` returns the exchange of the current thread. A log line takes its request id from there, and a trace event is
attributed to that exchange.
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

# A request id from a client is used only if it matches this pattern, so that it can't forge a log line or fill the log.
_VALID_ID = re.compile(r"[A-Za-z0-9._~+/=:@-]{1,128}")

_REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(slots=True)
class Exchange:
    """One request and its response. Times are in seconds; ``first_byte`` is None until the body begins."""

    request_id: str
    method: str
    path: str  # as in the request: percent-encoded, with the query
    client: str  # an IP address
    started: float = field(default_factory=time.perf_counter)
    status: int = 0
    response_kind: str = "page"
    sent: int = 0  # bytes of the body that the server, or the kernel with sendfile, has taken
    first_byte: float | None = None
    complete: bool = False
    error: str = ""  # the class name of the exception that cut the body short
    seconds: float = 0.0
    sources: dict[str, None] = field(default_factory=dict)  # an ordered set: the sources of the bytes of NARs

    @classmethod
    def of(cls, environ: "WSGIEnvironment") -> Self:
        """Begin an exchange. The client's X-Request-Id is used if it is valid; otherwise the id is random."""
        client_id = environ.get("HTTP_X_REQUEST_ID", "")
        return cls(
            client_id if _VALID_ID.fullmatch(client_id) else secrets.token_hex(16),
            environ["REQUEST_METHOD"],
            environ.get("RAW_URI") or environ.get("REQUEST_URI") or _quoted_path(environ),
            environ.get("REMOTE_ADDR", "").removeprefix("::ffff:") or "-",  # an IPv4 client of a dual-stack socket
        )

    @property
    def kind(self) -> str:
        """``redirect`` or ``error``, according to the status; otherwise ``response_kind``, such as file or page."""
        if self.status in _REDIRECTS:
            return "redirect"
        return "error" if self.status >= 400 else self.response_kind

    def begin_body(self) -> None:
        if self.first_byte is None:
            self.first_byte = time.perf_counter() - self.started


Observer = Callable[[Exchange], None]

_current: ContextVar[Exchange | None] = ContextVar("exchange", default=None)


def current_exchange() -> Exchange | None:
    """Return the exchange of the request that this thread is answering, or None outside of a request."""
    return _current.get()


def record_source(event: str, fields: dict[str, object]) -> None:
    """Add the source of a NAR's bytes to the current exchange. This is a listener for ``narcore.trace``."""
    exchange = _current.get()
    if exchange is not None and event == "nar":
        exchange.sources[str(fields["source"])] = None


class Observed:
    """The middleware. It calls ``on_start`` when a request begins, and ``observers`` when the request ends."""

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

        def record_status(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
            exchange.status = int(status[:3])
            return start_response(status, [*headers, (HEADER, exchange.request_id)], *exc_info)

        try:
            body = self._application(environ, record_status)
        except BaseException:
            exchange.status = exchange.status or 500
            self._end(exchange)
            raise
        wrapper = environ.get("wsgi.file_wrapper")
        if isinstance(wrapper, type) and isinstance(body, wrapper):
            return self._watch_file(body, exchange)
        return _Body(body, exchange, self._end)

    def _watch_file(self, body: Any, exchange: Exchange) -> Iterable[bytes]:
        """Observe a file without wrapping it, so that the server can send it. Its bytes are counted when the file is closed.

        This thread does nothing more for the response: the server may close the file in another thread, much later.
        """
        exchange.begin_body()
        window = body.filelike  # PEP 3333's example has this attribute, and gunicorn's wrapper has it too
        close_file = body.close

        def end() -> None:
            _current.set(exchange)
            exchange.sent = window.sent
            try:
                close_file()
                exchange.complete = exchange.sent == window.length
            except Exception as error:
                _record_cut(exchange, error)
                raise
            finally:
                self._end(exchange)

        body.close = end
        _current.set(None)
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
                # Counted after the yield, because the server asks for the next chunk when it has taken this one.
                exchange.sent += len(chunk)
        except Exception as error:
            _record_cut(exchange, error)
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


def _record_cut(exchange: Exchange, error: Exception) -> None:
    exchange.error = type(error).__name__
    log.warning("%s %r: response cut short: %s: %s", exchange.method, exchange.path, exchange.error, error)


def _quoted_path(environ: "WSGIEnvironment") -> str:
    path = (environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")).encode("latin-1")
    query = environ.get("QUERY_STRING", "")
    return quote_from_bytes(path) + (f"?{query}" if query else "")
