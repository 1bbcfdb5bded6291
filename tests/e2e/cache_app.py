"""The application for tests of the disk cache, with short timeouts for its upstream and for a free download slot.

Each worker creates its own application at its first request. With ``--preload``, gunicorn can therefore import all modules
in the master, and replaces a worker that was killed within milliseconds.
"""

import os
from functools import cache
from typing import TYPE_CHECKING

from api.factory import create_app
from api.telemetry.logs import configure_logging
from narcore.binarycache import BinaryCache
from narcore.cache.narcache import NarCache
from narcore.settings import Settings
from narcore.stores.http.store import HttpBinaryCacheStore

if TYPE_CHECKING:
    from collections.abc import Iterable
    from wsgiref.types import StartResponse, WSGIEnvironment

    from flask import Flask


@cache
def _app_of_process(pid: int) -> "Flask":
    settings = Settings.from_environ(os.environ)
    configure_logging(settings.log_format)
    assert settings.cache_dir is not None
    nars = NarCache(
        settings.cache_dir,
        size=settings.cache_size.in_bytes,
        max_fills=settings.max_fills,
        patience=float(os.environ.get("PATIENCE", "5")),
    )
    stores = [HttpBinaryCacheStore(url, connect_timeout=1, read_timeout=1, retries=1) for url in settings.cache_urls]
    return create_app(settings, BinaryCache(stores, cache=nars, strict=settings.verify == "strict"))


def app(environ: "WSGIEnvironment", start_response: "StartResponse") -> "Iterable[bytes]":
    """The WSGI application."""
    return _app_of_process(os.getpid())(environ, start_response)
