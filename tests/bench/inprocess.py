"""Calls the app in this process, like a WSGI server."""

import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from wsgiref.types import WSGIApplication
from wsgiref.util import setup_testing_defaults

from api.factory import create_app
from narcore.binarycache import BinaryCache
from narcore.settings import Settings


class TimedResponse(NamedTuple):
    """A response and its duration."""

    status: int
    length: int  # bytes of the body
    first_byte: float  # seconds until the first byte, or until the end of an empty body
    seconds: float  # until the end of the body


class App:
    """The app on one binary cache, with or without a disk cache. Close it after use."""

    def __init__(self, url: str, cache_dir: Path | None) -> None:
        settings = Settings(cache_urls=(url,), cache_dir=cache_dir)
        self._cache = BinaryCache.from_settings(settings)
        self._application: WSGIApplication = create_app(settings, self._cache)

    def close(self) -> None:
        self._cache.close()

    def request(self, path: str, method: str = "GET", query: str = "") -> TimedResponse:
        environ = {"PATH_INFO": path, "REQUEST_METHOD": method, "QUERY_STRING": query}
        setup_testing_defaults(environ)
        status = [0]

        def start_response(line: str, headers: object, exc_info: object = None) -> object:
            status[0] = int(line[:3])
            return lambda data: None

        started = time.perf_counter()
        chunks = self._application(environ, start_response)  # type: ignore[arg-type]  # wsgiref is stricter than PEP 3333
        try:
            length, first_byte = _consume(chunks, started)
        finally:
            with suppress(AttributeError):
                chunks.close()  # type: ignore[attr-defined]
        return TimedResponse(status[0], length, first_byte, time.perf_counter() - started)


def _consume(chunks: Iterable[bytes], started: float) -> tuple[int, float]:
    length, first_byte = 0, 0.0
    for chunk in chunks:
        length += len(chunk)
        first_byte = first_byte or time.perf_counter() - started
    return length, first_byte or time.perf_counter() - started
