"""The bucket for large responses, accessed with obstore."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Self
from urllib.parse import quote

from api.offload.presign import Credentials, presigned_get
from narcore.errors import NarcoreError
from narcore.stores.buckets.obstoreclient import client_options, require_obstore, retry_config
from narcore.stores.buckets.url import BucketUrl, S3Access, parse_endpoint, s3_access

if TYPE_CHECKING:
    from obstore import Attributes
    from obstore.store import S3Store

# Validity of a presigned URL: long enough to begin a download. The credentials of a role, which sign the URL, last for hours.
URL_SECONDS = 3600

# S3 allows 10,000 parts per object: up to 80 GB with parts of this size.
_PART_SIZE = 8 << 20
_PARTS_AT_ONCE = 3

# The claim of an upload that never finished expires after this time. The timeout of the Lambda function must not be longer
# (serverless.yml).
CLAIM_SECONDS = 300


class OffloadError(NarcoreError):
    """A request to the bucket failed."""


class Bucket:
    """The bucket ``s3://bucket[/prefix][?region=&endpoint=]``, with credentials from the environment.

    Names of objects are relative to the prefix.
    """

    def __init__(
        self, url: BucketUrl, access: S3Access, environ: Mapping[str, str], now: Callable[[], datetime]
    ) -> None:
        self._url = url
        self._access = access
        self._environ = environ
        self._now = now
        self._client: S3Store | None = None

    @classmethod
    def open(
        cls, url: str, environ: Mapping[str, str] = os.environ, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> Self:
        """Make a bucket from its URL, without connecting to it.

        Raises SettingsError if the URL is invalid, obstore is not installed, or the credentials are missing.
        """
        bucket = BucketUrl.parse(url)
        require_obstore(bucket.scheme)
        Credentials.from_environ(environ)
        region = bucket.parameters.get("region") or environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION")
        default_endpoint = environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL") or ""
        endpoint = bucket.endpoint or parse_endpoint(default_endpoint, "https")
        return cls(bucket, s3_access(bucket, region or "us-east-1", endpoint), environ, now)

    def has(self, name: str) -> bool:
        import obstore

        with self._errors(name):
            try:
                obstore.head(self._store(), self._url.key(name))
            except FileNotFoundError:
                return False
        return True

    def put(self, name: str, chunks: Iterator[bytes], attributes: "Attributes") -> None:
        """Upload ``chunks`` as one object. If the iterator raises, nothing is stored and the exception propagates unchanged."""
        import obstore

        with self._errors(name):
            obstore.put(
                self._store(),
                self._url.key(name),
                chunks,
                attributes=attributes,
                use_multipart=True,
                chunk_size=_PART_SIZE,
                max_concurrency=_PARTS_AT_ONCE,
            )

    def claim(self, name: str) -> bool:
        """Claim the upload of ``name``. Returns True if the caller is to upload it, False if another process has the claim.

        S3 lets only one of several concurrent callers create an object or replace a given version of it.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        key, expiry = self._claim(name), str(int(self._now().timestamp()) + CLAIM_SECONDS).encode()
        with self._errors(name):
            try:
                obstore.put(self._store(), key, expiry, mode="create")
            except (AlreadyExistsError, PreconditionError):
                pass
            else:
                return True
            try:
                current = obstore.get(self._store(), key)
                if int(bytes(current.bytes())) > self._now().timestamp():
                    return False
                obstore.put(self._store(), key, expiry, mode={"e_tag": current.meta["e_tag"]})
            except (FileNotFoundError, PreconditionError):  # just released, or taken over by another process
                return False
        return True

    def release(self, name: str) -> None:
        """Release the claim to ``name``."""
        import obstore

        with self._errors(name):
            obstore.delete(self._store(), self._claim(name))

    def url_of(self, name: str, disposition: str) -> str:
        """Return a presigned URL of the object, valid for URL_SECONDS.

        ``disposition`` is the Content-Disposition of the response to it, or "".
        """
        return presigned_get(
            f"{self._access.base}/{quote(self._url.key(name), safe='/-_.~')}",
            Credentials.from_environ(self._environ),
            self._access.region,
            at=self._now(),
            seconds=URL_SECONDS,
            query={"response-content-disposition": disposition} if disposition else {},
        )

    def _claim(self, name: str) -> str:
        return self._url.key(f"claims/{name}")

    def _store(self) -> "S3Store":
        from obstore.store import S3Store

        # Created at the first request, because a forked worker needs its own client. Concurrent requests may create it twice,
        # which is harmless.
        if self._client is None:
            credentials = Credentials.from_environ(self._environ)
            self._client = S3Store(
                self._url.bucket,
                config={
                    "access_key_id": credentials.key_id,
                    "secret_access_key": credentials.secret,
                    **({"session_token": credentials.token} if credentials.token else {}),
                    "region": self._access.region,
                    "aws_endpoint_url_s3": self._access.endpoint,
                    "virtual_hosted_style_request": self._access.virtual,
                },
                client_options=client_options(),
                retry_config=retry_config(),
            )
        return self._client

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, PermissionError, FileNotFoundError) as error:  # FileNotFoundError: the bucket does not exist
            # The first line of the message has the status and the error code of S3; the other lines repeat the request.
            raise OffloadError(f"{self._url}: {name}: {str(error).partition(chr(10))[0][:300]}") from None
