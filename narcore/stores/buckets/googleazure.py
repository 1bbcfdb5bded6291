"""A binary cache in a bucket of Google Cloud Storage or a container of Azure Blob Storage. Uses the library obstore.

Unlike the HTTP and S3 stores, this store follows every redirect of the endpoint, because obstore has no option to turn
this off. The endpoint belongs to Google or Microsoft, or the administrator chose it.
"""

import os
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from narcore.errors import (
    FileNotInStore,
    RangeNotSupported,
    SettingsError,
    StoreError,
    StoreForbidden,
    StoreTimeout,
    StoreUnavailable,
)
from narcore.sizes import CHUNK_SIZE
from narcore.stores.base import StoreFile, check_part
from narcore.stores.buckets import metadata
from narcore.stores.buckets.obstoreclient import (
    AccessDenied,
    client_options,
    no_credentials,
    opening,
    require_obstore,
    retry_config,
    status_of,
)
from narcore.stores.buckets.url import BucketUrl
from narcore.stores.names import file_names

if TYPE_CHECKING:
    from obstore import BytesStream, GetOptions, GetResult
    from obstore.store import AzureConfig, AzureStore, GCSConfig, GCSStore

_CODE = re.compile(r"<Code>(\w{1,80})</Code>")
_NO_BUCKET = {"NoSuchBucket", "ContainerNotFound"}
# Error codes of Azure and Google for a problem with the credentials, not with the requested file.
_BAD_CREDENTIALS = {
    "AuthenticationFailed",
    "AuthorizationFailure",
    "AuthorizationPermissionMismatch",
    "InvalidAuthenticationInfo",
    "InsufficientAccountPermissions",
    "InvalidSecurity",
    "NoAuthenticationInformation",
    "PublicAccessNotPermitted",
    "SignatureDoesNotMatch",
}
_GOOGLE = (
    "GOOGLE_SERVICE_ACCOUNT",
    "GOOGLE_SERVICE_ACCOUNT_PATH",
    "GOOGLE_SERVICE_ACCOUNT_KEY",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "GOOGLE_BEARER_TOKEN",
)
_AZURE = (
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_MASTER_KEY",
    "AZURE_STORAGE_SAS_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_STORAGE_TOKEN",
    "AZURE_STORAGE_CLIENT_SECRET",
    "AZURE_CLIENT_SECRET",
    "AZURE_FEDERATED_TOKEN_FILE",
    "AZURE_USE_AZURE_CLI",
    "AZURE_MSI_ENDPOINT",
    "AZURE_IDENTITY_ENDPOINT",
)


class ObjectBinaryCacheStore:
    """``gs://bucket[/prefix]`` or ``az://container[/prefix]``, each with an optional ``?endpoint=``.

    Credentials come from the environment, under the names that Google's and Azure's own tools use, or from the machine's
    metadata service. Without credentials, requests are not signed. Azure's account is ``?account=`` or
    ``AZURE_STORAGE_ACCOUNT_NAME``. Times are in seconds. obstore retries after temporary failures, and resumes a body that was cut.
    """

    def __init__(self, url: str, *, connect_timeout: float = 5.0, read_timeout: float = 30.0, retries: int = 3) -> None:
        self._bucket = BucketUrl.parse(url)
        require_obstore(self._bucket.scheme)
        self.url = str(self._bucket)
        self._endpoint = self._bucket.endpoint
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self._retries = retries
        self._lock = threading.Lock()
        self._opened: GCSStore | AzureStore | None = None
        if self._bucket.scheme == "az" and not (self._account or os.environ.get("AZURE_STORAGE_USE_EMULATOR")):
            raise SettingsError(f"{self.url}: no account; set AZURE_STORAGE_ACCOUNT_NAME, or write ?account=NAME")

    def get_file(self, path: str, start: int = 0, stop: int | None = None) -> StoreFile:
        check_part(start, stop)
        options: GetOptions = {}
        if stop is not None:
            options = {"range": (start, stop)}
        elif start:
            options = {"range": {"offset": start}}
        found = self._first(path, options)
        size = found.meta["size"]
        end = size if stop is None else stop
        if size and found.range != (start, end):
            raise RangeNotSupported(f"{self.url}: {path} has {size} bytes, requested {start} to {end}")
        encoding = found.attributes.get("Content-Encoding", "").strip().lower()
        body = _Body(f"{self.url}: {path}", found.stream(1), end - start)
        return StoreFile(body, size=size, content_encoding=encoding if encoding not in ("", "identity") else None)

    def check(self) -> None:
        """Raise a ``StoreError`` that says what to do if the bucket can't be used with the settings."""
        try:
            self.get_file("nix-cache-info").close()
        except AccessDenied as error:
            raise StoreForbidden(f"{error}: allow reading and listing the objects, or use other credentials") from None
        except FileNotInStore:
            return

    def close(self) -> None:
        with self._lock:
            self._opened = None

    def _first(self, path: str, options: "GetOptions") -> "GetResult":
        import obstore

        missing: FileNotInStore | None = None
        store = self._store()
        for name in file_names(path):
            try:
                return obstore.get(store, self._bucket.key(name), options=options)
            except _failures() as failure:
                error = _store_error(f"{self.url}: {path}", failure)
                if not isinstance(error, FileNotInStore):
                    raise error from None
                missing = missing or error
        raise missing or FileNotInStore(f"{self.url}: no file {path}")

    @property
    def _account(self) -> str:
        return self._bucket.parameters.get("account") or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", "")

    def open_client(self) -> "GCSStore | AzureStore":
        """Return a new client of obstore for the bucket. May ask a metadata service."""
        return self._open_google() if self._bucket.scheme == "gs" else self._open_azure()

    def _store(self) -> "GCSStore | AzureStore":
        # Created at the first request, because a forked worker needs its own connections.
        with self._lock:
            if self._opened is None:
                self._opened = self.open_client()
            return self._opened

    def _open_google(self) -> "GCSStore":
        from obstore.store import GCSStore

        config: GCSConfig = {} if has_google_credentials(os.environ) else {"skip_signature": True}
        if self._endpoint is not None:
            config["base_url"] = str(self._endpoint)
        with opening(self.url, "GOOGLE_"):
            return GCSStore(self._bucket.bucket, config=config, **self._limits())

    def _open_azure(self) -> "AzureStore":
        from obstore.store import AzureStore

        config: AzureConfig = {} if has_azure_credentials(os.environ) else {"skip_signature": True}
        if self._account:
            config["account_name"] = self._account
        if self._endpoint is not None:
            config["endpoint"] = str(self._endpoint)
        with opening(self.url, "AZURE_"):
            return AzureStore(self._bucket.bucket, config=config, **self._limits())

    def _limits(self) -> dict[str, Any]:
        options = client_options(self._connect_timeout, self._read_timeout)
        return {"client_options": options, "retry_config": retry_config(self._retries)}


class _Body:
    """The next ``left`` bytes of a stream, in chunks of at most CHUNK_SIZE."""

    def __init__(self, what: str, stream: "BytesStream", left: int) -> None:
        self._what = what
        self._stream: BytesStream | None = stream
        self._left = left
        self._piece = memoryview(b"")
        self._error: StoreError | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        if self._error is not None:  # a truncated file must never end cleanly, so later reads also fail
            raise self._error
        if not self._left:
            self._stream = None
            raise StopIteration
        while not self._piece:
            self._piece = memoryview(self._receive())
        chunk = bytes(self._piece[:CHUNK_SIZE])
        self._piece = self._piece[CHUNK_SIZE:]
        self._left -= len(chunk)
        return chunk

    def _receive(self) -> bytes:
        try:
            piece = next(self._stream, None) if self._stream is not None else None
        except _failures() as failure:
            raise self._failed(_store_error(self._what, failure)) from None
        if piece is None or len(piece) > self._left:
            raise self._failed(StoreUnavailable(f"{self._what}: the store sent too few or too many bytes"))
        return bytes(piece)

    def _failed(self, error: StoreError) -> StoreError:
        # The file exists, because reading has begun. So a status such as 404 does not mean that the file is missing.
        self._error = error if isinstance(error, StoreUnavailable) else StoreUnavailable(str(error))
        self._stream = None
        return self._error

    def close(self) -> None:
        """Discard the rest. Reading after that raises an error, because a closed body must not look like a complete one."""
        if self._left and self._error is None:
            self._error = StoreUnavailable(f"{self._what}: closed before the end")
        self._stream = None
        self._piece = memoryview(b"")


def has_google_credentials(environ: Mapping[str, str]) -> bool:
    """Return whether there are credentials. Looks in the same places as Google's tools. Takes one second at most."""
    if _is_true(environ.get("GOOGLE_SKIP_SIGNATURE")):
        return False
    # os.path.expanduser, unlike pathlib, does not fail for a user without a home directory, which is usual in containers.
    config = Path(os.path.expanduser(environ.get("CLOUDSDK_CONFIG") or "~/.config/gcloud"))  # noqa: PTH111  see above
    if any(environ.get(name) for name in _GOOGLE) or (config / "application_default_credentials.json").is_file():
        return True
    if _is_true(environ.get("NO_GCE_CHECK")):
        return False
    host = environ.get("GCE_METADATA_IP") or environ.get("GCE_METADATA_HOST")
    return metadata.answers("GET", f"http://{host}/" if host else metadata.LINK_LOCAL, {"Metadata-Flavor": "Google"})


def has_azure_credentials(environ: Mapping[str, str]) -> bool:
    """Return whether there are credentials. Takes one second at most."""
    if _is_true(environ.get("AZURE_SKIP_SIGNATURE")):
        return False
    if any(environ.get(name) for name in _AZURE) or _is_true(environ.get("AZURE_STORAGE_USE_EMULATOR")):
        return True
    return metadata.answers(
        "GET", f"{metadata.LINK_LOCAL}/metadata/instance?api-version=2021-02-01", {"Metadata": "true"}
    )


def _is_true(text: str | None) -> bool:
    return (text or "").lower() in ("1", "true")


def _failures() -> tuple[type[Exception], ...]:
    """Return the exceptions that obstore raises. Its NotFoundError is an OSError; an invalid key raises TypeError or ValueError."""
    from obstore.exceptions import BaseError

    return (BaseError, OSError, TypeError, ValueError)


def _store_error(what: str, failure: Exception) -> StoreError:
    """Convert an error of obstore. Examines its text, but does not pass it on: it contains URLs with signatures."""
    from obstore.exceptions import BaseError

    text = str(failure)
    found, status = _CODE.search(text), status_of(text)
    code = found[1] if found else ""
    message = f"{what}: {status or ''} {code}".rstrip().removesuffix(":")
    if not isinstance(failure, BaseError | OSError):
        return FileNotInStore(f"{what}: not a valid key in a bucket")
    if code in _NO_BUCKET:
        return StoreUnavailable(f"{message}: there is no such bucket; check its name, the account and the endpoint")
    if status == 401 or code in _BAD_CREDENTIALS:
        return StoreForbidden(
            f"{message}: the credentials were refused, or there are none and the bucket is not public"
        )
    for statuses, make in _BY_STATUS:
        if status in statuses:
            return make(message)
    return _without_status(what, text)


_BY_STATUS: tuple[tuple[set[int], Callable[[str], StoreError]], ...] = (
    ({404, 410}, FileNotInStore),
    ({403}, AccessDenied),
    ({416}, RangeNotSupported),
    ({408, 504}, StoreTimeout),
    (set(range(300, 600)), StoreUnavailable),
)


def _without_status(what: str, text: str) -> StoreError:
    if "non-partial response" in text or "range starting at" in text:
        return RangeNotSupported(f"{what}: requested a range, got the whole file or nothing")
    if re.search(r"credential|oauth|bearer|\btoken\b", text, re.IGNORECASE):
        return no_credentials(what, text)
    if "TimedOut" in text or "timed out" in text:
        return StoreTimeout(f"{what}: no answer in time")
    return StoreUnavailable(f"{what}: the connection failed, or the response is invalid")
