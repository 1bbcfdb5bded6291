"""The main route: answers every URL below a store dir, and measures the steps of each response."""

import time
from collections.abc import Generator
from contextlib import contextmanager

from flask import Request
from werkzeug.exceptions import MethodNotAllowed

from api.handlers.large import LargeResponses
from api.handlers.node import NodeRequest
from api.handlers.store_url import StorePathUrl, parse_store_url
from api.responses.base import Response, options_response
from api.responses.formats import NARINFO, requested_format
from api.responses.limits import Limit, ResponseTooLarge
from api.responses.redirects import redirect_response
from api.responses.values import json_response
from api.view.highlighter import Highlighter
from api.view.recent import RecentPaths
from narcore.binarycache import BinaryCache
from narcore.errors import CacheFailure, PathError
from narcore.lookup.pathinfo import PathInfo
from narcore.nars.accessor import Located

_NO_LIMIT = Limit()


class StoreHandler:
    """Answers requests for the store paths of one binary cache."""

    def __init__(
        self,
        cache: BinaryCache,
        *,
        highlighter: Highlighter,
        domain: str = "",
        limit: Limit = _NO_LIMIT,
        large: LargeResponses | None = None,
        recent: RecentPaths | None = None,
    ) -> None:
        self._cache = cache
        self._domain = domain
        self._limit = limit
        self._large = large
        self._recent = recent or RecentPaths()
        self._highlighter = highlighter

    def answer(self, request: Request) -> Response | None:
        """Return the response, or None for a URL that is not below a store dir. Raises NarcoreError and HTTPException."""
        url = parse_store_url(request, self._cache, self._domain)
        if url is None:
            return None
        if request.method == "OPTIONS":
            return options_response()
        if request.method not in ("GET", "HEAD"):
            raise MethodNotAllowed(["GET", "HEAD", "OPTIONS"])
        return self._store_path(request, url)

    def _store_path(self, request: Request, url: StorePathUrl) -> Response:
        timing = _Timing()
        with timing.of("narinfo"):
            info = self._path_info(url)
        base_name = info.narinfo.store_path.base_name
        if url.base not in (url.hash_part, base_name):
            return redirect_response(request, url.at(url.rest, base=base_name))
        requested = requested_format(request)
        node_request = NodeRequest(self._cache, request, url, info, self._limit, requested, self._highlighter)
        if requested == NARINFO:  # a narinfo describes the whole store path, so the rest of the URL doesn't matter
            response = self._limit.check(request, json_response(request, info.to_json()))
            node_request.basis(is_verified=False).apply(response.headers)
        else:
            response = self._node(node_request, timing)
        response.headers["Server-Timing"] = timing.header
        return response

    def _node(self, node_request: NodeRequest, timing: "_Timing") -> Response:
        try:
            with timing.of("listing"):
                located = node_request.locate()
            with timing.of("fetch"):
                response = self._within_limit(node_request, located)
        except PathError as error:
            return node_request.missing(error)
        self._recent.add(str(node_request.store_path))
        return response

    def _within_limit(self, node_request: NodeRequest, located: Located) -> Response:
        """Return the response, or a redirect to a copy if it is too large. Raises ResponseTooLarge if a copy is impossible."""
        try:
            return self._limit.check(node_request.request, node_request.response(located))
        except ResponseTooLarge as error:
            # A response without an ETag is a page that is incomplete because its README could not be read.
            if self._large is None or "ETag" not in error.headers:
                raise
            try:
                return self._large.response(node_request, error.headers)
            except CacheFailure:
                raise error from None  # the NAR can't be cached, so it can't be verified as a whole

    def _path_info(self, url: StorePathUrl) -> PathInfo:
        if url.store_dir is None:
            return self._cache.path_info_anywhere(url.hash_part)
        return self._cache.path_info(url.hash_part, url.store_dir)


class _Timing:
    """Durations of the steps of a response, for the Server-Timing header (https://www.w3.org/TR/server-timing/)."""

    def __init__(self) -> None:
        self._steps: list[tuple[str, float]] = []

    @contextmanager
    def of(self, step: str) -> Generator[None]:
        started = time.perf_counter()
        yield
        self._steps.append((step, time.perf_counter() - started))

    @property
    def header(self) -> str:
        return ", ".join(f"{step};dur={seconds * 1000:.2f}" for step, seconds in self._steps)
