"""The redirect response, and SCRIPT_NAME, the prefix of all links to this server."""

from urllib.parse import quote_from_bytes

from werkzeug.wrappers import Request

from api.http.text import quote_path
from api.responses.base import Response, cache_forever, safe_headers

# The characters that RFC 3986 allows in a query. A redirect keeps the query of the request and encodes all other characters.
_QUERY_CHARACTERS = "%!$&'()*+,;=:@/?-._~"


def script_root(request: Request) -> str:
    """Return SCRIPT_NAME, percent-encoded and without a final slash: the prefix of links to this server."""
    return quote_from_bytes(request.environ.get("SCRIPT_NAME", "").encode("latin-1"), safe="/").rstrip("/")


def redirect_response(
    request: Request, path: str, *, origin: str = "", immutable: bool = True, keep_query: bool = True
) -> Response:
    """Make a 302 to ``path`` (decoded, absolute, without SCRIPT_NAME), with the query string of the request if ``keep_query``.

    ``origin`` (``//host``) redirects to another host name of this server; SCRIPT_NAME is the same there. ``immutable``: the
    target depends only on the store path, so the redirect may be cached forever (see `cache_forever`).
    """
    # The target must begin with exactly one slash: "//host" would lead to another host (RFC 3986 4.2).
    location = f"{origin}{script_root(request)}/{quote_path(path.lstrip('/'))}"
    if keep_query and request.query_string:
        location += "?" + quote_from_bytes(request.query_string, safe=_QUERY_CHARACTERS)
    headers = safe_headers()
    headers["Location"] = location
    headers["Content-Type"] = "text/plain; charset=utf-8"
    if immutable:
        cache_forever(headers)
    else:
        headers["Cache-Control"] = "no-cache"
    return Response(f"See {location}\n", status=302, headers=headers)
