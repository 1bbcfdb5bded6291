"""A binary cache in a bucket of S3, or of a compatible service.

Strategy
--------
obstore finds the credentials (environment, web identity, container, instance; boto3 helps with profiles), renews them and
signs the requests. Our own HTTP client (``stores/http``) fetches the bytes. obstore could fetch them too, but it follows every
redirect of the endpoint to any address, sends the session token along, and has no option to turn this off. Our client checks
each redirect, resumes a body that was cut (with ``If-Range``), and uses the proxies and certificates of the environment.

The signature is in the query of the URL. Each attempt has a new signature. Messages and logs contain URLs without the query.
"""

import os
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, unquote, urlsplit

from narcore.errors import (
    FileNotInStore,
    SettingsError,
    StoreError,
    StoreForbidden,
    StoreUnavailable,
)
from narcore.stores.base import StoreFile, check_part
from narcore.stores.buckets.awscredentials import Source, find_source, known_source, metadata_endpoint, open_boto3
from narcore.stores.buckets.obstoreclient import (
    AccessDenied,
    client_options,
    no_credentials,
    opening,
    require_obstore,
    retry_config,
)
from narcore.stores.buckets.url import BucketUrl, S3Access, parse_endpoint, parse_style, s3_access
from narcore.stores.http.store import HttpBinaryCacheStore, Refusal, refusal
from narcore.stores.http.urls import StoreUrl
from narcore.stores.names import file_names

if TYPE_CHECKING:
    from obstore.store import S3Config, S3Credential, S3Store

DEFAULT_REGION = "us-east-1"
SIGNED_SECONDS = 3600

_CODE = re.compile(rb"<Code>(\w{1,80})</Code>")
_REGION = re.compile(rb"<Region>([a-z0-9-]{1,40})</Region>")
# Error codes for a problem with the credentials or the account, not with the requested file.
_BAD_CREDENTIALS = {
    "InvalidAccessKeyId": "the service does not know the key",
    "SignatureDoesNotMatch": "the secret key is wrong, or a proxy changes the request",
    "ExpiredToken": "the session token has expired",
    "InvalidToken": "the session token is not valid",
    "TokenRefreshRequired": "the session token has expired",
    "RequestTimeTooSkewed": "the clock of this machine is wrong",
    "RequestExpired": "the clock of this machine is wrong",
    "AccountProblem": "there is a problem with the account",
    "AllAccessDisabled": "the bucket is disabled",
}
_METHODS: dict[str, Literal["GET", "HEAD"]] = {"GET": "GET", "HEAD": "HEAD"}


class S3BinaryCacheStore:
    """``s3://bucket[/prefix][?profile=&region=&scheme=&endpoint=&addressing-style=]``, as in Nix.

    ``options`` are passed to ``HttpBinaryCacheStore``. The endpoint and the credentials are determined at the first request, not
    when the store is created: finding them may send a request to a metadata service, and each forked worker needs its own
    connections.
    """

    def __init__(self, url: str, **options: Any) -> None:
        self._bucket = BucketUrl.parse(url)
        require_obstore(self._bucket.scheme)
        self.url = str(self._bucket)
        self._options = options
        self._lock = threading.Lock()
        self._opened: HttpBinaryCacheStore | None = None
        self._check_settings()

    def get_file(self, path: str, start: int = 0, stop: int | None = None) -> StoreFile:
        check_part(start, stop)
        missing: FileNotInStore | None = None
        for name in file_names(path):
            try:
                return self._http().get_file(_quoted(name), start, stop)
            except FileNotInStore as error:
                missing = missing or error
        raise missing or FileNotInStore(f"{self.url}: no file {path}")

    def check(self) -> None:
        """Raise a ``StoreError`` that says what to do if the bucket can't be used with the settings.

        A bucket without nix-cache-info passes the check; a bucket that may not be read does not pass. ``get_file`` can't
        distinguish the two: it treats a 403 as a missing file, because S3 answers 403 for a missing file if the bucket may not be
        listed.
        """
        try:
            self.get_file("nix-cache-info").close()
        except AccessDenied as error:
            raise StoreForbidden(
                f"{error}: allow s3:GetObject (and s3:ListBucket, to detect missing files) on the bucket, "
                "or use credentials that may read it: AWS_ACCESS_KEY_ID, ?profile=, or a role of the machine"
            ) from None
        except FileNotInStore:
            return

    def close(self) -> None:
        with self._lock:
            http, self._opened = self._opened, None
        if http is not None:
            http.close()

    def _check_settings(self) -> None:
        """Raise ``SettingsError`` for wrong settings that can be detected without a request."""
        try:
            known_source(self._profile, os.environ)
            s3_access(self._bucket, self._region or DEFAULT_REGION, self._endpoint)
            parse_style(self._bucket)
        except SettingsError as error:
            raise SettingsError(f"{self.url}: {error}") from None

    @property
    def _profile(self) -> str:
        return self._bucket.parameters.get("profile", "")

    @property
    def _region(self) -> str:
        named = (os.environ.get(name, "") for name in ("AWS_REGION", "AWS_DEFAULT_REGION"))
        return self._bucket.parameters.get("region") or next(filter(None, named), "")

    @property
    def _endpoint(self) -> StoreUrl | None:
        named = (os.environ.get(name, "") for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"))
        return self._bucket.endpoint or parse_endpoint(next(filter(None, named), ""), "https")

    def _http(self) -> HttpBinaryCacheStore:
        with self._lock:
            if self._opened is None:
                self._opened = self._make_http()
            return self._opened

    def open_client(self) -> "S3Store":
        """Return a client of obstore for the bucket, with the credentials of this store. May ask a metadata service."""
        return self._find_access().open_client()

    def _make_http(self) -> HttpBinaryCacheStore:
        found = self._find_access()
        base = f"{found.access.base}/{quote(self._bucket.prefix)}"
        explain = S3Refusal(self.url, self._bucket.bucket, found.access.region)
        if found.config.get("skip_signature"):
            return HttpBinaryCacheStore(base, refusal=explain, netrc=False, **self._options)
        signer = S3Signer(self.url, found.open_client(), found.access)
        return HttpBinaryCacheStore(base, sign=signer, refusal=explain, netrc=False, **self._options)

    def _find_access(self) -> "_Credentials":
        source = find_source(self._profile, os.environ)
        config: S3Config = {}
        provider, region = None, self._region
        if source is Source.BOTO3:
            provider, profile_region = open_boto3(self._profile)
            region = region or profile_region or ""
        elif source is Source.INSTANCE:
            config["metadata_endpoint"] = metadata_endpoint(os.environ)
        elif source is Source.NONE:
            config["skip_signature"] = True
        access = s3_access(self._bucket, region or DEFAULT_REGION, self._endpoint)
        return _Credentials(self._bucket.bucket, access, config, provider)


@dataclass(frozen=True, slots=True)
class _Credentials:
    """How to reach a bucket and sign requests: settings of obstore. ``provider`` is set if boto3 provides the credentials."""

    bucket: str
    access: S3Access
    config: "S3Config"
    provider: "Callable[[], S3Credential] | None" = field(repr=False)

    def open_client(self) -> "S3Store":
        from obstore.store import S3Store

        with opening(f"s3://{self.bucket}", "AWS_"):
            return S3Store(
                self.bucket,
                config={
                    "region": self.access.region,
                    "aws_endpoint_url_s3": self.access.endpoint,  # this key overrides the environment
                    "virtual_hosted_style_request": self.access.virtual,
                    **self.config,
                },
                client_options=client_options(),
                retry_config=retry_config(),
                credential_provider=self.provider,
            )


class S3Signer:
    """Signs the URL of an object of one bucket, with credentials that obstore keeps fresh."""

    def __init__(self, what: str, store: "S3Store", access: S3Access) -> None:
        self._what = what
        self._store = store
        self._base = urlsplit(access.base).path.rstrip("/") + "/"

    def __call__(self, method: str, url: str) -> str:
        """Return the signed URL. Raises ``StoreForbidden`` or ``StoreUnavailable`` if there are no credentials."""
        import obstore
        from obstore.exceptions import BaseError

        key = unquote(urlsplit(url).path.removeprefix(self._base))
        try:
            return obstore.sign(self._store, _METHODS[method], key, timedelta(seconds=SIGNED_SECONDS))
        except (BaseError, OSError) as error:  # the text of the error may contain a token
            raise no_credentials(self._what, str(error)) from None


class S3Refusal(Refusal):
    """Converts a status of S3, and the code in the body, to an error."""

    def __init__(self, what: str, bucket: str, region: str) -> None:
        self._what = what
        self._bucket = bucket
        self._region = region

    def __call__(self, url: str, status: int, headers: Mapping[str, str], body: bytes) -> StoreError:
        code = _match(_CODE, body)
        text = f"{self._what}: {status} {code}".rstrip()
        if code == "NoSuchBucket":
            return StoreUnavailable(f"{text}: there is no bucket {self._bucket!r}; check its name, region and endpoint")
        if code in _BAD_CREDENTIALS:
            return StoreForbidden(f"{text}: {_BAD_CREDENTIALS[code]}; check the credentials")
        region = headers.get("x-amz-bucket-region", "") or _match(_REGION, body)
        if status in (301, 307, 400) and region != self._region and (region or code == "PermanentRedirect"):
            named = f"it is in {region}: set region={region}" if region else "set region= to its region"
            return StoreForbidden(f"{text}: the bucket is not in the region {self._region}; {named} in the store's URL")
        if status == 403:
            return AccessDenied(text)
        return refusal(url, status, headers, body)


def _quoted(name: str) -> str:
    """Return the key ``name``, percent-encoded in the same way as obstore does for the signature."""
    try:
        return quote(name, safe="/")
    except UnicodeEncodeError:  # not UTF-8: keys are text
        raise FileNotInStore(f"not a valid key in a bucket: {name!r}") from None


def _match(pattern: re.Pattern[bytes], body: bytes) -> str:
    found = pattern.search(body)
    return found[1].decode() if found else ""
