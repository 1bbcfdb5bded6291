"""The requests of one HTTP store: connection pool, credentials, redirects, retries. The caller interprets the final status.

Importing ``requests`` takes longer than importing the rest of the program. So ``store`` imports this module at the first request.

Strategy
--------
Many threads share one client. This is safe: urllib3's pools are thread-safe, and an adapter only reads its own attributes.
The ``Session`` is only used to prepare requests and to read the environment (netrc, proxies, CA bundle). Neither use changes it.
Its cookie jar, the only mutable part, stays empty, because the ``Session`` never receives a response.

``Session.send`` is not used. It reads the whole body of every redirect, of any length, and follows redirects without our
checks. This module checks every redirect before it follows it (see ``guard``), and discards the body of the redirect.

Errors of the libraries requests and urllib3 contain URLs, and URLs contain signatures and passwords. Therefore none of these
errors is passed on, not even as a cause: each is converted to a ``StoreError`` with a text of our own.
"""

import os
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol
from urllib.parse import urlsplit

import requests
import urllib3.exceptions
from requests.adapters import HTTPAdapter

from narcore.errors import StoreError, StoreForbidden, StoreTimeout, StoreUnavailable
from narcore.stores.cafile import CA_VARIABLES, ca_file
from narcore.stores.http import guard
from narcore.stores.http.retry import Pauses, parse_retry_after
from narcore.stores.http.urls import StoreUrl, redirect_target, without_query
from narcore.version import __version__

MAX_REDIRECTS = 5
POOL_SIZE = 64  # connections kept for reuse; further connections are opened when needed, and closed after use
DRAIN_SIZE = 64 * 1024
DRAIN_SECONDS = 1.0
_REDIRECTS = {301, 302, 303, 307, 308}
_RETRIED = {429, 500, 502, 503, 504}
# OSError is also the base class of requests' exceptions. UnicodeError: a password from netrc that latin-1 can't encode.
_FAILURES = (OSError, urllib3.exceptions.HTTPError, UnicodeError)


class Sign(Protocol):
    """Adds a signature: returns the URL to request, for a method and the URL of a file. Raises ``StoreError``."""

    def __call__(self, method: str, url: str, /) -> str: ...


class HttpClient:
    """Sends the requests of one store. Thread-safe. Times are in seconds."""

    def __init__(
        self,
        store: StoreUrl,
        *,
        connect_timeout: float,
        read_timeout: float,
        retries: int,
        sleep: Callable[[float], None],
        sign: Sign,
        netrc: bool,
    ) -> None:
        self._store = store
        self._timeout = (connect_timeout, read_timeout)
        self._retries = retries
        self.sleep = sleep
        self._sign = sign
        self._netrc = netrc
        self._session = requests.Session()
        self._session.headers.clear()
        # identity turns encoding off: FileSize and FileHash of a narinfo describe the bytes as they are stored.
        self._session.headers.update(
            {"User-Agent": f"nar-serve/{__version__}", "Accept-Encoding": "identity", "Accept": "*/*"}
        )
        self._own_adapter = HTTPAdapter(pool_maxsize=POOL_SIZE)
        self._guarded_adapter = guard.guarded_adapter(self._allowed_kinds, pool_maxsize=POOL_SIZE)

    def request(self, method: str, url: str, headers: Mapping[str, str]) -> requests.Response:
        """Send a request, follow redirects and retry after temporary failures; return the last response, its body unread.

        The response may have any status. A redirect is returned only if it has no Location. Raises ``StoreUnavailable``,
        ``StoreTimeout``, or ``StoreForbidden`` if a redirect may not be followed.
        """
        pauses = Pauses(self._retries)
        while True:
            try:
                response = self._follow(method, url, headers)
            except _FAILURES as failure:
                pause = pauses.after_failure() if _is_temporary(failure) else None
                if pause is None:
                    raise self._store_error(failure, url) from None
            else:
                if response.status_code not in _RETRIED:
                    return response
                pause = pauses.after_failure(parse_retry_after(response.headers.get("Retry-After")))
                if pause is None:
                    return response
                self.discard(response)
            self.sleep(pause)

    def read(self, response: requests.Response, size: int, url: str) -> bytes:
        """Return the next bytes of a body as soon as some arrive: at most ``size`` bytes, no bytes at the end of the body.

        Raises ``StoreUnavailable`` or ``StoreTimeout``. ``read1`` calls ``recv`` once, without copying the bytes: it is as fast as
        reading full chunks, but does not wait until a chunk is full.
        """
        try:
            return response.raw.read1(size, decode_content=False) or b""
        except _FAILURES as failure:
            raise self._store_error(failure, url) from None

    def discard(self, response: requests.Response) -> bytes:
        """Close a response. If the rest of its body is short, reads it first, so that the connection can be reused.

        Returns the bytes that were read. The body of an error response is short, so it is usually returned whole.
        """
        left: int | None = response.raw.length_remaining
        try:
            if response.raw.chunked or (left is not None and left <= DRAIN_SIZE):
                return _drain(response)
        except _FAILURES:
            return b""
        finally:
            response.close()
        return b""

    def close(self) -> None:
        self._own_adapter.close()
        self._guarded_adapter.close()
        self._session.close()

    def _follow(self, method: str, url: str, headers: Mapping[str, str]) -> requests.Response:
        target = self._sign(method, url)
        for _ in range(MAX_REDIRECTS + 1):
            try:
                response = self._send(method, target, headers)
            except StoreForbidden as error:
                raise StoreForbidden(f"{without_query(url)}: {error}") from None
            if response.status_code not in _REDIRECTS:
                return response
            location = response.headers.get("Location")
            if location is None:
                return response
            self.discard(response)
            target = self._checked_target(url, target, location)
        raise StoreUnavailable(f"{without_query(url)}: more than {MAX_REDIRECTS} redirects")

    def _checked_target(self, url: str, current: str, location: str) -> str:
        try:
            target = redirect_target(current, location)
            if not self._store.is_own_origin(target):
                host = urlsplit(target).hostname or ""
                guard.check(host, guard.addresses(host, numeric=True), self._allowed_kinds())
        except StoreForbidden as error:
            raise StoreForbidden(f"{without_query(url)}: {error}") from None
        return target

    def _send(self, method: str, url: str, headers: Mapping[str, str]) -> requests.Response:
        is_own = self._store.is_own_origin(url)
        request = requests.Request(method, url, headers=dict(headers), auth=self._auth() if is_own else _no_credentials)
        prepared = self._session.prepare_request(request)
        prepared.url = url  # requests re-encodes the URL, but a signed or unusual URL must be sent unchanged
        environment = self._session.merge_environment_settings(url, {}, None, True, None)
        adapter = self._own_adapter if is_own else self._guarded_adapter
        return adapter.send(
            prepared,
            stream=True,
            timeout=self._timeout,
            verify=ca_file(os.environ) or True,  # the environment can't turn verification off
            proxies=environment["proxies"],
        )

    def _auth(self) -> "tuple[bytes, bytes] | Callable[[requests.PreparedRequest], requests.PreparedRequest] | None":
        """Return the credentials in the store's URL. If it returns None, the library requests reads netrc."""
        if self._store.credentials is not None:
            user, password = self._store.credentials
            return user.encode(), password.encode()
        return None if self._netrc else _no_credentials

    def _allowed_kinds(self) -> frozenset[guard.AddressKind]:
        host = urlsplit(str(self._store)).hostname or ""
        return frozenset(
            {guard.AddressKind.PUBLIC, *map(guard.kind_of, guard.addresses(host))} - {guard.AddressKind.RESERVED}
        )

    def _store_error(self, failure: Exception, url: str) -> StoreError:
        connect, read = self._timeout
        if isinstance(failure, requests.ConnectTimeout):
            return StoreTimeout(f"{without_query(url)}: no connection within {connect:g} s", is_unreachable=True)
        if isinstance(failure, requests.Timeout | urllib3.exceptions.TimeoutError):
            return StoreTimeout(f"{without_query(url)}: no data for {read:g} s")
        return StoreUnavailable(f"{without_query(url)}: {_reason(failure)}", is_unreachable=_is_connecting(failure))


def _no_credentials(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Add no credentials. If a request has this function as ``auth``, the library requests does not read netrc."""
    return request


def _drain(response: requests.Response) -> bytes:
    read = b""
    deadline = time.monotonic() + DRAIN_SECONDS
    while len(read) < DRAIN_SIZE and time.monotonic() < deadline:
        chunk = response.raw.read1(DRAIN_SIZE - len(read), decode_content=False)
        if not chunk:
            break
        read += chunk
    return read


def _is_temporary(failure: BaseException) -> bool:
    """Return whether to retry. Returns False after a read timeout, because our client has already waited long enough."""
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in _causes(failure)):
        return False
    return isinstance(failure, requests.ConnectionError)


def _is_connecting(failure: BaseException) -> bool:
    """Return whether no request could be sent, because DNS, the connection, TLS or the proxy failed."""
    kinds = (urllib3.exceptions.NewConnectionError, requests.exceptions.SSLError, requests.exceptions.ProxyError)
    return any(isinstance(cause, kinds) for cause in _causes(failure))


def _reason(failure: BaseException) -> str:
    for cause in _causes(failure):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"the certificate is not trusted: {cause.verify_message}"
        if isinstance(cause, OSError) and cause.strerror and not isinstance(cause, requests.RequestException):
            return cause.strerror
    if type(failure) is OSError:  # the library requests raises a plain OSError only for a missing CA bundle
        return f"the CA bundle that {' or '.join(CA_VARIABLES)} names does not exist"
    if any(isinstance(cause, urllib3.exceptions.IncompleteRead) for cause in _causes(failure)):
        return "the bytes end early"
    return f"the connection failed ({type(failure).__name__})"


def _causes(failure: BaseException | None) -> Iterator[BaseException]:
    while failure is not None:
        yield failure
        failure = failure.__cause__ or failure.__context__
