"""Creates the Flask app from the settings: routes, error handler and middleware."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

from flask import Flask, request
from werkzeug.exceptions import HTTPException
from werkzeug.routing import RequestRedirect

from api.errors import error_response
from api.handlers.large import LargeResponses
from api.handlers.openapi import Description
from api.handlers.pages import Pages
from api.handlers.store import StoreHandler
from api.offload.bucket import Bucket
from api.offload.redirect import Offload
from api.proxies import TrustedProxies
from api.responses.base import Response, options_response
from api.responses.limits import Limit
from api.responses.redirects import redirect_response
from api.telemetry.instruments import Instruments
from api.view.highlighter import Highlighter
from api.view.recent import RecentPaths
from narcore.binarycache import BinaryCache
from narcore.settings import Settings
from narcore.trace import Trace

log = logging.getLogger("api")

T = TypeVar("T")


class _App(Flask):
    """A Flask app whose views are never coroutines. Flask's check for coroutines takes 4% of the time of a small response."""

    def ensure_sync(self, func: T) -> T:
        return func


def create_app(
    settings: Settings,
    cache: BinaryCache | None = None,
    *,
    examples: Sequence[tuple[str, str]] = (),
    access_log: bool = False,
) -> Flask:
    """Create the app that serves ``cache``; the default is a cache made from the settings.

    ``examples`` are pairs of a label and a URL path, shown on the landing page. ``access_log`` turns on a log line per request.
    Raises SettingsError if a setting is invalid or needs a package that is not installed.
    """
    for warning in settings.warnings:
        log.warning("%s", warning)
    if cache is None and not settings.trusted_public_keys:
        log.warning("NAR_TRUSTED_PUBLIC_KEYS is not set: signatures are not checked")
    instruments = Instruments(settings, access_log=access_log)
    cache = cache or BinaryCache.from_settings(settings, trace=instruments.trace, threads=settings.threads)
    app = _App("nar-serve", static_folder=None, template_folder=None, root_path=".")
    app.response_class = Response
    recent = RecentPaths()
    pages = Pages(cache, examples, recent)
    app.add_url_rule("/", view_func=pages.landing, methods=["GET"])
    app.add_url_rule("/healthz", view_func=pages.health, methods=["GET"])
    app.add_url_rule("/readyz", view_func=pages.ready, methods=["GET"])
    app.add_url_rule("/robots.txt", view_func=pages.robots, methods=["GET"])
    app.add_url_rule("/openapi.json", view_func=Description(settings, cache).openapi, methods=["GET"])
    app.add_url_rule("/-/static/<name>", view_func=pages.static, methods=["GET"])
    stores = StoreHandler(
        cache,
        highlighter=Highlighter(settings.threads),
        domain=settings.domain,
        limit=Limit(settings.max_response),
        large=_large_responses(settings, instruments.trace),
        recent=recent,
    )
    _add_store_path_route(app, stores)
    app.before_request(_redirect_to_root)
    app.before_request(_options)
    app.register_error_handler(Exception, _handle_error)
    instruments.attach(app)
    if settings.trusted_proxies:
        app.wsgi_app = TrustedProxies(app.wsgi_app, settings.trusted_proxies)  # type: ignore[method-assign]
    return app


def _add_store_path_route(app: Flask, stores: StoreHandler) -> None:
    """Add the main route, ``/<store dir>/<store path>/<path in it>``.

    The route is not a Werkzeug rule but a function that runs before the view of each request. Werkzeug would merge slashes
    before it matches a rule, and it would decode the path to text, but names in a NAR are bytes. Also, a rule would have to
    contain the store dirs, which are unknown until the stores have been contacted.
    """
    app.url_map.merge_slashes = False
    app.before_request(partial(stores.answer, request))


def _large_responses(settings: Settings, trace: Trace) -> LargeResponses | None:
    if not settings.offload_url:
        return None
    strict = BinaryCache.from_settings(  # has the same cache directory as the BinaryCache that the app serves
        replace(settings, verify="strict"), trace=trace, threads=settings.threads
    )
    return LargeResponses(Offload(Bucket.open(settings.offload_url)), strict)


def _redirect_to_root() -> Response | None:
    """Redirect a request for SCRIPT_NAME without a final slash to the root.

    Werkzeug's own redirect would be permanent (308), and its Location would contain the host name that the client sent.
    """
    if isinstance(request.routing_exception, RequestRedirect):
        return redirect_response(request, "/", immutable=False)
    return None


def _options() -> Response | None:
    """Answer OPTIONS for a URL that is not in a store path. Flask's own response lacks the security headers."""
    return options_response() if request.method == "OPTIONS" and request.url_rule is not None else None


def _handle_error(error: Exception) -> Response:
    response = error_response(request, error)
    if response.status_code >= 500 and not isinstance(error, HTTPException):
        unexpected = response.status_code == 500
        log.log(
            logging.ERROR if unexpected else logging.WARNING,
            "%s %r: %s: %s",
            request.method,
            request.path,
            type(error).__name__,
            error,
            exc_info=unexpected,
        )
    return response
