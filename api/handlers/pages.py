"""The views of all URLs that are not in a store path: landing page, health checks, robots.txt and static files."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

from flask import request

from api.handlers.readiness import Readiness
from api.http.text import quote_path
from api.responses.base import Response, text_response
from api.responses.landing import Cache, State, landing_response
from api.responses.redirects import redirect_response
from api.responses.templates import static_response
from api.view.recent import RecentPaths
from api.view.typed import typed_path
from narcore.binarycache import BinaryCache
from narcore.errors import NarcoreError
from narcore.formats.storepath import DEFAULT_STORE_DIR, HASH_PART_LENGTH


class Pages:
    """Views of one binary cache."""

    def __init__(self, cache: BinaryCache, examples: Sequence[tuple[str, str]], recent: RecentPaths) -> None:
        self._cache = cache
        self._examples = examples
        self._recent = recent
        self._readiness = Readiness(cache.check_ready)

    def landing(self) -> Response:
        typed = request.args.get("path")
        if typed is not None:
            return redirect_response(request, self._typed_path(typed), immutable=False, keep_query=False)
        return landing_response(
            request,
            caches=[
                Cache(substituter.url, substituter.store_dir or "", _state(substituter))
                for substituter in self._cache.in_order()
            ],
            store_dir=self._cache.store_dirs(ask=False)[0],
            examples=self._examples,
            recent=self._recent.latest_first(),
        )

    def _typed_path(self, typed: str) -> str:
        """Return the URL path for the text that a user typed or pasted."""
        path = typed_path(typed, {*self._cache.store_dirs(ask=False), DEFAULT_STORE_DIR})
        return path if path.startswith("/") else f"{self._store_dir_of(path[:HASH_PART_LENGTH])}/{path}"

    def _store_dir_of(self, hash_part: str) -> str:
        first, *others = self._cache.store_dirs(ask=False)
        if others:
            with suppress(NarcoreError):  # the client is redirected, and its next request reports the error
                return self._cache.path_info_anywhere(hash_part).narinfo.store_path.store_dir
        return first

    def health(self) -> Response:
        """Liveness check: returns OK without contacting a store or reading the disk."""
        return _health("OK\n")

    def ready(self) -> Response:
        """Readiness check: returns 503 if no binary cache answered in the last check."""
        if self._readiness.is_ready():
            return _health("OK\n")
        response = _health("no cache answers\n")
        response.status_code = 503
        return response

    def robots(self) -> Response:
        """Keep crawlers away from all store dirs: a crawler would unpack the whole cache."""
        rules = [f"Disallow: {quote_path(store_dir)}/" for store_dir in self._cache.store_dirs()]
        return text_response(
            "\n".join(["User-agent: *", *rules, "Disallow: /unpack/", ""]), cache_control="public, max-age=3600"
        )

    def static(self, name: str) -> Response:
        return static_response(request, name)


class _StoreStatus(Protocol):
    """The known status of a store."""

    @property
    def store_dir(self) -> str | None: ...
    @property
    def is_paused(self) -> bool: ...


def _state(store: _StoreStatus) -> State:
    if store.is_paused:
        return State.UNAVAILABLE
    return State.UNKNOWN if store.store_dir is None else State.AVAILABLE


def _health(text: str) -> Response:
    response = text_response(text)
    response.kind = "health"  # health checks are frequent, so metrics count them separately from pages
    return response
