"""Buffered responses: takes an event, returns one JSON text with the body in base64. Uses Mangum, and a2wsgi to call WSGI."""

from collections.abc import Iterable
from typing import Any, cast
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from a2wsgi import WSGIMiddleware
from mangum import Mangum

from narserve.awslambda.restapi import path_variables

# Largest body in bytes. Lambda limits the JSON text to 6,291,556 bytes. In base64, 4 MiB become 5,592,408 bytes, and the rest is
# for headers. A body of 4.5 MiB would leave only 100 bytes for headers. If the JSON text is too long, Lambda ends the process, and
# the client gets a 502 without an explanation.
CARRIES = 4 << 20


class FromRestApi:
    """Middleware that sets the path in ``environ`` from the event, as the client sent it.

    Mangum decodes the path to text, which loses bytes that are not UTF-8, and does not support stages.
    """

    def __init__(self, application: WSGIApplication) -> None:
        self._application = application

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ |= path_variables(environ["asgi.scope"]["aws.event"])
        return self._application(environ, start_response)


def make_handler(application: WSGIApplication) -> Mangum:
    # One worker, since a Lambda instance handles one request at a time. No media type counts as text: JSON turns one byte of text
    # into up to six, while base64 always turns three bytes into four.
    bridge = WSGIMiddleware(cast(Any, FromRestApi(application)), workers=1)
    return Mangum(cast(Any, bridge), lifespan="off", text_mime_types=["application/x-never"])
