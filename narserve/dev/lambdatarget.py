"""``start-dev --target lambda``: each request passes through an event, the handler and an envelope, as on Lambda."""

import asyncio
import json
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

from narserve.dev.apigateway import EnvelopeError, HttpAnswer, HttpRequest, answer_of, event_of

Handler = Callable[[dict[str, Any], Any], dict[str, Any]]


class LambdaTarget:
    """A WSGI application that emulates API Gateway with the Lambda function behind it.

    ``load`` makes the handler. ``load`` and the handler are called in a single thread of their own, since an instance of a Lambda
    function handles one request at a time.
    """

    def __init__(self, load: Callable[[], Handler]) -> None:
        self._loop = asyncio.new_event_loop()
        self._instance = ThreadPoolExecutor(1, initializer=asyncio.set_event_loop, initargs=(self._loop,))
        self._handler = self._instance.submit(load).result()

    def close(self) -> None:
        self._instance.shutdown()
        self._loop.close()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        request = request_of(environ)
        answer = self._answer(request) if request.is_acceptable else own_answer(400, "Bad Request")
        start_response(f"{answer.status} {_phrase(answer.status)}", answer.headers)
        return [] if request.method == "HEAD" else [answer.body]

    def _answer(self, request: HttpRequest) -> HttpAnswer:
        try:
            envelope = self._instance.submit(self._invoke, event_of(request)).result()
            return answer_of(request, envelope)
        except EnvelopeError as error:
            sys.stderr.write(f"start-dev: {request.method} {request.target} would get status 502 on Lambda: {error}\n")
            return own_answer(502, "Internal server error", str(error))

    def _invoke(self, event: dict[str, Any]) -> bytes:
        # The answer is encoded as in Lambda's runtime client for Python 3.12 and newer. Only Lambda needs the context argument.
        return json.dumps(self._handler(event, None), ensure_ascii=False).encode()


def request_of(environ: WSGIEnvironment) -> HttpRequest:
    """Return the request with its undecoded target, which Werkzeug's server passes as REQUEST_URI."""
    names = {"CONTENT_TYPE": "Content-Type", "CONTENT_LENGTH": "Content-Length"}
    headers = [
        (names.get(name) or name.removeprefix("HTTP_").replace("_", "-").title(), value)
        for name, value in environ.items()
        if name.startswith("HTTP_") or (name in names and value)
    ]
    headers.append(("X-Forwarded-Proto", environ["wsgi.url_scheme"]))
    length = environ.get("CONTENT_LENGTH") or "0"
    body = environ["wsgi.input"].read(int(length)) if length.isdigit() else b""
    return HttpRequest(environ["REQUEST_METHOD"], environ["REQUEST_URI"], headers, body, environ["REMOTE_ADDR"])


def own_answer(status: int, message: str, detail: str = "") -> HttpAnswer:
    """Return an error response of the gateway itself. The real gateway sends no ``detail``; it helps in development."""
    body = json.dumps({"message": message} | ({"detail": detail} if detail else {})).encode()
    return HttpAnswer(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))], body)


def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase if status in list(HTTPStatus) else "Unknown"
