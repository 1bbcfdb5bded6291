"""A WSGI app that does nothing, to see what a server takes for itself."""

from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment


def of_size(size: int) -> WSGIApplication:
    """Answers with ``size`` bytes."""
    body = b"x" * size

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(size))])
        return [body]

    return app
