"""Calls the app as a WSGI server would, in this process."""

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


class Answer(NamedTuple):
    status: int
    length: int  # bytes of the body
    first_byte: float  # seconds until there was one, or the end of an empty body
    seconds: float


class App:
    """The app over one binary cache, with a disk cache or without; to be closed."""

    def __init__(self, url: str, cache_dir: Path | None) -> None:
        settings = Settings(cache_urls=(url,), cache_dir=cache_dir)
        self._cache = BinaryCache.from_settings(settings)
        self._application: WSGIApplication = create_app(settings, self._cache)

    def close(self) -> None:
        self._cache.close()

    def request(self, path: str, method: str = "GET", query: str = "") -> Answer:
        environ = {"PATH_INFO": path, "REQUEST_METHOD": method, "QUERY_STRING": query}
        setup_testing_defaults(environ)
        status = [0]

        def start_response(line: str, headers: object, exc_info: object = None) -> object:
            status[0] = int(line[:3])
            return lambda data: None

        started = time.perf_counter()
        chunks = self._application(environ, start_response)  # type: ignore[arg-type]  # wsgiref's is stricter than PEP 3333
        try:
            length, first_byte = _consume(chunks, started)
        finally:
            with suppress(AttributeError):
                chunks.close()  # type: ignore[attr-defined]
        return Answer(status[0], length, first_byte, time.perf_counter() - started)


def _consume(chunks: Iterable[bytes], started: float) -> tuple[int, float]:
    length, first_byte = 0, 0.0
    for chunk in chunks:
        length += len(chunk)
        first_byte = first_byte or time.perf_counter() - started
    return length, first_byte or time.perf_counter() - started
