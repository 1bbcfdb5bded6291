"""The WSGI application for Lambda, both buffered and streamed."""

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from wsgiref.types import WSGIApplication

from api.factory import create_app
from api.telemetry.logs import configure_logging
from narcore.errors import SettingsError
from narcore.settings import Settings

log = logging.getLogger("api")


def load_application(carries: int, examples: Sequence[tuple[str, str]] = ()) -> WSGIApplication:
    """Make the application from the environment.

    ``carries`` is the largest response body, in bytes, that the platform allows. ``examples`` are pairs of label and URL path for
    the landing page. Exits the process with a one-line message if a setting is invalid.
    """
    try:
        settings = Settings.from_environ(os.environ)
        configure_logging(settings.log_format)
        return create_app(_limited(settings, carries), examples=examples)
    except SettingsError as error:
        sys.exit(f"nar-serve: {error}")


def _limited(settings: Settings, carries: int) -> Settings:
    limit = settings.max_response
    if limit is not None and limit > carries:
        log.warning("NAR_MAX_RESPONSE=%d: the platform allows at most %d bytes; using this limit", limit, carries)
    return replace(settings, max_response=min(limit or carries, carries))
