"""A running nar-serve as a source: its JSON listings and its files, over HTTP, behind the accessor that the caches have.

What it serves is taken as it is: there is no hash in HTTP to check it by. Whoever runs the instance has that done there.
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
from narcore.nars.accessor import NarAccessor
from narcore.sizes import CHUNK_SIZE
from narcore.version import __version__

TIMEOUT = (5.0, 60.0)  # to connect; between bytes. An instance may have to fetch a whole NAR before the first one.
LISTING_LIMIT = 256 << 20
NARINFO_LIMIT = 16 << 20
MESSAGE_LIMIT = 64 * 1024


class Instance:
    """One store dir of one instance; ``home`` is its URL, maybe with user and password. Thread-safe but for ``close``."""

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
        """A store path and its files. The instance says what it is called. Raises NarcoreError."""
        # To a name that is not the path's own an instance answers with a redirect to the right one: so "x" asks for it.
        asked = f"{self.url}/{hash_part}-{quote_from_bytes(to_bytes(name or 'x'))}"
        response = self._get(f"{asked}?format=json&recursive")
        try:
            store_path = self._store_path(response.url)
            listing = NarListing.from_events(listing_json.events(_whole(response, LISTING_LIMIT)))
        except ListingError as error:
            raise StoreUnavailable(f"{self.url} gives no listing that can be read; is it a nar-serve?") from error
        finally:
            response.close()
        return store_path, NarAccessor(
            store_path, listing, _Files(self, store_path, listing).read, is_verified=False, is_cached=lambda: False
        )

    def narinfo(self, hash_part: str) -> NarInfo:
        """What the instance says of a store path. Raises NarcoreError."""
        if hash_part not in self._narinfos:
            self._narinfos[hash_part] = self._ask_narinfo(hash_part)
        return self._narinfos[hash_part]

    def _ask_narinfo(self, hash_part: str) -> NarInfo:
        try:
            with closing(self._get(f"{self.url}/{hash_part}?format=narinfo")) as response:
                return narinfo_json.from_json(json.loads(_whole(response, NARINFO_LIMIT)))
        except (ValueError, ListingError) as error:  # NarInfoError and json's are both ValueErrors
            raise StoreUnavailable(f"{self.url} gives no narinfo that can be read; is it a nar-serve?") from error

    def _store_path(self, url: str) -> StorePath:
        base_name = unquote_to_bytes(urlsplit(url).path.rstrip("/").rpartition("/")[2]).decode("utf-8", "replace")
        try:
            return StorePath.from_base_name(base_name, self.store_dir)
        except StorePathError:
            raise StoreUnavailable(f"{self.url} leads to something that is no store path") from None

    def get_file(self, store_path: StorePath, path: str, start: int, stop: int, size: int) -> "_Body":
        """Bytes ``start`` to ``stop`` of a file of ``size`` bytes."""
        part = (start, stop) != (0, size)
        response = self._get(self._file_url(store_path, path), {"Range": f"bytes={start}-{stop - 1}"} if part else {})
        try:
            here = start if response.status_code == 206 else 0
            _check_extent(response, here, stop if response.status_code == 206 else size, size)
        except BaseException:
            response.close()
            raise
        return _Body(self, response, skip=start - here, length=stop - start)

    def nar(self, store_path: StorePath, path: str) -> Generator[bytes] | None:
        """The NAR of a node, to be closed; None if this instance does not give any. It is not checked against a hash."""
        try:
            response = self._get(f"{self._file_url(store_path, path)}?format=nar")
        except StorePathError:  # the status for a format that is not known
            return None
        return self._chunks(response)

    def _file_url(self, store_path: StorePath, path: str) -> str:
        return f"{self.url}/{quote_from_bytes(to_bytes('/'.join(filter(None, (store_path.base_name, path)))))}"

    def _chunks(self, response: requests.Response) -> Generator[bytes]:
        with closing(response):
            while chunk := self.read(response):
                yield chunk
            if response.raw.length_remaining:
                raise StoreUnavailable(f"{self.url}: the bytes end early")

    def read(self, response: requests.Response) -> bytes:
        """The next bytes of a body; none at its end."""
        try:
            return response.raw.read1(CHUNK_SIZE, decode_content=False) or b""
        except (OSError, urllib3.exceptions.HTTPError) as error:
            raise self.failure(error) from None

    def _get(self, url: str, headers: dict[str, str] | None = None) -> requests.Response:
        try:
            response = self._session.get(url, headers=headers, stream=True, timeout=TIMEOUT)
        except OSError as error:  # the root of requests' exceptions as well
            raise self.failure(error) from None
        if response.status_code in (200, 206):
            return response
        try:
            raise self._refusal(response)
        finally:
            response.close()

    def failure(self, error: Exception) -> StoreError:
        if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError):
            return StoreTimeout(f"{self.url}: nothing came for {TIMEOUT[1]:g} s")
        if isinstance(error, requests.exceptions.SSLError):
            return StoreUnavailable(f"{self.url}: the certificate is not trusted")
        return StoreUnavailable(f"{self.url}: the connection fails ({type(error).__name__})")

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
    """Reads the files of one store path by their nodes: over HTTP they go by their paths."""

    def __init__(self, instance: Instance, store_path: StorePath, listing: NarListing) -> None:
        self._instance = instance
        self._store_path = store_path
        self._listing = listing
        self._paths: dict[int, str] | None = None

    def read(self, node: Node, start: int, stop: int) -> "_Body | _NoBytes":
        if start == stop:
            return _NoBytes()
        if self._paths is None:
            self._paths = dict(_paths(self._listing, self._listing.root, ""))
        return self._instance.get_file(self._store_path, self._paths[node.index], start, stop, node.size)


def _paths(listing: NarListing, node: Node, path: str) -> Iterator[tuple[int, str]]:
    if node.kind is Kind.REGULAR:
        yield node.index, path
    for child in listing.children(node):
        yield from _paths(listing, child, f"{path}/{child.name}" if path else child.name)


class _Body:
    """``length`` bytes of a response, behind the first ``skip``."""

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
                raise StoreUnavailable(f"{self._instance.url}: the bytes end early")
            fresh = chunk[skip:][:left]
            skip = max(0, skip - len(chunk))
            left -= len(fresh)
            if fresh:
                yield fresh


class _NoBytes:
    length = 0

    def __iter__(self) -> Iterator[bytes]:
        return iter(())

    def close(self) -> None:
        """There is nothing open."""


def _check_extent(response: requests.Response, start: int, stop: int, size: int) -> None:
    """Raises IntegrityError unless the answer is about these bytes of a file of that size: the listing says so."""
    if response.status_code == 206:
        expected, got = f"bytes {start}-{stop - 1}/{size}", response.headers.get("Content-Range", "")
    else:
        expected, got = str(size), response.headers.get("Content-Length", str(size))
    if got != expected:
        raise IntegrityError(f"the listing says {expected}, and the file is {got[:100]}")


def _whole(response: requests.Response, limit: int) -> bytes:
    content = bytearray()
    try:
        while chunk := response.raw.read(CHUNK_SIZE, decode_content=False):
            content += chunk
            if len(content) > limit:
                raise ListingError(f"more than {limit} bytes")
    except (OSError, urllib3.exceptions.HTTPError):
        raise StoreUnavailable("the bytes end early") from None
    return bytes(content)


def _detail(response: requests.Response) -> str:
    """What the instance says of an error, in sentences, the next step among them; or just the status."""
    with suppress(OSError, ValueError, TypeError, KeyError, urllib3.exceptions.HTTPError, NarcoreError):
        told = json.loads(response.raw.read(MESSAGE_LIMIT, decode_content=False))
        return f"{told['error']}. {told['detail']}"[:1000]
    return f"status {response.status_code}"
