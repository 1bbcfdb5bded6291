"""Code that all responses share: the Response class, the headers for security and caching, the 304 response."""

import time
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING

import flask
from werkzeug.datastructures import Headers
from werkzeug.exceptions import PreconditionFailed
from werkzeug.http import http_date
from werkzeug.wrappers import Request

from api.http.basis import FOREVER, YEAR
from api.http.conditional import Outcome, Validators, evaluate

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

# The policy of pages of this server: no scripts, and only its own style sheet and images. Pages with a script use PAGE_CSP.
OWN_CSP = (
    "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

# All store paths share one origin, so a document in a store path must not act with the rights of that origin. A sandbox without
# allow-same-origin gives each document an opaque origin; documentation with scripts, forms and links still works.
CONTENT_CSP = (
    "sandbox allow-scripts allow-forms allow-popups allow-popups-to-escape-sandbox allow-modals allow-downloads "
    "allow-pointer-lock allow-presentation"
)

# Headers that a script on another origin can read only if this server exposes them, since the Fetch standard does not list them as
# safe. Scripts need them to read ranges, and to know the file size and what was verified.
EXPOSED_HEADERS = (
    "Accept-Ranges", "Content-Disposition", "Content-Length", "Content-Range", "ETag", "NAR-Executable", "NAR-File-Size",
    "NAR-Verified",
)  # fmt: skip
ALLOWED_METHODS = "GET, HEAD, OPTIONS"

_SAFE = (
    ("X-Content-Type-Options", "nosniff"),
    ("Access-Control-Allow-Origin", "*"),
    ("Access-Control-Expose-Headers", ", ".join(EXPOSED_HEADERS)),
)


class Response(flask.Response):
    """A response without a default Content-Type: Flask's default, text/html, would be wrong for most files.

    ``kind`` is the kind of the response for metrics: file, directory, archive, page, health or metrics.
    """

    default_mimetype = None
    kind = "page"

    def get_wsgi_headers(self, environ: "WSGIEnvironment") -> Headers:
        """Return the headers unchanged if Werkzeug has nothing to fix in them.

        Werkzeug's method always copies the headers, which takes a tenth of the time of a small response.
        """
        if self.status_code in (200, 206) and "Content-Length" in self.headers:
            return self.headers
        return super().get_wsgi_headers(environ)


def safe_headers(csp: str | None = OWN_CSP) -> Headers:
    """Return the headers of every response. Errors and redirects need CORS headers too, for fetch() to use them."""
    headers = Headers(_SAFE)
    if csp is not None:
        headers["Content-Security-Policy"] = csp
    return headers


def cache_forever(headers: Headers) -> None:
    """Mark a response as immutable: its content depends only on a store path, and a store path never changes.

    `Basis.apply` shortens the lifetime if the response rests on unverified data.
    """
    headers["Cache-Control"] = FOREVER
    headers["Expires"] = _date(int(time.time()) + YEAR)


def set_validators(headers: Headers, validators: Validators) -> None:
    headers["ETag"] = validators.etag
    if validators.last_modified is not None:
        headers["Last-Modified"] = _date(validators.last_modified)


@lru_cache(maxsize=16)
def _date(moment: datetime | int) -> str:
    """Format a date. The result is cached: all files have the same date, and Expires changes once per second."""
    return http_date(moment)


def not_modified(request: Request, validators: Validators, headers: Headers) -> Response | None:
    """Return the 304 if the client has the current version, else None. Raises PreconditionFailed (412).

    ``headers`` are the headers of the 200 response.
    """
    outcome = evaluate(request.headers, validators)
    if outcome is Outcome.PRECONDITION_FAILED:
        raise PreconditionFailed
    return Response(status=304, headers=headers) if outcome is Outcome.NOT_MODIFIED else None


def text_response(text: str, *, cache_control: str = "no-store") -> Response:
    """Make a plain text response, such as for /healthz and /robots.txt."""
    headers = safe_headers()
    headers["Cache-Control"] = cache_control
    headers["Content-Type"] = "text/plain; charset=utf-8"
    return Response(text, headers=headers)


def options_response() -> Response:
    """Make the response to OPTIONS, including the preflight request of a browser for a conditional cross-origin request."""
    headers = safe_headers()
    headers["Allow"] = ALLOWED_METHODS
    headers["Access-Control-Allow-Methods"] = ALLOWED_METHODS
    headers["Access-Control-Allow-Headers"] = "*"
    headers["Access-Control-Max-Age"] = "86400"
    return Response(status=204, headers=headers)
