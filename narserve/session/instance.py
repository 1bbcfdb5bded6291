"""HTTP client of a running nar-serve (an "instance"): its JSON listings and files, with the same accessor as for binary caches.

Files from an instance are not verified here, since HTTP carries no hash to check them against. The instance itself verifies them.
"""

import json
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from urllib.parse import quote_from_bytes, unquote_to_bytes, urlsplit, urlunsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter

from narcore.errors import (
    FileNotInStore,
    IntegrityError,
    ListingError,
    NarcoreError,
    StoreError,
    StoreForbidden,
    StorePathError,
    StoreTimeout,
    StoreUnavailable,
)
from narcore.formats import listing_json, narinfo_json
from narcore.formats.listing import Kind, NarListing, Node
from narcore.formats.names import to_bytes
from narcore.formats.narinfo import NarInfo
from narcore.formats.storepath import StorePath
from narcore.nars.accessor import NarAccessor, NoBytes
from narcore.sizes import CHUNK_SIZE
from narcore.version import __version__

TIMEOUT = (5.0, 60.0)  # seconds: to connect, between bytes. An instance may fetch a whole NAR before the first byte.
LISTING_LIMIT = 256 << 20
NARINFO_LIMIT = 16 << 20
MESSAGE_LIMIT = 64 * 1024


class Instance:
    """A store dir of an instance. ``home`` is its URL, optionally with user and password. Thread-safe except for ``close``."""

    def __init__(self, home: str, store_dir: str) -> None:
        parts = urlsplit(home)
        path = quote_from_bytes(unquote_to_bytes(to_bytes(parts.path)))
        self.url = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], path, "", ""))
        self.store_dir = store_dir
        self._narinfos: dict[str, NarInfo] = {}
        self._session = requests.Session()
        if "@" in parts.netloc:
            user, password = unquote_to_bytes(parts.username or ""), unquote_to_bytes(parts.password or "")
            self._session.auth = (user.decode("latin-1"), password.decode("latin-1"))
        self._session.headers.update(
            {
                "User-Agent": f"nar-serve/{__version__}",
                "Accept": "application/json, */*;q=0.5",
                "Accept-Encoding": "identity",
            }
        )
        retries = urllib3.Retry(
            total=3, connect=1, backoff_factor=0.2, status_forcelist=(429, 503, 504), raise_on_status=False, redirect=5
        )
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=retries))

    def close(self) -> None:
        self._session.close()

    def open(self, hash_part: str, name: str) -> tuple[StorePath, NarAccessor]:
        """Return a store path, with the name that the instance gives it, and an accessor of its files. Raises NarcoreError."""
        # If the name in the URL is wrong, the instance redirects to the right name. So "x" is used if the name is not known.
        url = f"{self.url}/{hash_part}-{quote_from_bytes(to_bytes(name or 'x'))}"
        response = self._get(f"{url}?format=json&recursive")
        try:
            store_path = self._store_path(response.url)
            listing = NarListing.from_events(listing_json.events(_whole(response, LISTING_LIMIT)))
        except ListingError as error:
            raise StoreUnavailable(f"{self.url} sent no valid listing; is it a nar-serve server?") from error
        finally:
            response.close()
        return store_path, NarAccessor(
            store_path, listing, _Files(self, store_path, listing).read, is_verified=False, is_cached=lambda: False
        )

    def narinfo(self, hash_part: str) -> NarInfo:
        """Return the instance's narinfo of a store path. Raises NarcoreError."""
        if hash_part not in self._narinfos:
            self._narinfos[hash_part] = self._fetch_narinfo(hash_part)
        return self._narinfos[hash_part]

    def _fetch_narinfo(self, hash_part: str) -> NarInfo:
        try:
            with closing(self._get(f"{self.url}/{hash_part}?format=narinfo")) as response:
                return narinfo_json.from_json(json.loads(_whole(response, NARINFO_LIMIT)))
        except (ValueError, ListingError) as error:  # NarInfoError and the errors of json are ValueErrors
            raise StoreUnavailable(f"{self.url} sent no valid narinfo; is it a nar-serve server?") from error

    def _store_path(self, url: str) -> StorePath:
        base_name = unquote_to_bytes(urlsplit(url).path.rstrip("/").rpartition("/")[2]).decode("utf-8", "replace")
        try:
            return StorePath.from_base_name(base_name, self.store_dir)
        except StorePathError:
            raise StoreUnavailable(f"{self.url} redirects to a URL that is not a store path") from None

    def get_file(self, store_path: StorePath, path: str, start: int, stop: int, size: int) -> "_Body":
        """Return the bytes from ``start`` to ``stop`` of a file of ``size`` bytes. Raises IntegrityError if the size is wrong."""
        is_part = (start, stop) != (0, size)
        response = self._get(
            self._file_url(store_path, path), {"Range": f"bytes={start}-{stop - 1}"} if is_part else {}
        )
        try:
            first = start if response.status_code == 206 else 0
            _check_extent(response, first, stop if response.status_code == 206 else size, size)
        except BaseException:
            response.close()
            raise
        return _Body(self, response, skip=start - first, length=stop - start)

    def nar(self, store_path: StorePath, path: str) -> Generator[bytes] | None:
        """Return the NAR of a node, not verified, or None if the instance does not serve NARs. The caller closes it."""
        try:
            response = self._get(f"{self._file_url(store_path, path)}?format=nar")
        except StorePathError:  # status 400: the instance does not know this format
            return None
        return self._chunks(response)

    def _file_url(self, store_path: StorePath, path: str) -> str:
        return f"{self.url}/{quote_from_bytes(to_bytes('/'.join(filter(None, (store_path.base_name, path)))))}"

    def _chunks(self, response: requests.Response) -> Generator[bytes]:
        with closing(response):
            while chunk := self.read(response):
                yield chunk
            if response.raw.length_remaining:
                raise StoreUnavailable(f"{self.url}: the response ends early")

    def read(self, response: requests.Response) -> bytes:
        """Return the next bytes of a body, or no bytes at its end."""
        try:
            return response.raw.read1(CHUNK_SIZE, decode_content=False) or b""
        except (OSError, urllib3.exceptions.HTTPError) as error:
            raise self.failure(error) from None

    def _get(self, url: str, headers: dict[str, str] | None = None) -> requests.Response:
        try:
            response = self._session.get(url, headers=headers, stream=True, timeout=TIMEOUT)
        except OSError as error:  # also the base class of requests' exceptions
            raise self.failure(error) from None
        if response.status_code in (200, 206):
            return response
        try:
            raise self._refusal(response)
        finally:
            response.close()

    def failure(self, error: Exception) -> StoreError:
        if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError):
            return StoreTimeout(f"{self.url}: timed out after {TIMEOUT[1]:g} s without data")
        if isinstance(error, requests.exceptions.SSLError):
            return StoreUnavailable(f"{self.url}: the certificate is not trusted")
        return StoreUnavailable(f"{self.url}: the connection failed ({type(error).__name__})")

    def _refusal(self, response: requests.Response) -> NarcoreError:
        text = f"{self.url}: {_detail(response)}"
        match response.status_code:
            case 404 | 410:
                return FileNotInStore(text)
            case 400:
                return StorePathError(text)
            case 401 | 403 | 407:
                return StoreForbidden(text)
            case 504:
                return StoreTimeout(text)
            case _:
                return StoreUnavailable(text)


class _Files:
    """Reads the files of one store path by node. Over HTTP, files are requested by path, so this class maps nodes to paths."""

    def __init__(self, instance: Instance, store_path: StorePath, listing: NarListing) -> None:
        self._instance = instance
        self._store_path = store_path
        self._listing = listing
        self._paths: dict[int, str] | None = None

    def read(self, node: Node, start: int, stop: int) -> "_Body | NoBytes":
        if start == stop and node.size:
            return NoBytes(is_verified=False)
        if self._paths is None:
            self._paths = dict(_paths(self._listing, self._listing.root, ""))
        return self._instance.get_file(self._store_path, self._paths[node.index], start, stop, node.size)


def _paths(listing: NarListing, node: Node, path: str) -> Iterator[tuple[int, str]]:
    if node.kind is Kind.REGULAR:
        yield node.index, path
    for child in listing.children(node):
        yield from _paths(listing, child, f"{path}/{child.name}" if path else child.name)


class _Body:
    """``length`` bytes of a response, after skipping ``skip`` bytes."""

    is_verified = False

    def __init__(self, instance: Instance, response: requests.Response, *, skip: int, length: int) -> None:
        self.length = length
        self._instance = instance
        self._response = response
        self._chunks = self._read(skip)

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def close(self) -> None:
        self._chunks.close()
        self._response.close()

    def _read(self, skip: int) -> Generator[bytes]:
        left = self.length
        while left:
            chunk = self._instance.read(self._response)
            if not chunk:
                raise StoreUnavailable(f"{self._instance.url}: the response ends early")
            fresh = chunk[skip:][:left]
            skip = max(0, skip - len(chunk))
            left -= len(fresh)
            if fresh:
                yield fresh


def _check_extent(response: requests.Response, start: int, stop: int, size: int) -> None:
    """Raises IntegrityError unless the response holds the bytes from ``start`` to ``stop`` of a file of ``size`` bytes."""
    if response.status_code == 206:
        expected, got = f"bytes {start}-{stop - 1}/{size}", response.headers.get("Content-Range", "")
    else:
        expected, got = str(size), response.headers.get("Content-Length", str(size))
    if got != expected:
        raise IntegrityError(f"the listing says {expected}, but the response says {got[:100]}")


def _whole(response: requests.Response, limit: int) -> bytes:
    content = bytearray()
    try:
        while chunk := response.raw.read(CHUNK_SIZE, decode_content=False):
            content += chunk
            if len(content) > limit:
                raise ListingError(f"more than {limit} bytes")
    except (OSError, urllib3.exceptions.HTTPError):
        raise StoreUnavailable("the response ends early") from None
    return bytes(content)


def _detail(response: requests.Response) -> str:
    """Return the error message of the instance: full sentences that include the next step, or else just the status."""
    with suppress(OSError, ValueError, TypeError, KeyError, urllib3.exceptions.HTTPError, NarcoreError):
        answer = json.loads(response.raw.read(MESSAGE_LIMIT, decode_content=False))
        return f"{answer['error']}. {answer['detail']}"[:1000]
    return f"status {response.status_code}"
