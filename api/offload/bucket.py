"""The bucket for large responses, accessed with obstore."""

import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Self
from urllib.parse import quote

from api.offload.presign import Credentials, presigned_get
from narcore.stores.buckets.obstoreclient import client_options, require_obstore, retry_config
from narcore.stores.buckets.upload import BucketWriter
from narcore.stores.buckets.url import BucketUrl, S3Access, parse_endpoint, s3_access

if TYPE_CHECKING:
    from obstore.store import S3Store

# Validity of a presigned URL in seconds: long enough to begin a download. The URL also expires with the credentials that signed it;
# the credentials of a role are valid for hours.
URL_SECONDS = 3600


class Bucket:
    """The bucket ``s3://bucket[/prefix][?region=&endpoint=]``, with credentials from the environment.

    ``writer`` uploads objects. Names of objects are relative to the prefix.
    """

    def __init__(
        self, url: BucketUrl, access: S3Access, environ: Mapping[str, str], now: Callable[[], datetime]
    ) -> None:
        self._url = url
        self._access = access
        self._environ = environ
        self._now = now
        self.writer = BucketWriter(url, self._open_client, now)

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

    def url_of(self, name: str, disposition: str) -> str:
        """Return a presigned URL of the object, valid for URL_SECONDS.

        ``disposition`` is the Content-Disposition that the bucket sends with the object, or "".
        """
        return presigned_get(
            f"{self._access.base}/{quote(self._url.key(name), safe='/-_.~')}",
            Credentials.from_environ(self._environ),
            self._access.region,
            at=self._now(),
            seconds=URL_SECONDS,
            query={"response-content-disposition": disposition} if disposition else {},
        )

    def _open_client(self) -> "S3Store":
        from obstore.store import S3Store

        credentials = Credentials.from_environ(self._environ)
        return S3Store(
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
