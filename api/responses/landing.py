"""The response for the landing page, and the values that the page shows."""

from collections.abc import Sequence
from enum import Enum
from hashlib import sha256
from typing import NamedTuple

from werkzeug.wrappers import Request

from api.http.conditional import Validators
from api.http.text import quote_path
from api.responses.base import Response, not_modified, safe_headers, set_validators
from api.responses.templates import render


class State(Enum):
    """The known state of a store. The landing page does not contact a store to find out."""

    UNKNOWN = "not contacted yet"
    AVAILABLE = "available"
    UNAVAILABLE = "unavailable; this server will ask again later"


class Cache(NamedTuple):
    """A store on the landing page: its URL without passwords, and its store dir, or "" if the store dir is not known yet."""

    url: str
    store_dir: str = ""
    state: State = State.UNKNOWN


def landing_response(
    request: Request,
    *,
    caches: Sequence[Cache],
    store_dir: str,
    examples: Sequence[tuple[str, str]] = (),
    recent: Sequence[str] = (),
) -> Response:
    """Make the landing page. Its form requests ``/?path=<text>``.

    ``examples`` are pairs of a label and a URL path (percent-encoded, without SCRIPT_NAME). ``recent`` are store paths.
    """
    page = render(
        request,
        "landing.html",
        caches=caches,
        states=State,
        store_dir=store_dir,
        examples=examples,
        recent=[(path.rpartition("/")[2], _page_of(path)) for path in recent],
    )
    body = b"".join(page)
    validators = Validators(f'"{sha256(body).hexdigest()[:32]}"')
    headers = safe_headers()
    headers["Content-Type"] = "text/html; charset=utf-8"
    headers["Cache-Control"] = "no-cache"
    set_validators(headers, validators)
    return not_modified(request, validators, headers) or Response(body, headers=headers)


def _page_of(store_path: str) -> str:
    """Return the URL path of the page of a store path. A derivation is a file, so it needs ``?view`` to be shown as a page."""
    return quote_path(store_path) + ("?view" if store_path.endswith(".drv") else "")
