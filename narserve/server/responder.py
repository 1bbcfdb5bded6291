"""Calls the WSGI application, and writes its response with gunicorn's Response."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, cast

from gunicorn.config import Config
from gunicorn.http.message import Request
from gunicorn.http.wsgi import Response, create

from narcore.concurrency.closing import close
from narserve.server.requesthead import Address


class ClientGone(Exception):
    """The rest of a response can't be sent."""


class Output(Protocol):
    """The destination to which a response is written."""

    def sendall(self, data: bytes) -> None:
        """Write all bytes. Raises ClientGone."""


class BufferedOutput:
    """Holds a whole response in memory. Used only for small responses of the server itself, such as /healthz and errors."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    @property
    def data(self) -> bytes:
        return b"".join(self._parts)

    def sendall(self, data: bytes) -> None:
        self._parts.append(data)


class _HeadFirst:
    """The output in the form of a socket, for gunicorn. Holds the head back, to send it in one packet with the first bytes.

    gunicorn calls ``send`` only for the interim response "100 Continue". ``send`` discards it, because the application never reads
    the body of a request. ``gettimeout`` returns 0.0, so that gunicorn does not change the mode of the socket.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self._head: bytes | None = None

    def sendall(self, data: bytes) -> None:
        if self._head is None:
            self._head = data
        else:
            self._output.sendall(self.take_head() + data)

    def take_head(self) -> bytes:
        """Return the head if it was not sent yet, otherwise no bytes. The caller sends it."""
        head, self._head = self._head or b"", b""
        return head

    def flush(self) -> None:
        if self._head:
            self._output.sendall(self.take_head())

    def send(self, data: bytes) -> int:
        return len(data)

    def gettimeout(self) -> float:
        return 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """The remaining work after the application was called.

    ``keep``: the connection can be used for the next request. ``cut``: the response is incomplete, and only a reset of the
    connection tells the client so. ``head`` and ``file``: still to be sent; ``file`` is the body of the application, made by
    ``wsgi.file_wrapper``.
    """

    keep: bool
    cut: bool = False
    head: bytes = b""
    file: Any = None


class Responder:
    """Answers requests with a WSGI application. Thread-safe.

    ``server`` is the address that the server listens on. ``handle_error`` and ``log_exception`` are those of gunicorn's Worker.
    """

    def __init__(
        self,
        application: Callable[..., Any],
        config: Config,
        server: Address,
        handle_error: Callable[[Request | None, Any, Address, BaseException], None],
        log_exception: Callable[[str], None],
    ) -> None:
        self._application = application
        self._config = config
        self._server = server
        self._handle_error = handle_error
        self._log_exception = log_exception

    def refusal(self, error: BaseException, client: Address, request: Request | None = None) -> bytes:
        """Log the error, and return the response to an invalid request, or to one that the application failed to answer."""
        output = BufferedOutput()
        first = _HeadFirst(output)
        self._handle_error(request, first, client, error)
        first.flush()
        return output.data

    def answer(self, request: Request, client: Address, output: Output, *, must_close: bool) -> Answer:
        """Call the application, and write its response to ``output``, except for a body that is a file. Raises ClientGone.

        An exception of the application becomes a response with the status 500, or, if the head was sent, a response that ends
        early.
        """
        first = _HeadFirst(output)
        response: Response | None = None
        try:
            response, environ = create(request, cast("Any", first), client, self._server, self._config)
            environ["wsgi.multithread"] = True
            if must_close:
                response.force_close()
            body = self._application(environ, response.start_response)
            if isinstance(body, environ["wsgi.file_wrapper"]):
                return _file_answer(response, first, body)
            _write(response, body)
            first.flush()
        except ClientGone:
            raise
        except Exception as error:  # noqa: BLE001  logged, and the client is told
            if response is None or not response.headers_sent:
                output.sendall(self.refusal(error, client, request))
                return Answer(keep=False)
            self._log_exception("Error handling request")
            return Answer(keep=False, cut=response.response_length is None and not response.chunked)
        return Answer(keep=not response.should_close())


def _file_answer(response: Response, first: _HeadFirst, body: Any) -> Answer:
    try:
        response.send_headers()
    except BaseException:
        close(body)
        raise
    return Answer(keep=not response.should_close(), head=first.take_head(), file=body)


def _write(response: Response, body: Iterable[bytes]) -> None:
    try:
        for chunk in body:
            response.write(chunk)
        response.close()
    finally:
        close(body)
