"""Answers whole: an event in, one JSON text with the body in base64 out. Mangum does that, on a2wsgi's bridge to WSGI."""

from collections.abc import Iterable
from typing import Any, cast
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from a2wsgi import WSGIMiddleware
from mangum import Mangum

from narserve.awslambda.restapi import path_variables

# The JSON may have 6,291,556 bytes. This in base64 has 5,592,408, and what is left is for headers; the next round number,
# 4.5 MiB, does not fit. A longer JSON ends the process, and the client gets a 502 that says nothing.
CARRIES = 4 << 20


class FromRestApi:
    """Puts the path into ``environ`` as the client sent it.

    Mangum decodes it to text, where bytes that are no UTF-8 are lost, and knows nothing of stages.
    """

    def __init__(self, application: WSGIApplication) -> None:
        self._application = application

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ |= path_variables(environ["asgi.scope"]["aws.event"])
        return self._application(environ, start_response)


def make_handler(application: WSGIApplication) -> Mangum:
    # One worker: an instance has one request at a time. No type counts as text, since JSON makes up to six bytes out of one
    # of a text, while base64 always makes four out of three.
    bridge = WSGIMiddleware(cast(Any, FromRestApi(application)), workers=1)
    return Mangum(cast(Any, bridge), lifespan="off", text_mime_types=["application/x-never"])
