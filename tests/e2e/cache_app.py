"""The application for tests of the disk cache: made in each worker, and with little patience for its upstream and for room.

Made in the worker, so that gunicorn can load all modules before (``--preload``), and a worker that was killed comes back in a
moment.
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
def _made(pid: int) -> "Flask":
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
    return _made(os.getpid())(environ, start_response)
