"""The URLs that are not in a store path: landing page, health, robots.txt, our own style sheet and icon."""

import logging
from collections.abc import Sequence
from contextlib import suppress

from flask import request

from api.responses.base import Response, text_response
from api.responses.pages import landing_response
from api.responses.redirects import redirect_response
from api.responses.templates import static_response
from api.responses.text import quote_path
from narcore.binarycache import BinaryCache
from narcore.errors import NarcoreError, StorePathError
from narcore.formats.storepath import is_hash_part

log = logging.getLogger("api")


class Pages:
    """Views of one binary cache."""

    def __init__(self, cache: BinaryCache, examples: Sequence[tuple[str, str]]) -> None:
        self._cache = cache
        self._examples = examples

    def landing(self) -> Response:
        typed = request.args.get("path")
        if typed is not None:
            return redirect_response(request, self._typed_path(typed), immutable=False, keep_query=False)
        return landing_response(
            request,
            caches=[(substituter.url, substituter.store_dir or "") for substituter in self._cache.in_order()],
            store_dir=self._cache.store_dirs(ask=False)[0],
            examples=self._examples,
        )

    def _typed_path(self, typed: str) -> str:
        """What somebody typed or pasted, as a path: a whole one, or one that begins with the hash."""
        typed = typed.strip()
        if typed.startswith("/"):
            return typed
        if is_hash_part(typed[:32]):
            return f"{self._store_dir_of(typed[:32])}/{typed}"
        raise StorePathError(f"{typed[:300]!r} is not a store path")

    def _store_dir_of(self, hash_part: str) -> str:
        first, *others = self._cache.store_dirs(ask=False)
        if others:
            with suppress(NarcoreError):  # what is wrong is said at the URL that this leads to
                return self._cache.path_info_anywhere(hash_part).narinfo.store_path.store_dir
        return first

    def health(self) -> Response:
        """Whether the process lives; touches nothing."""
        return _health("OK\n")

    def ready(self) -> Response:
        """Whether a cache answers."""
        try:
            self._cache.check_ready()
        except NarcoreError as error:
            log.warning("no cache answers: %s", error)
            response = _health("no cache answers\n")
            response.status_code = 503
            return response
        return _health("OK\n")

    def robots(self) -> Response:
        """A crawler would unpack the whole cache."""
        rules = [f"Disallow: {quote_path(store_dir)}/" for store_dir in self._cache.store_dirs()]
        return text_response(
            "\n".join(["User-agent: *", *rules, "Disallow: /unpack/", ""]), cache_control="public, max-age=3600"
        )

    def static(self, name: str) -> Response:
        return static_response(request, name)


def _health(text: str) -> Response:
    response = text_response(text)
    response.kind = "health"  # those who ask for it ask often: not to be counted among the pages
    return response
