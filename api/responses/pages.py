"""The landing page."""

from collections.abc import Sequence
from hashlib import sha256

from werkzeug.wrappers import Request

from api.responses.base import Response, not_modified, safe_headers, set_validators
from api.responses.conditional import Validators
from api.responses.templates import render


def landing_response(
    request: Request, *, caches: Sequence[tuple[str, str]], store_dir: str, examples: Sequence[tuple[str, str]] = ()
) -> Response:
    """What this is and how to use it. Its form asks for ``/?path=<what was typed>``.

    ``caches``: URLs to show, without passwords, each with its store dir, "" where that is not known (yet). ``examples``: labels,
    and URL paths (encoded, without SCRIPT_NAME).
    """
    page = render(request, "landing.html", caches=caches, store_dir=store_dir, examples=examples)
    body = b"".join(page)
    validators = Validators(f'"{sha256(body).hexdigest()[:32]}"')
    headers = safe_headers()
    headers["Content-Type"] = "text/html; charset=utf-8"
    headers["Cache-Control"] = "no-cache"
    set_validators(headers, validators)
    return not_modified(request, validators, headers) or Response(body, headers=headers)
