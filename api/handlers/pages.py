"""The URLs that are not in a store path: landing page, health, robots.txt, our own style sheet and icon."""

from collections.abc import Sequence

from flask import request

from api.responses.base import Response, text_response
from api.responses.pages import landing_response
from api.responses.redirects import redirect_response
from api.responses.templates import static_response
from narcore.binarycache import BinaryCache
from narcore.errors import NarcoreError, StorePathError
from narcore.formats.storepath import is_hash_part


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
            caches=[substituter.url for substituter in self._cache.substituters],
            store_dir=self._cache.store_dirs(ask=False)[0],
            examples=self._examples,
        )

    def _typed_path(self, typed: str) -> str:
        """What somebody typed or pasted, as a path: a whole one, or one that begins with the hash."""
        typed = typed.strip()
        if typed.startswith("/"):
            return typed
        if is_hash_part(typed[:32]):
            return f"{self._cache.store_dirs(ask=False)[0]}/{typed}"
        raise StorePathError(f"{typed[:300]!r} is not a store path")

    def health(self) -> Response:
        """Whether the process lives; touches nothing."""
        return text_response("OK\n")

    def ready(self) -> Response:
        """Whether a cache answers."""
        try:
            self._cache.check_ready()
        except NarcoreError:
            response = text_response("no cache answers\n")
            response.status_code = 503
            return response
        return text_response("OK\n")

    def robots(self) -> Response:
        """A crawler would unpack the whole cache."""
        rules = [f"Disallow: {store_dir}/" for store_dir in self._cache.store_dirs()]
        return text_response(
            "\n".join(["User-agent: *", *rules, "Disallow: /unpack/", ""]), cache_control="public, max-age=3600"
        )

    def static(self, name: str) -> Response:
        return static_response(request, name)
