"""A binary cache behind HTTP."""

import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol

from narcore.errors import (
    FileNotInStore,
    RangeNotSupported,
    StoreError,
    StoreForbidden,
    StoreTimeout,
    StoreUnavailable,
)
from narcore.stores.base import StoreFile, check_by_asking, check_part
from narcore.stores.http.body import ContentRange, HttpBody, content_encoding, range_header
from narcore.stores.http.urls import StoreUrl, without_query

if TYPE_CHECKING:
    import requests

    from narcore.stores.http.client import HttpClient, Sign


class Refusal(Protocol):
    """Converts an unexpected status to an error. ``body`` is the beginning of the response's body, or empty."""

    def __call__(self, url: str, status: int, headers: Mapping[str, str], body: bytes, /) -> StoreError: ...


def unsigned(method: str, url: str) -> str:
    return url


def refusal(url: str, status: int, headers: Mapping[str, str], body: bytes) -> StoreError:
    """Return the error for a status. 403 means a missing file: S3 sends it for a missing object if listing is not allowed."""
    text = f"{without_query(url)}: {status} {_phrase(status)}".rstrip()
    match status:
        case HTTPStatus.NOT_FOUND | HTTPStatus.FORBIDDEN | HTTPStatus.GONE:
            return FileNotInStore(text)
        case HTTPStatus.UNAUTHORIZED | HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
            return StoreForbidden(text)
        case HTTPStatus.GATEWAY_TIMEOUT:
            return StoreTimeout(text)
        case 301 | 302 | 303 | 307 | 308:
            return StoreUnavailable(f"{text}: a redirect without a Location")
        case _:
            return StoreUnavailable(text)


class HttpBinaryCacheStore:
    """``http(s)://[user:password@]host[/prefix]``. If the URL contains no credentials, those in netrc are used.

    Times are in seconds. ``read_timeout`` limits the time without data, not the length of a download. ``retries`` is how
    often a request is retried after a temporary failure: no connection, or status 429, 500, 502, 503, 504.

    ``sign`` takes the URL of a file and returns the URL to request, which contains a signature. ``refusal`` converts a status
    to an error. The S3 store passes its own functions for both. It also turns ``netrc`` off, because S3 rejects a request
    that has both a signature and other credentials.
    """

    def __init__(
        self,
        url: str,
        *,
        connect_timeout: float = 5.0,
        read_timeout: float = 30.0,
        retries: int = 3,
        sleep: Callable[[float], None] = time.sleep,
        sign: "Sign" = unsigned,
        netrc: bool = True,
        refusal: Refusal = refusal,
    ) -> None:
        self._url = StoreUrl.parse(url)
        self.url = str(self._url)
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self._retries = retries
        self._sleep = sleep
        self._sign = sign
        self._netrc = netrc
        self._refusal = refusal
        self._lock = threading.Lock()
        self._opened: HttpClient | None = None

    def get_file(self, path: str, start: int = 0, stop: int | None = None) -> StoreFile:
        check_part(start, stop)
        url = self._url.join(path)
        whole = start == 0 and stop is None
        headers = {} if whole else {"Range": range_header(start, stop)}
        response = self._client().request("GET", url, headers)
        try:
            self._check_status(url, response, part=not whole)
            return self._whole(url, response) if whole else self._part(url, response, start, stop)
        except BaseException:
            response.close()
            raise

    def check(self) -> None:
        check_by_asking(self)

    def close(self) -> None:
        with self._lock:
            client, self._opened = self._opened, None
        if client is not None:
            client.close()

    def _client(self) -> "HttpClient":
        # Created at the first request, because importing requests is slow and a forked worker needs its own connections.
        with self._lock:
            if self._opened is None:
                from narcore.stores.http.client import HttpClient

                self._opened = HttpClient(
                    self._url,
                    connect_timeout=self._connect_timeout,
                    read_timeout=self._read_timeout,
                    retries=self._retries,
                    sleep=self._sleep,
                    sign=self._sign,
                    netrc=self._netrc,
                )
            return self._opened

    def _check_status(self, url: str, response: "requests.Response", *, part: bool) -> None:
        status = response.status_code
        if status == (HTTPStatus.PARTIAL_CONTENT if part else HTTPStatus.OK):
            return
        if part and status in (HTTPStatus.OK, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE):
            # 416: the file exists, but is shorter than the range. 200: the body is the whole file, so it is not read.
            raise RangeNotSupported(f"{without_query(url)}: requested a range, got status {status}")
        raise self._error(url, response)

    def _error(self, url: str, response: "requests.Response") -> StoreError:
        body = self._client().discard(response)
        return self._refusal(url, response.status_code, response.headers, body)

    def _whole(self, url: str, response: "requests.Response") -> StoreFile:
        size: int | None = response.raw.length_remaining
        body = HttpBody(self._client(), url, response, start=0, stop=size, total=size)
        return StoreFile(body, size=size, content_encoding=content_encoding(response.headers))

    def _part(self, url: str, response: "requests.Response", start: int, stop: int | None) -> StoreFile:
        got = ContentRange.parse(response.headers.get("Content-Range"))
        if got is None or got.start != start or got.stop != (got.total if stop is None else stop):
            raise RangeNotSupported(f"{without_query(url)}: the store sent a different range than the requested one")
        if content_encoding(response.headers) is not None:
            raise RangeNotSupported(
                f"{without_query(url)}: the store sent a range of the encoded file (Content-Encoding)"
            )
        body = HttpBody(self._client(), url, response, start=start, stop=got.stop, total=got.total)
        return StoreFile(body, size=got.total)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:  # not a standard status
        return ""
