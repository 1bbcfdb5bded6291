"""A WSGI app that does nothing, to measure the overhead of a server."""

from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment


def of_size(size: int) -> WSGIApplication:
    """Return an app whose responses have ``size`` bytes."""
    body = b"x" * size

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(size))])
        return [body]

    return app
