"""The redirect response, and the prefix (SCRIPT_NAME) that links to this server begin with."""

from urllib.parse import quote_from_bytes

from werkzeug.wrappers import Request

from api.http.text import quote_path
from api.responses.base import Response, cache_forever, safe_headers

# All that RFC 3986 allows in a query. A query that came in is passed on; what is not allowed in one is encoded.
_QUERY_CHARACTERS = "%!$&'()*+,;=:@/?-._~"


def script_root(request: Request) -> str:
    """SCRIPT_NAME, percent-encoded, without a slash at its end: what our own links begin with."""
    return quote_from_bytes(request.environ.get("SCRIPT_NAME", "").encode("latin-1"), safe="/").rstrip("/")


def redirect_response(
    request: Request, path: str, *, origin: str = "", immutable: bool = True, keep_query: bool = True
) -> Response:
    """302 to ``path`` (decoded, absolute, without SCRIPT_NAME), with the query string of the request.

    ``origin`` (``//host``) leads to another host of ours, which the same server is in front of: SCRIPT_NAME is the same.
    ``immutable``: the store path decides it, so it may be cached for ever.
    """
    # One slash, not two: "//host" would be another host (RFC 3986 4.2).
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
