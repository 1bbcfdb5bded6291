"""What all answers share: the Response class, the headers for safety and caching, the 304 response."""

import time
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING

import flask
from werkzeug.datastructures import Headers
from werkzeug.exceptions import PreconditionFailed
from werkzeug.http import http_date
from werkzeug.wrappers import Request

from api.http.conditional import Outcome, Validators, evaluate

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

YEAR = 365 * 24 * 3600

# Our own pages run no script at all, ours or anybody's, and load nothing but our style sheet and icon.
OWN_CSP = (
    "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

# All store paths share one origin, so what comes out of one must not act in the name of that origin. A sandbox without
# allow-same-origin gives each document an opaque origin; documentation with scripts, forms and links goes on working.
CONTENT_CSP = (
    "sandbox allow-scripts allow-forms allow-popups allow-popups-to-escape-sandbox allow-modals allow-downloads "
    "allow-pointer-lock allow-presentation"
)

# Not on the safelist of Fetch, but a script needs them: to read in parts, to know the size and what it got.
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
_FOREVER = f"public, max-age={YEAR}, immutable"


class Response(flask.Response):
    """A response without a Content-Type unless one is set: Flask's text/html would be a wrong guess about a file.

    ``kind`` is what it is of, for metrics: file, directory, archive, page, health or metrics.
    """

    default_mimetype = None
    kind = "page"

    def get_wsgi_headers(self, environ: "WSGIEnvironment") -> Headers:
        """The headers as they are where nothing is to be put right: Werkzeug's copy takes a tenth of a small answer's time."""
        if self.status_code in (200, 206) and "Content-Length" in self.headers:
            return self.headers
        return super().get_wsgi_headers(environ)


def safe_headers(csp: str | None = OWN_CSP) -> Headers:
    """What every answer carries. CORS is on errors and redirects too: a fetch follows and reads those as well."""
    headers = Headers(_SAFE)
    if csp is not None:
        headers["Content-Security-Policy"] = csp
    return headers


def cache_forever(headers: Headers) -> None:
    """For answers that a store path decides: it never changes what it holds."""
    headers["Cache-Control"] = _FOREVER
    headers["Expires"] = _date(int(time.time()) + YEAR)


def set_validators(headers: Headers, validators: Validators) -> None:
    headers["ETag"] = validators.etag
    if validators.last_modified is not None:
        headers["Last-Modified"] = _date(validators.last_modified)


@lru_cache(maxsize=16)
def _date(moment: datetime | int) -> str:
    """Remembered: there is one for all files, and one a second for when they expire."""
    return http_date(moment)


def not_modified(request: Request, validators: Validators, headers: Headers) -> Response | None:
    """The 304 if the client has it already; ``headers`` are those of a 200. Raises PreconditionFailed (412)."""
    outcome = evaluate(request.headers, validators)
    if outcome is Outcome.PRECONDITION_FAILED:
        raise PreconditionFailed
    return Response(status=304, headers=headers) if outcome is Outcome.NOT_MODIFIED else None


def text_response(text: str, *, cache_control: str = "no-store") -> Response:
    """A few lines of plain text, such as /healthz and /robots.txt."""
    headers = safe_headers()
    headers["Cache-Control"] = cache_control
    headers["Content-Type"] = "text/plain; charset=utf-8"
    return Response(text, headers=headers)


def options_response() -> Response:
    """The answer to OPTIONS, also to a browser that asks before it sends a conditional request for another origin."""
    headers = safe_headers()
    headers["Allow"] = ALLOWED_METHODS
    headers["Access-Control-Allow-Methods"] = ALLOWED_METHODS
    headers["Access-Control-Allow-Headers"] = "*"
    headers["Access-Control-Max-Age"] = "86400"
    return Response(status=204, headers=headers)
