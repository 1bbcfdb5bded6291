"""The response for the landing page, and the values that it shows."""

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
    """What is known of a store: nobody waits for it."""

    UNKNOWN = "has not been heard of yet"
    ANSWERS = "answers"
    FAILS = "does not answer, and is left alone for now"


class Cache(NamedTuple):
    """A store to show: its URL without passwords, its store dir, "" where that is not known (yet)."""

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
    """What this is and how to use it. Its form asks for ``/?path=<what was typed>``.

    ``examples``: labels, and URL paths (encoded, without SCRIPT_NAME). ``recent``: store paths.
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
    """A derivation is a file, which a browser would not show as a page by itself."""
    return quote_path(store_path) + ("?view" if store_path.endswith(".drv") else "")
